"""The catalogue of losses, by family."""
