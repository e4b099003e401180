"""Parts of the networks: the sum of upsampled levels."""
