"""Derivatives of a solution in everything it was computed from, by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["implicitly", "valued"]


def implicitly(equations: Callable[[jax.Array], jax.Array], like: jax.Array) -> jax.Array:
    """Zeros, the root of `equations`, with the derivatives in what the function closes over that the root has.

    Solvers work on constants; what they find is moved by this. Forward, reverse and higher orders work.
    like: of the root's shape, and computed from all that it is solved for.
    """

    def solve(linear: Callable, right: jax.Array) -> jax.Array:
        return jnp.linalg.solve(jax.jacobian(linear)(right), right)

    # Zeros that are mapped where `like` is: of a plain constant, `custom_root` loses an axis when mapped, then derived.
    zeros = jnp.where(jnp.isnan(like), jnp.zeros_like(like), 0)
    return lax.custom_root(equations, lax.stop_gradient(zeros), lambda _, start: start, solve)


def valued(function: Callable[..., jax.Array], value: jax.Array, *args: Any) -> jax.Array:
    """function(*args), whose value is known: only its derivatives are computed, where they are asked for.

    The function closes over nothing that is traced.
    """

    @jax.custom_jvp
    def known(value: jax.Array, *args: Any) -> jax.Array:
        return value

    @known.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        return known(*primals), jax.jvp(function, primals[1:], tangents[1:])[1]

    return known(value, *args)
