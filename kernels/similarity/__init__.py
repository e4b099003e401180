"""Similarity of pixels to their prototypes, its divergence, and the distillation made of both."""
