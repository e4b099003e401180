"""A first description of a data set, from looking at a folder."""
