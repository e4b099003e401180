"""What happens to pixels between a file and the network: crop, resize, colour, scale."""
