"""Specs of the data sets, and the files that their splits consist of."""
