"""Functions with a corner, whose derivative at the corner is chosen and stated.

Automatic differentiation has to say something at a corner, and what it says there by default is an accident of
spelling: `jnp.abs` has slope +1 at 0, `jnp.maximum` one half, `jnp.sqrt` infinity. A loss needs the subgradient of
least magnitude, so that a perfect fit is a stationary point. It is implemented here, once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxloss.numerics.partials import with_partials

__all__ = ["absolute", "norm", "positive_part", "root"]


absolute = with_partials(jnp.abs, jnp.sign)
absolute.__doc__ = "|x|, with slope sign(x): 0 at x = 0, the least of the subgradients [−1, 1]."

positive_part = with_partials(lambda x: jnp.maximum(x, 0), lambda x: jnp.maximum(jnp.sign(x), 0))
positive_part.__doc__ = "max(x, 0), with slope 1 for x > 0, else 0: at x = 0 the least of the subgradients [0, 1]."


def _root_slope(x: jax.Array) -> jax.Array:
    at_zero = x == 0
    return jnp.where(at_zero, jnp.zeros_like(x), 0.5 / jnp.sqrt(jnp.where(at_zero, jnp.ones_like(x), x)))


root = with_partials(jnp.sqrt, _root_slope)
root.__doc__ = "√x for x ≥ 0, with slope 1/(2√x), and 0 at x = 0, where the textbook slope is infinite."


def norm(vector: jax.Array) -> jax.Array:
    """The Euclidean length of a vector, with slope 0 at 0; no overflow or underflow of squares."""
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(vector)))
    unit = jnp.where(size > 0, size, 1)
    return unit * root(jnp.sum(jnp.square(vector / unit)))
