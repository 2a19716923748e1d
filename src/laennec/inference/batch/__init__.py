"""Prediction and embedding of many recordings: resumable, by several processes or on a cluster."""
