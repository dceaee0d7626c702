"""Functions whose textbook spelling cancels or loses digits, spelled so that neither they nor their derivatives do.

Each works in float32 and float64; series take the terms their type needs. A number that must be known better than its
type can hold is a pair (high, low), to be read as their sum: `high` has at most half the digits, so that the product
of two of them is exact. Derivatives are automatic, and those of a pair flow through its `low`.

On a CPU, XLA stores as a whole array what is costly (a division, an exponential) and used twice; a product with it
that is used twice is computed in the loop. So it is `f * (1 / g)` here where f/g is needed more than once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

__all__ = [
    "Pair",
    "atanh_tail",
    "exp_difference",
    "exp_sum",
    "exprel",
    "exprel_near",
    "inverse",
    "inverse_root",
    "log_pair",
    "product",
    "quotient",
    "split",
    "sum_of",
    "times",
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
    large = jnp.where(near, 1, x)
    return jnp.where(near, exprel_near(jnp.where(near, x, 0)), (jnp.exp(large) - 1) / large)


def exprel_near(x: Array) -> Array:
    """(eˣ − 1)/x for |x| ≤ 1, by its series."""
    return _polynomial(x, [1 / math.factorial(k + 1) for k in range(_terms(x, 11, 18))])


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
    dropped = (jnp.finfo(x.dtype).nmant + 2) // 2
    return lax.stop_gradient(lax.bitcast_convert_type(_bits(x) & -(1 << dropped), x.dtype))


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.int32 if jnp.finfo(x.dtype).bits == 32 else jnp.int64)


def split(x: Array, low: Array | float = 0) -> Pair:
    """x + low as a pair."""
    high = _high(x)
    return high, (x - high) + low


def times(one: Pair, other: Pair) -> Pair:
    """The exact product of the highs, and the rest: no pair yet, as the first has all digits."""
    return one[0] * other[0], one[0] * other[1] + one[1] * (other[0] + other[1])


def product(one: Pair, other: Pair) -> Pair:
    """The product of two pairs as a pair."""
    main, rest = times(one, other)
    high = _high(main + rest)
    return high, (main - high) + rest


def inverse(pair: Pair) -> Pair:
    """1/pair as a pair."""
    high = _high(1 / (pair[0] + pair[1]))
    error = (1 - high * pair[0]) - high * pair[1]
    return high, high * (error + error * error)


def inverse_root(pair: Pair) -> Pair:
    """1/√pair as a pair."""
    high = _high(lax.rsqrt(pair[0] + pair[1]))
    square, rest = times(split(high * high), pair)
    error = (1 - square) - rest
    return high, high * (0.5 * error + 0.375 * error * error)


def sum_of(one: Array, other: Array) -> Pair:
    """The sum, rounded, and what was lost: no pair, as the first has all digits."""
    total = one + other
    added = total - one
    return total, (one - (total - added)) + (other - added)


def quotient(numerator: Array, low: Array | float, denominator: Array) -> Pair:
    """(numerator + low)/denominator as a pair."""
    high = _high(numerator / denominator)
    leading = _high(denominator)
    rest = (numerator - high * leading) - high * (denominator - leading)
    return high, (rest + low) / denominator


@jax.custom_jvp
def log_pair(x: Array, low: Array, octaves: Array) -> Pair:
    """log((x + low)·2^octaves) as a pair, for normal finite x > 0, |low| ≪ x, and whole octaves.

    With x = (1 + f)·2^exponent and s = f/(2 + f) it is exponent·log 2 + f − bend + low/x, where of the first two
    nothing is lost, and the bend f − log(1 + f) is at most a quarter of f.
    """
    info = jnp.finfo(x.dtype)
    lowest = np.asarray(math.sqrt(0.5), info.dtype)  # of the mantissas
    exponent = (_bits(x) - int(lowest.view(f"i{lowest.itemsize}"))) >> info.nmant
    f = lax.bitcast_convert_type(_bits(x) - (exponent << info.nmant), x.dtype) - 1
    s = f * (1 / (2 + f))
    square = s * s
    bend = s * (f - 2 * square * _polynomial(square, [1 / (2 * k + 3) for k in range(_terms(x, 4, 10))]))
    digits = 2.0 ** _terms(x, 12, 26)
    leading = round(math.log(2) * digits) / digits
    exponent = exponent.astype(x.dtype) + octaves
    whole = exponent * leading
    rest = (exponent * (math.log(2) - leading) - bend) + low / x
    high = _high(whole + (f + rest))
    return high, ((whole - high) + f) + rest


@log_pair.defjvp
def _(primals, tangents):
    high, rest = log_pair(*primals)
    return (high, rest), (jnp.zeros_like(high), (tangents[0] + tangents[1]) / (primals[0] + primals[1]))


def exp_sum(main: Array, rest: Array) -> Array:
    """exp(main + rest) for |rest| ≤ |main|, without the rounding of the sum, which for a sum of 80 costs 32 ulp."""
    total = main + rest
    return jnp.exp(total) * (1 + (rest - (total - main)))
