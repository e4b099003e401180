"""Turns Triton's interpreter on where there is no GPU, before anything imports the kernels.

``@triton.jit`` reads the variable when it decorates, and the engine's tests, which pytest collects
first, import the kernels too. CPU tensors get the reference all the same unless a test asks for
the kernels: see ``fastseg.kernels._launch``.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
