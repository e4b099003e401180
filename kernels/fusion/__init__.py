"""Fusions of the modalities' features."""
