"""Prototypes of the classes: masked pooling, divergence, and the distillation made of both."""
