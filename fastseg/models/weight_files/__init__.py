"""Weights of any project: files read without running code, names recognised, converted, written."""
