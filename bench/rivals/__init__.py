"""Code to compare fastseg with: published code by its description, and an expert's PyTorch."""
