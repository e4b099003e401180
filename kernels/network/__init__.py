"""Parts of the networks: the sum of upsampled levels, and the head made of it."""
