"""Self-supervised pre-training with metadata (Soni et al.)."""
