"""The operators, one file each: published loops, plain PyTorch and the fused kernels."""
