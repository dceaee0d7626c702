"""The scale of residuals that their median estimates."""

from __future__ import annotations

import jax
import jax.numpy as jnp

__all__ = ["NORMAL_MEDIAN", "scale_of"]

Array = jax.Array
NORMAL_MEDIAN = 0.674489750196
"""Of |r|, for normal residuals of variance 1."""


def scale_of(residual: Array, rows: tuple[Array, Array]) -> Array:
    """median|r|/0.6745, for the rows of the median (`median_places`)."""
    lower, upper = rows
    return (jnp.abs(residual[lower]) + jnp.abs(residual[upper])) * (0.5 / NORMAL_MEDIAN)
