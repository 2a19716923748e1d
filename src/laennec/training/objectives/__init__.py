"""The losses of a training: which ones, on which layers, with which weights."""
