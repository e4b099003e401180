"""What fastseg is compared with: published code by its description, and an expert's PyTorch."""
