"""Steps whose gradient is not finite: watched, told, written down, and repeated alone."""
