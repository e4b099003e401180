"""Shared parts of the operators: the switch to the kernels, feature maps, pieces of kernels."""
