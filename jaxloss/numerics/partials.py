"""Functions whose partial derivatives are given: the one place where closed derivatives are wired in."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

__all__ = ["ratio", "with_partials"]


def with_partials(function: Callable, *partials: Callable) -> Callable:
    """The function with its partial derivatives given, one per argument; only those asked for are computed.

    They are held finite: in a branch that is not taken they are multiplied by 0, and 0·∞ is NaN.
    """
    wired = jax.custom_jvp(function)

    def jvp(primals, tangents):
        value = wired(*primals)
        most = jnp.finfo(value.dtype).max
        terms = [
            jnp.clip(partial(*primals), -most, most) * dot
            for partial, dot in zip(partials, tangents, strict=True)
            if not isinstance(dot, SymbolicZero)
        ]
        return value, sum(terms, jnp.zeros_like(value))

    wired.defjvp(jvp, symbolic_zeros=True)
    return wired


ratio = with_partials(lambda x, y: x / y, lambda x, y: jnp.broadcast_to(1 / y, x.shape), lambda x, y: -(x / y) / y)
ratio.__doc__ = """x/y, whose derivative in y is automatically −x·y⁻², which overflows for small y."""
