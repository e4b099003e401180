"""The input pipeline: files to batches, beside the published loader."""
