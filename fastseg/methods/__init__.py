"""What is trained: one file per method, on the interface in `fastseg.methods.base`."""

from . import robustseg
from .base import METHODS, Method, MethodOptions, register
from .stage import LossWeights, Stage

__all__ = [
    "METHODS",
    "LossWeights",
    "Method",
    "MethodOptions",
    "Stage",
    "register",
    "robustseg",
]
