"""Recipes, batches, the Trainer, and what a run leaves behind."""
