"""Functions whose partial derivatives are given: the one place where closed derivatives are wired in."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

__all__ = ["with_partials"]


def with_partials(function: Callable, *partials: Callable) -> Callable:
    """The function with its partial derivatives given, one per argument; only those asked for are computed."""
    wired = jax.custom_jvp(function)

    def jvp(primals, tangents):
        value = wired(*primals)
        terms = [
            partial(*primals) * dot
            for partial, dot in zip(partials, tangents, strict=True)
            if not isinstance(dot, SymbolicZero)
        ]
        return value, sum(terms, jnp.zeros_like(value))

    wired.defjvp(jvp, symbolic_zeros=True)
    return wired
