"""A stand-in with the interface of NVIDIA apex, in plain PyTorch, for machines without a GPU."""
