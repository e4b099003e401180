"""What a data set is, and which files its splits consist of."""
