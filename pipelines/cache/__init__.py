"""The decoded cache of a split: its format, how it is written and read."""
