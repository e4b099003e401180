"""Methods, which say what is trained: one file each, on the interface in `fastseg.methods.base`."""

from . import any2seg, anyseg, baseline, feedback, full_path, rmmss, robustseg
from .base import METHODS, Method, MethodOptions, register
from .stage import LossWeights, Stage

__all__ = [
    "METHODS",
    "LossWeights",
    "Method",
    "MethodOptions",
    "Stage",
    "any2seg",
    "anyseg",
    "baseline",
    "feedback",
    "full_path",
    "register",
    "rmmss",
    "robustseg",
]
