"""Sums kept as pairs of floats, which carry twice the digits of one."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxloss.numerics.pairs import two_sum

__all__ = ["Compensated", "add", "exact", "total", "whole"]


class Compensated(NamedTuple):
    """A sum as the unevaluated high + low of two floats; low is at most half a unit in the last place of high."""

    high: Any
    low: Any

    @property
    def value(self) -> Any:
        """high + low: in float64 on the host, in the state's type when traced."""
        if isinstance(self.high, Tracer):
            return self.high + self.low
        return np.asarray(self.high, np.float64) + np.asarray(self.low, np.float64)


def add(left: Compensated, right: Compensated) -> Compensated:
    """The sum of two pairs, to twice the digits of one float."""
    high, error = two_sum(left.high, right.high)
    low, rest = two_sum(left.low, right.low)
    high, low = _quick_two_sum(high, error + low)
    high, low = _quick_two_sum(high, low + rest)
    return Compensated(high, jnp.where(jnp.isfinite(high), low, 0))  # inf − inf


def _quick_two_sum(large: Any, small: Any) -> tuple[Any, Any]:
    high = large + small
    return high, small - (high - large)


def total(pairs: Compensated) -> Compensated:
    """The sum along the first axis."""
    number = pairs.high.shape[0]
    if 0 < number <= 4:  # a reduction of pairs is not vectorized
        return functools.reduce(add, [Compensated(pairs.high[place], pairs.low[place]) for place in range(number)])
    zero = jnp.zeros((), pairs.high.dtype)

    def both(left: Any, right: Any) -> tuple[Any, Any]:
        high, low = add(Compensated(*left), Compensated(*right))
        return high, low

    return Compensated(*lax.reduce(tuple(pairs), (zero, zero), both, (0,)))


def exact(value: jax.Array) -> Compensated:
    """One float as a pair."""
    return Compensated(value, jnp.zeros_like(value))


def whole(counts: jax.Array, dtype: Any) -> Compensated:
    """Integers as a pair."""
    high = counts.astype(dtype)
    return Compensated(high, (counts - high.astype(counts.dtype)).astype(dtype))
