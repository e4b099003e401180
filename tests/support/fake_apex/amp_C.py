"""Stands for apex's compiled extension: it is looked for, the fake computes without it."""
