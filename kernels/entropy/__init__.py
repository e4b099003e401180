"""Functional entropy and representation regularisation."""
