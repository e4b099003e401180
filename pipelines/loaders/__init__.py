"""From a plan to batches: which samples, in which order, read by torch or DALI."""
