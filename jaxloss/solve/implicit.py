"""Derivatives of a solution in everything it was computed from, by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["implicitly"]


def implicitly(equations: Callable[[jax.Array], jax.Array], size: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Zeros, the root of `equations`, with the derivatives in what the function closes over that the root has.

    Solvers work on constants; what they find is moved by this. Forward, reverse and higher orders work.
    """

    def solve(linear: Callable, right: jax.Array) -> jax.Array:
        return jnp.linalg.solve(jax.jacobian(linear)(right), right)

    return lax.custom_root(equations, jnp.zeros(size, dtype), lambda _, start: start, solve)
