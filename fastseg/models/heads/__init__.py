"""Decoders: from fused features to logits."""
