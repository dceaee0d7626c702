"""Elementary functions whose textbook spelling cancels near 0, by series that take the terms their type needs.

Each works in float32 and float64; derivatives are automatic, and keep their digits too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

__all__ = ["atanh_tail", "exp_difference", "exprel", "exprel_near", "polynomial", "terms_for"]

Array = jax.Array


def polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    """Σₖ coefficientₖ·xᵏ, by Horner's rule."""
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def terms_for(x: Array, single: int, double: int) -> int:
    """How many terms of a series the type of x needs."""
    return single if jnp.finfo(x.dtype).bits <= 32 else double


def atanh_tail(square: Array) -> Array:
    """(artanh(s)/s − 1)/s² = 1/3 + s²/5 + s⁴/7 + … as a function of s², for 0 ≤ s² ≤ 1/9."""
    return polynomial(square, [1 / (2 * k + 3) for k in range(terms_for(square, 7, 16))])


def exprel(x: Array) -> Array:
    """(eˣ − 1)/x, and 1 at 0."""
    near = jnp.abs(x) < 1
    large = jnp.where(near, 1, x)
    return jnp.where(near, exprel_near(jnp.where(near, x, 0)), (jnp.exp(large) - 1) / large)


def exprel_near(x: Array) -> Array:
    """(eˣ − 1)/x for |x| ≤ 1, by its series."""
    return polynomial(x, [1 / math.factorial(k + 1) for k in range(terms_for(x, 11, 18))])


def exp_difference(*nodes: Array, single: int, double: int) -> Array:
    """The divided difference of exp at 0 and the nodes, for small nodes, which may coincide.

    It is Σₖ hₖ/(k + m)! over k, with hₖ the complete homogeneous polynomial of the m nodes; `single` and `double` are
    the numbers of terms taken.
    """
    homogeneous = [jnp.ones_like(nodes[0])] * len(nodes)
    total = jnp.zeros_like(nodes[0])
    for k in range(terms_for(total, single, double)):
        total = total + homogeneous[-1] * (1 / math.factorial(k + len(nodes)))
        homogeneous[0] = homogeneous[0] * nodes[0]
        for i in range(1, len(nodes)):
            homogeneous[i] = homogeneous[i - 1] + homogeneous[i] * nodes[i]
    return total
