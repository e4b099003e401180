"""Whole training steps on one device and on several."""
