"""Methods, which say what is trained: one file each, on the interface in `fastseg.methods.base`."""

from . import feedback, robustseg
from .base import METHODS, Method, MethodOptions, register
from .stage import LossWeights, Stage

__all__ = [
    "METHODS",
    "LossWeights",
    "Method",
    "MethodOptions",
    "Stage",
    "feedback",
    "register",
    "robustseg",
]
