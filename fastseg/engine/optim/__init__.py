"""Optimizers, learning rate, loss scale and averaged weights."""
