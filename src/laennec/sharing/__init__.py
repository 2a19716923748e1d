"""Stage 10, sharing: from a trained model to other people."""
