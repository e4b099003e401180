"""What the operators share: the switch to the kernels, feature maps, pieces of kernels."""
