"""Whether predicted probabilities hold: what share of targets falls where the distributions said it would.

All take `weights`, `where` and `axis` (default all) as losses do, weigh by Σw·/Σw, and are NaN over nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import OPEN_UNIT, ShapeError, as_arrays, check_settings, prepare
from jaxloss.likelihood.distribution import Distribution
from jaxloss.reduce import Axis, check_reduction, hide

__all__ = ["calibration_error", "coverage", "pit", "sharpness"]

Array = jax.Array

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))


def pit(dist: Distribution, target: Any, *, key: Array | None = None) -> Array:
    """Probability integral transform F(target): uniform on (0, 1) if the distributions are right.

    Of counts it is F(target − 1) + u·P(target), with u uniform by `key`, or ½ without one (then only nearly uniform).

    >>> pit(Normal(jnp.zeros(2), jnp.ones(2)), jnp.array([0.0, 1.0])).round(3).tolist()
    [0.5, 0.8410000205039978]
    """
    at, before = _cdf_at_and_before(dist, target)
    if not dist.discrete:
        return at
    share = 0.5 if key is None else jax.random.uniform(key, at.shape, at.dtype)
    return before + share * (at - before)


def coverage(
    dist: Distribution, target: Any, levels: Any, *, weights: Any = None, where: Any = None, axis: Axis = None
) -> Array:
    """The share of targets within the central interval of each level, from quantile (1 − level)/2 to (1 + level)/2.

    levels: in (0, 1), a number or a vector; the result has their axis last. Right distributions have coverage = level,
    up to the sampling error √(level·(1 − level)/n); those of counts, whose intervals are whole numbers, a little more.

    >>> dist = Normal(jnp.zeros(4), jnp.ones(4))
    >>> coverage(dist, jnp.array([-3.0, -0.1, 0.5, 1.2]), [0.5, 0.95]).tolist()
    [0.5, 0.75]
    """
    at, before = _cdf_at_and_before(dist, target)
    tail = (1 - _aligned("coverage", levels, at)) / 2
    below_end = before[..., None] < 1 - tail if dist.discrete else at[..., None] <= 1 - tail
    shares = _shares("coverage", (at[..., None] >= tail) & below_end, dist, target, weights, where, axis)
    return shares if np.ndim(levels) else shares[..., 0]


def calibration_error(
    dist: Distribution,
    target: Any,
    levels: Any = LEVELS,
    *,
    weights: Any = None,
    where: Any = None,
    axis: Axis = None,
) -> Array:
    """The mean over levels of |share of targets at or below the quantile of that level − level|.

    0 for perfect calibration, at most ½; by default over 0.05, 0.1, …, 0.95 (Kuleshov et al., ICML 2018). Of counts the
    share is taken by `pit` at its middle.

    >>> dist = Normal(jnp.zeros(3), jnp.ones(3))
    >>> round(float(calibration_error(dist, dist.quantile(jnp.array([0.22, 0.51, 0.78])))), 3)
    0.095
    """
    at = pit(dist, target)
    level = _aligned("calibration_error", levels, at)
    shares = _shares("calibration_error", at[..., None] <= level, dist, target, weights, where, axis)
    return jnp.abs(shares - level.reshape((1,) * (shares.ndim - 1) + (-1,))).mean(-1)


def sharpness(
    dist: Distribution, level: Any = 0.9, *, weights: Any = None, where: Any = None, axis: Axis = None
) -> Array:
    """The mean width of the central interval of that level, in the target's units: less is more, once calibrated.

    >>> round(float(sharpness(Normal(jnp.zeros(2), jnp.ones(2)), 0.9)), 4)
    3.2897
    """
    check_settings("sharpness", {"level": level}, {"level": None}, {"level": OPEN_UNIT})
    width = dist.quantile((1 + level) / 2) - dist.quantile((1 - level) / 2)
    return _shares("sharpness", width[..., None], dist, width, weights, where, axis)[..., 0]


def _aligned(name: str, levels: Any, like: Array) -> Array:
    """The levels along an axis after those of `like`, checked."""
    check_settings(name, {"level": levels}, {"level": None}, {"level": OPEN_UNIT})
    levels = jnp.asarray(levels, like.dtype)
    if levels.ndim > 1:
        raise ShapeError(f"{name}: levels are a number or a vector, got shape {levels.shape}")
    return levels.reshape((1,) * like.ndim + (-1,))


def _cdf_at_and_before(dist: Distribution, target: Any) -> tuple[Array, Array]:
    at = dist.cdf(target)
    return at, dist.cdf(jnp.asarray(target) - 1) if dist.discrete else at


def _shares(name: str, values: Array, dist: Distribution, target: Any, weights: Any, where: Any, axis: Axis) -> Array:
    """Σw·value/Σw over the axes of the target; values have one axis more, which stays."""
    target, weights, where = as_arrays(target, weights, where)
    target, weights, shape = prepare(name, dist, target, weights, where)
    axes = check_reduction(name, "mean", axis, len(shape))
    each = jnp.ones(shape, target.dtype) if weights is None else jnp.broadcast_to(weights, shape)
    each = (each if where is None else hide(each, where, 0.0))[..., None]
    return jnp.where(each > 0, values * each, 0).sum(axes) / each.sum(axes)
