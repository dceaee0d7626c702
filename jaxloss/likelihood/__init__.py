"""Predictions that are distributions: families, their scores, and the calibration of their probabilities."""
