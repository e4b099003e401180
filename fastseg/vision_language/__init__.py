"""Frozen vision-language models: embeddings of pictures and sentences, cached on disk."""
