"""Stage 8, training: recipes, batches, the Trainer, and what a run leaves behind."""
