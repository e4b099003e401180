"""CMNeXt and CMX: a branch for the hub modality, one for all others, fused level by level."""
