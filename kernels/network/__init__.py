"""Layers of the encoder: attention to a spatially reduced copy of the tokens."""
