"""What rooms share of numbers and meshes, and that knows nothing of losses."""
