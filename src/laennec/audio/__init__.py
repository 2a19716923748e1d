"""Audio: decoding, annotated cycles, augmentation and features."""
