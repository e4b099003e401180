"""Faults of sensors, put into samples."""
