"""Crop, resize, colour and scale: from the pixels of a file to the input of the network."""
