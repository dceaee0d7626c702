"""Draws of Poisson and gamma variables, of every rate and shape, in float32 too.

Those of `jax.random` are right up to a rate or shape of a thousand. Beyond, the acceptance test of its Poisson
variables, a difference of terms as large as rate·log(rate), has no digits left in float32, in which it is computed
whatever the type; and the logarithm of a gamma variable is rounded more coarsely than it varies. There a draw is a
normal one put through the expansion of the quantile in powers of 1/√rate (Cornish & Fisher), whose cdf is within 4e-9
of the exact one: nearer than the uniform float32 numbers are to each other of which normal ones are made.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.numerics.gamma import log_difference
from jaxloss.numerics.pairs import two_sum

__all__ = ["exp_of_sum", "log_gamma_ratios", "poisson_counts"]

Array = jax.Array

LARGE = 1000.0
"""From which rate or shape on draws are by the expansion; its error falls as the −1.5th power."""


def exp_of_sum(main: Array, rest: Array) -> Array:
    """exp(main + rest) to the last digit; past the range of floats the largest, or the least that is positive."""
    value, low = _exp_of_sum(main, rest)
    return value + low


def _exp_of_sum(main: Array, rest: Array) -> tuple[Array, Array]:
    """exp(main + rest) as a float, and by how much that is too small: exp of a large number has lost digits."""
    info = jnp.finfo(main.dtype)
    least, most = (float(np.log(np.float64(value))) for value in (info.tiny, info.max))
    least, most = least + 1024 * info.eps, most - 1024 * info.eps  # whatever exp and the bounds are rounded to
    total, lost = two_sum(main, rest)
    value = jnp.exp(jnp.clip(total, least, most))
    low = jnp.where((total > least) & (total < most), value * (lost - log_difference(value, total)), 0)
    return value, lax.stop_gradient(low)


def log_gamma_ratios(key: Array, shape: Array) -> Array:
    """log(Y/shape) for gamma variables Y of this shape: by logarithms, for those of small shape underflow."""
    large = shape > LARGE
    small, root = jnp.where(large, 1, shape), jnp.sqrt(jnp.where(large, shape, LARGE))
    drawn = jax.random.loggamma(key, small, shape.shape, shape.dtype) - jnp.log(small)
    z = jax.random.normal(jax.random.fold_in(key, 1), shape.shape, shape.dtype)
    square = z * z
    terms = (z, (square - 1) / 3, z * (square - 7) / 36, -(square * (3 * square + 7) - 16) / 810)
    return jnp.where(large, jnp.log1p(_powers(terms, 1 / root) / root), drawn)


def poisson_counts(key: Array, log_rate: Array, log_share: Array | float = 0.0) -> Array:
    """Poisson variables of rate exp(log_rate + log_share); past 2²⁴ in float32 (2⁵³) the nearest floats of them.

    The expansion is that of Giles (ACM Trans. Math. Softw. 2016, eq. for Q_N2), of which a count is the whole part.
    """
    rate, low = _exp_of_sum(log_rate, jnp.broadcast_to(jnp.asarray(log_share, log_rate.dtype), log_rate.shape))
    small_key, normal_key = jax.random.split(key)
    large = rate > LARGE
    counts = jax.random.poisson(small_key, jnp.where(large, 1, rate), dtype=jnp.int32).astype(rate.dtype)
    z = jax.random.normal(normal_key, rate.shape, rate.dtype)
    square, root = z * z, jnp.sqrt(jnp.where(large, rate, LARGE))
    terms = (square / 6 + 1 / 3, -z * (square + 2) / 72, (square * (3 * square + 7) - 16) / 810)
    whole = jnp.floor(rate)
    moved = whole + jnp.floor((rate - whole) + low + (root * z + _powers(terms, 1 / root)))
    return jnp.where(jnp.isnan(rate), rate, jnp.where(large, moved, counts))


def _powers(terms: tuple[Array, ...], x: Array) -> Array:
    """Σₖ termₖ·xᵏ."""
    total = terms[-1]
    for term in reversed(terms[:-1]):
        total = total * x + term
    return total
