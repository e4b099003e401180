"""The segmentation head: its folded projections, its fused map and its logits."""
