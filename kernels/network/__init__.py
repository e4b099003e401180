"""Layers of the networks, forward and backward: no loss, but most of a step's time."""
