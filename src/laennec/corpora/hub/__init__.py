"""Corpora as `datasets` data sets: reading them from the Hub or a folder, and writing them."""
