"""Numbers known to more digits than their type holds, as unevaluated sums of two floats.

A *sum* (total, error) is exact to about twice the digits of its type: `two_sum`, `add` and `multiply` make one. A
*pair* (high, low) is a sum whose `high` has at most half the digits of the type, so that the product of two highs is
exact: `split`, `product`, `inverse`, `inverse_root`, `quotient` and `log_pair` make one. Derivatives are automatic;
those of a pair flow through its `low`.

On a CPU, XLA stores as a whole array what is costly (a division, an exponential) and used twice; a product with it
that is used twice is computed in the loop. So it is `f * (1 / g)` here where f/g is needed more than once.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.numerics.series import polynomial, terms_for

__all__ = [
    "Pair",
    "add",
    "exp_sum",
    "inverse",
    "inverse_root",
    "log_pair",
    "multiply",
    "product",
    "quotient",
    "split",
    "times",
    "two_sum",
]

Array = jax.Array
Pair = tuple[Array, Array]


def two_sum(one: Array, other: Array) -> Pair:
    """one + other rounded, and its rounding error (TwoSum; Knuth, The Art of Computer Programming, 4.2.2)."""
    total = one + other
    added = total - one
    return total, (one - (total - added)) + (other - added)


def add(one: Pair, other: Pair) -> Pair:
    """The sum of two sums, to twice the digits of the type but for a cancellation of the first parts."""
    total, error = two_sum(one[0], other[0])
    return two_sum(total, error + (one[1] + other[1]))


def multiply(one: Pair, other: Pair) -> Pair:
    """The product of two sums, to twice the digits of the type."""
    high, low = times(split(one[0]), split(other[0]))
    return two_sum(high, low + (one[0] * other[1] + one[1] * other[0]))


def _leading_half(x: Array) -> Array:
    """The leading half of the digits of x; x − high is exact."""
    dropped = (jnp.finfo(x.dtype).nmant + 2) // 2
    return lax.stop_gradient(lax.bitcast_convert_type(_bits(x) & -(1 << dropped), x.dtype))


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.int32 if jnp.finfo(x.dtype).bits == 32 else jnp.int64)


def split(x: Array, low: Array | float = 0) -> Pair:
    """x + low as a pair."""
    high = _leading_half(x)
    return high, (x - high) + low


def times(one: Pair, other: Pair) -> Pair:
    """The exact product of the highs, and the rest: no pair yet, as the first has all digits."""
    return one[0] * other[0], one[0] * other[1] + one[1] * (other[0] + other[1])


def product(one: Pair, other: Pair) -> Pair:
    """The product of two pairs as a pair."""
    main, rest = times(one, other)
    high = _leading_half(main + rest)
    return high, (main - high) + rest


def inverse(pair: Pair) -> Pair:
    """1/pair as a pair."""
    high = _leading_half(1 / (pair[0] + pair[1]))
    error = (1 - high * pair[0]) - high * pair[1]
    return high, high * (error + error * error)


def inverse_root(pair: Pair) -> Pair:
    """1/√pair as a pair."""
    high = _leading_half(lax.rsqrt(pair[0] + pair[1]))
    square, rest = times(split(high * high), pair)
    error = (1 - square) - rest
    return high, high * (0.5 * error + 0.375 * error * error)


def quotient(numerator: Array, low: Array | float, denominator: Array) -> Pair:
    """(numerator + low)/denominator as a pair."""
    high = _leading_half(numerator / denominator)
    leading = _leading_half(denominator)
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
    bend = s * (f - 2 * square * polynomial(square, [1 / (2 * k + 3) for k in range(terms_for(x, 4, 10))]))
    digits = 2.0 ** terms_for(x, 12, 26)
    leading = round(math.log(2) * digits) / digits
    exponent = exponent.astype(x.dtype) + octaves
    whole = exponent * leading
    rest = (exponent * (math.log(2) - leading) - bend) + low / x
    high = _leading_half(whole + (f + rest))
    return high, ((whole - high) + f) + rest


@log_pair.defjvp
def _(primals, tangents):
    high, rest = log_pair(*primals)
    return (high, rest), (jnp.zeros_like(high), (tangents[0] + tangents[1]) / (primals[0] + primals[1]))


def exp_sum(main: Array, rest: Array) -> Array:
    """exp(main + rest) for |rest| ≤ |main|, without the rounding of the sum, which for a sum of 80 costs 32 ulp."""
    total = main + rest
    return jnp.exp(total) * (1 + (rest - (total - main)))
