"""Stage 1 and 3, audio: from sound to features."""
