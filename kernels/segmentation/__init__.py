"""Losses and predictions from low-resolution logits, with the upsampling inside the kernels."""
