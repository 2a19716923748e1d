"""From cycle tables to batches: splits, targets, windows, mixing."""
