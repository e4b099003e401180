"""Whole recipes by name, one file per data set and per demo."""
