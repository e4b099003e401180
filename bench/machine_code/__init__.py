"""Kernels compiled for GPUs that are not there, and what is in their machine code."""
