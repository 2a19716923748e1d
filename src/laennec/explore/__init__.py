"""Embeddings made visible: search for similar spans, a map of them, and linear probes."""
