"""Batches of samples in a planned order, read and put together by torch or by DALI."""
