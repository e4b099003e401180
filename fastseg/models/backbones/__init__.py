"""Encoders, one file per family, and their attention."""
