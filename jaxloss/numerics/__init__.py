"""Arithmetic that keeps its digits: what every other room stands on, and knows nothing of losses."""
