"""Functions whose textbook spelling cancels or loses digits, spelled so that neither they nor their derivatives do.

Each works in float32 and float64; series take the terms their type needs. A number that must be known better than its
type can hold is a pair (high, low), to be read as their sum: `high` has at most half the digits, so that the product
of two of them is exact. Derivatives are automatic, and those of a pair flow through its `low`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

__all__ = [
    "atanh_tail",
    "exp_difference",
    "exp_sum",
    "exprel",
    "log_pair",
    "quotient",
    "scaled",
    "with_partials",
]

Array = jax.Array
Pair = tuple[Array, Array]


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


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _terms(x: Array, single: int, double: int) -> int:
    """How many terms of a series the type of x needs."""
    return single if jnp.finfo(x.dtype).bits <= 32 else double


def atanh_tail(square: Array) -> Array:
    """(artanh(s)/s − 1)/s² = 1/3 + s²/5 + s⁴/7 + … as a function of s², for 0 ≤ s² ≤ 1/9."""
    return _polynomial(square, [1 / (2 * k + 3) for k in range(_terms(square, 7, 16))])


def exprel(x: Array) -> Array:
    """(eˣ − 1)/x, and 1 at 0."""
    near = jnp.abs(x) < 1
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    series = _polynomial(small, [1 / math.factorial(k + 1) for k in range(_terms(x, 11, 18))])
    return jnp.where(near, series, (jnp.exp(large) - 1) / large)


def exp_difference(*nodes: Array, single: int, double: int) -> Array:
    """The divided difference of exp at 0 and the nodes, for small nodes, which may coincide.

    It is Σₖ hₖ/(k + m)! over k, with hₖ the complete homogeneous polynomial of the m nodes; `single` and `double` are
    the numbers of terms taken.
    """
    homogeneous = [jnp.ones_like(nodes[0])] * len(nodes)
    total = jnp.zeros_like(nodes[0])
    for k in range(_terms(total, single, double)):
        total = total + homogeneous[-1] * (1 / math.factorial(k + len(nodes)))
        homogeneous[0] = homogeneous[0] * nodes[0]
        for i in range(1, len(nodes)):
            homogeneous[i] = homogeneous[i - 1] + homogeneous[i] * nodes[i]
    return total


def _high(x: Array) -> Array:
    """The leading half of the digits of x; x − high is exact."""
    info = jnp.finfo(x.dtype)
    return lax.stop_gradient(lax.reduce_precision(x, info.nexp, (info.nmant - 1) // 2))


def quotient(numerator: Array, low: Array | float, denominator: Array) -> Pair:
    """(numerator + low)/denominator as a pair."""
    high = _high(numerator / denominator)
    leading = _high(denominator)
    rest = (numerator - high * leading) - high * (denominator - leading)
    return high, (rest + low) / denominator


@jax.custom_jvp
def log_pair(x: Array, low: Array, octaves: Array) -> Pair:
    """log((x + low)·2^octaves) as a pair, for positive finite x, |low| ≪ x, and whole octaves."""
    mantissa, exponent = jnp.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = jnp.where(small, 2 * mantissa, mantissa)
    exponent = (exponent - small).astype(x.dtype) + octaves
    digits = 2.0 ** _terms(x, 12, 26)
    leading = round(math.log(2) * digits) / digits
    whole = exponent * leading
    rest = exponent * (math.log(2) - leading) + jnp.log(mantissa) + low / x
    high = _high(whole + rest)
    return high, (whole - high) + rest


@log_pair.defjvp
def _(primals, tangents):
    high, rest = log_pair(*primals)
    return (high, rest), (jnp.zeros_like(high), (tangents[0] + tangents[1]) / (primals[0] + primals[1]))


def scaled(factor: Array, pair: Pair) -> Pair:
    """factor·(high + low) as an exact product and the rest."""
    high, low = pair
    leading = _high(factor)
    return leading * high, factor * low + (factor - leading) * high


def exp_sum(main: Array, rest: Array) -> Array:
    """exp(main + rest) for |rest| ≤ |main|, without the rounding of the sum, which for a sum of 80 costs 32 ulp."""
    total = main + rest
    return jnp.exp(total) * (1 + (rest - (total - main)))
