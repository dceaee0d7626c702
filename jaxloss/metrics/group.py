"""How entries are pooled to one score: over which axes, with which weights, and which are there at all."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.contract import as_arrays, prepare
from jaxloss.reduce import check_reduction, hide, total_weight

__all__ = ["Group", "pooled"]


class Group(NamedTuple):
    """How entries are pooled: over which axes, with which weights, and which are there at all."""

    axes: tuple[int, ...]
    weights: Any
    where: Any
    shape: tuple[int, ...]

    @property
    def weight(self) -> jax.Array:
        """Σw, or the number of entries, with the pooled axes kept as 1."""
        dtype = jnp.float32 if self.weights is None else self.weights.dtype
        weight = total_weight(self.shape, dtype, self.weights, self.where, self.axes, "weighted_mean")
        return jnp.expand_dims(weight, self.axes)

    @property
    def present(self) -> jax.Array:
        """Which entries are there: not masked, and of a weight that is not 0."""
        present = jnp.ones(self.shape, bool) if self.where is None else jnp.broadcast_to(self.where, self.shape)
        return present if self.weights is None else present & (self.weights != 0)

    def average(self, values: jax.Array) -> jax.Array:
        """Σwv/Σw, with the pooled axes kept as 1; NaN over nothing."""
        values = values if self.weights is None else values * self.weights
        return values.sum(self.axes, keepdims=True) / self.weight.astype(values.dtype)

    def least(self, values: jax.Array) -> jax.Array:
        """The least value that is there; 0 over nothing."""
        least = jnp.min(jnp.where(self.present, values, jnp.inf), self.axes, initial=jnp.inf, keepdims=True)
        return jnp.where(least == jnp.inf, 0, least)

    def largest(self, values: jax.Array) -> jax.Array:
        """The largest value that is there; −inf over nothing, NaN if one is NaN."""
        return jnp.max(jnp.where(self.present, values, -jnp.inf), self.axes, initial=-jnp.inf, keepdims=True)

    def centred(self, values: jax.Array) -> jax.Array:
        """The values less their average: exactly 0 where they are constant."""
        values = jnp.where(self.present, values - lax.stop_gradient(self.least(values)), 0)
        return jnp.where(self.present, values - self.average(values), 0)

    def quantile(self, values: jax.Array, level: jax.Array | float) -> jax.Array:
        """The middle of the interval of values with weight `level` below: the median is that of NumPy."""
        kept = tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)
        size = math.prod(self.shape[axis] for axis in self.axes)

        def lines(x: jax.Array) -> jax.Array:
            return jnp.transpose(x, kept + self.axes).reshape(*(self.shape[axis] for axis in kept), size)

        values = lines(jnp.where(self.present, values, jnp.inf))
        if size == 0:
            return jnp.expand_dims(jnp.full(values.shape[:-1], jnp.nan, values.dtype), self.axes)
        if self.weights is None:  # by integers: a float32 count would stop at 2²⁴
            values = jnp.sort(values, -1)
            number = lines(self.present).sum(-1, keepdims=True, dtype=jnp.int32)
            rank = level * number.astype(values.dtype)
            low, high = jnp.ceil(rank).astype(jnp.int32) - 1, jnp.floor(rank).astype(jnp.int32)
            if isinstance(level, float) and level == 0.5:
                low, high = (number - 1) // 2, number // 2
        else:
            weights = lines(jnp.where(self.present, self.weights, 0))
            values, weights = lax.sort((values, weights), num_keys=1)
            below = jnp.cumsum(weights, -1)
            number = lines(self.present).sum(-1, keepdims=True, dtype=jnp.int32)
            wanted = level * below[..., -1:]
            low = jnp.sum(below < wanted, -1, keepdims=True, dtype=jnp.int32)
            high = jnp.sum(below <= wanted, -1, keepdims=True, dtype=jnp.int32)
        ends = [
            jnp.take_along_axis(values, jnp.clip(place, 0, jnp.maximum(number - 1, 0)), -1) for place in (low, high)
        ]
        middle = 0.5 * ends[0] + 0.5 * ends[1]
        return jnp.expand_dims(jnp.where(number == 0, jnp.nan, middle)[..., 0], self.axes)


def pooled(function: Callable) -> Callable[..., jax.Array]:
    """Give a score, written for a prediction, a target and a group, the call shape of a loss."""
    name, compiled = function.__name__, jax.jit(_of_group, static_argnames=("function", "axes"))

    @functools.wraps(function)
    def score(pred, target, *, weights=None, where=None, axis=None):
        pred, target, weights, where = as_arrays(pred, target, weights, where)
        target, weights, shape = prepare(name, pred, target, weights, where)
        axes = check_reduction(name, "mean", axis, len(shape))
        return compiled(pred, target, weights, where, function=function, axes=axes)

    parameters = list(inspect.signature(score, follow_wrapped=False).parameters.values())
    score.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return score


def _of_group(pred, target, weights, where, *, function, axes):
    pred = jnp.asarray(pred).astype(target.dtype)
    shape = target.shape
    if weights is not None:
        weights = jnp.broadcast_to(weights, shape)
    if where is not None:
        pred, target = (hide(value, where, 0.0) for value in (pred, target))
        weights = None if weights is None else hide(weights, where, 0.0)
    group = Group(axes, weights, where, shape)
    result = function(pred, target, group)
    return jnp.where(group.weight == 0, jnp.nan, result).squeeze(axes)
