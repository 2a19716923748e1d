"""A user's own recordings as a corpus."""
