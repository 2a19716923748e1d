"""What is fitted on validation patients: probabilities, thresholds, logit adjustments, smoothing."""
