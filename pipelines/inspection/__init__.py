"""Faults, statistics and pictures of a data set, for people."""
