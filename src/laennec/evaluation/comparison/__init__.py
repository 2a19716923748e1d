"""Comparison of runs, paired over patients and seeds."""
