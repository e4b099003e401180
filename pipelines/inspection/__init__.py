"""What people want to know about a data set: its faults, statistics and pictures."""
