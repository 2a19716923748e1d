"""Embeddings made visible: search for similar spans, a map of them, and what can be read off them."""
