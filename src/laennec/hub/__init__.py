"""From a trained model to files and repositories that other people load."""
