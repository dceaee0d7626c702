"""Logarithms of gamma functions, and what belongs to them, where differences of large ones would lose all digits.

Each works in float32 and float64, from arguments near 0 to the largest, and so do its first and second derivatives.
Sums have terms of one sign.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxloss.losses.special import atanh_tail, with_partials

__all__ = ["stirling_correction"]

Array = jax.Array

BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
"""The second, fourth, … Bernoulli number."""


def _sizes(a: Array) -> tuple[int, int]:
    """How many steps up the series asks for, and how many terms it then has, in the type of a."""
    return (5, 5) if jnp.finfo(a.dtype).bits <= 32 else (9, 10)


def _series(a: Array, first: int, coefficients: list[float]) -> Array:
    """Σₖ coefficientₖ·a^−(first + 2k)."""
    inverse = 1 / a
    square = inverse * inverse
    total = jnp.full_like(a, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * square + coefficient
    return total * inverse**first


def _numbered(count: int) -> list[tuple[int, float]]:
    """2, 4, … with their Bernoulli numbers."""
    return [(2 * k + 2, number) for k, number in enumerate(BERNOULLI[:count])]


def _split(a: Array) -> tuple[Array, Array, Array]:
    """Whether a < 1; such an a, else ½; and a number ≥ 1, one step up from a where a < 1.

    Sums over steps from a to a + 1 have closed terms in s = 1/(2a + 1), for log(1 + 1/a) is 2·artanh(s).
    """
    small = a < 1
    return small, jnp.where(small, a, 0.5), jnp.where(small, a + 1, a)


def _curvature(a: Array) -> Array:
    steps, terms = _sizes(a)
    total = _series(a + steps, 3, [number for _, number in _numbered(terms)])
    for step in range(steps):
        x = a + step
        total = total + 0.5 / jnp.square(x * (x + 1))
    return total


def _slope(a: Array) -> Array:
    steps, terms = _sizes(a)
    small, low, high = _split(a)
    total = -_series(high + steps, 2, [number / n for n, number in _numbered(terms)])
    for step in range(steps):
        s = 1 / (2 * (high + step) + 1)
        square = s * s
        total = total - 2 * s * square * (1 / (1 - square) - atanh_tail(square))
    first = jnp.log1p(low) - jnp.log(low) - (low + 0.5) / (low * (low + 1))
    return total + jnp.where(small, first, 0)


def _correction(a: Array) -> Array:
    steps, terms = _sizes(a)
    small, low, high = _split(a)
    total = _series(high + steps, 1, [number / (n * (n - 1)) for n, number in _numbered(terms)])
    for step in range(steps):
        square = jnp.square(1 / (2 * (high + step) + 1))
        total = total + square * atanh_tail(square)
    first = (low + 0.5) * (jnp.log1p(low) - jnp.log(low)) - 1
    return total + jnp.where(small, first, 0)


stirling_correction = with_partials(_correction, with_partials(_slope, _curvature))
stirling_correction.__doc__ = """log Γ(a) − [(a − ½)·log a − a + ½·log 2π] for a > 0: about 1/(12a), and −½·log(2πa) near 0.

>>> round(float(stirling_correction(jnp.ones(()))), 6)
0.081061
"""
