"""Losses of the relative error: they weigh a miss by the size of what was missed. r = pred − target.

How each is called, weighted, masked and reduced is the contract of every loss (`jaxloss.lift.Loss`, and the README).
All are zero at a perfect fit; none is a function of the residual alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxloss.contract import ABOVE_MINUS_ONE, POSITIVE
from jaxloss.lift import Traits, pointwise
from jaxloss.numerics import kink

__all__ = ["mape", "msle", "smape"]

Array = jax.Array


def _log_ratio(pred: Array, target: Array) -> Array:
    """|log((1 + pred)/(1 + target))| as log1p(|r|/(1 + the lesser)), which neither cancels nor reaches log 0."""
    base = 1 + jnp.minimum(pred, target)
    return jnp.log1p(jnp.abs(pred - target) / jnp.square(jnp.sqrt(base)))  # NaN outside the domain, by the root


def _msle_slope(pred: Array, target: Array) -> Array:
    pred = jnp.minimum(pred, jnp.finfo(pred.dtype).max)
    return 2 * jnp.sign(pred - target) * _log_ratio(pred, target) / (1 + pred)


def _msle_curvature(pred: Array, target: Array) -> Array:
    pred = jnp.minimum(pred, jnp.finfo(pred.dtype).max)
    inverse = 1 / (1 + pred)
    return 2 * (1 - jnp.sign(pred - target) * _log_ratio(pred, target)) * inverse * inverse


def _msle_by_target(pred: Array, target: Array) -> Array:
    return _msle_slope(target, pred)


@pointwise(
    slope=_msle_slope,
    curvature=_msle_curvature,
    partials={"target": _msle_by_target},
    traits=Traits(estimates="geometric mean of 1 + y, less 1", pred=ABOVE_MINUS_ONE, target=ABOVE_MINUS_ONE),
)
def msle(pred: Array, target: Array) -> Array:
    """Squared logarithmic error (log(1 + pred) − log(1 + target))², for pred and target > −1 (NaN below it).

    mse of log1p: estimates the geometric mean of 1 + y, less 1, and counts ratios, so for targets over many decades.
    An underestimate costs more than an overestimate of the same size.
    Smooth: slope 2ℓ/(1 + pred) and curvature 2(1 − ℓ)/(1 + pred)², with ℓ = log((1 + pred)/(1 + target)); not convex
    where pred is past e times the target.

    >>> round(float(msle(jnp.array([3.0]), jnp.array([1.0]))), 6)
    0.480453
    """
    return jnp.square(_log_ratio(pred, target))


def _mape_by_target(pred: Array, target: Array, *, epsilon: Array) -> Array:
    size, direction = jnp.abs(target), -jnp.sign(pred - target)
    divisor = jnp.maximum(size, epsilon)
    inner, outer = direction / epsilon, direction * jnp.sign(target) * (pred / divisor) / divisor
    least = jnp.clip(0, jnp.minimum(inner, outer), jnp.maximum(inner, outer))
    return jnp.where(size > epsilon, outer, jnp.where(size < epsilon, inner, least))


def _mape_by_epsilon(pred: Array, target: Array, *, epsilon: Array) -> Array:
    return jnp.where(jnp.abs(target) < epsilon, -(jnp.abs(pred - target) / epsilon) / epsilon, 0)


@pointwise(
    partials={"target": _mape_by_target, "epsilon": _mape_by_epsilon},
    domain={"epsilon": POSITIVE},
    traits=Traits(convex=True, symmetric=True, bounded_influence=True),
)
def mape(pred: Array, target: Array, *, epsilon: Array | float = 1e-6) -> Array:
    """Absolute percentage error |r| / max(|target|, ε), as a fraction: 0.1 is ten percent.

    mae with weights 1/|target|: estimates the median under those weights, which lies below the median.
    ε > 0, in the units of the target, keeps rows with a target near 0 from counting without bound.
    Kink at r = 0: slope sign(r)/max(|target|, ε), so 0 at a perfect fit; curvature 0 everywhere.

    >>> float(mape(jnp.array([9.0, 30.0]), jnp.array([10.0, 20.0])))
    0.30000001192092896
    """
    limit = jnp.finfo(target.dtype).max
    target = jnp.clip(target, -limit, limit)  # of an infinite target it is 1, with slope 0
    return kink.absolute(pred - target) / jnp.maximum(jnp.abs(target), epsilon)


def _held(x: Array) -> Array:
    """x, where twice the sum of two still is finite: further out the symmetric error has its limit."""
    limit = float(jnp.finfo(x.dtype).max) / 4
    return jnp.clip(x, -limit, limit)


def _smape_parts(pred: Array, target: Array, epsilon: Array | float) -> tuple[Array, Array, Array, Array]:
    pred, target = _held(pred), _held(target)
    size = jnp.abs(pred) + jnp.abs(target)
    return pred, target, size, 1 / jnp.maximum(size, epsilon)


def _smape_slope(pred: Array, target: Array, *, epsilon: Array) -> Array:
    pred, target, size, inverse = _smape_parts(pred, target, epsilon)
    same = jnp.sign(pred) * jnp.sign(target) > 0
    outer = jnp.where(same, 4 * (jnp.abs(target) * inverse) * inverse, 0)
    inner = 2 / epsilon
    steepness = jnp.where(size > epsilon, outer, jnp.where(size < epsilon, inner, jnp.minimum(inner, outer)))
    return jnp.sign(pred - target) * steepness


def _smape_curvature(pred: Array, target: Array, *, epsilon: Array) -> Array:
    pred, target, size, inverse = _smape_parts(pred, target, epsilon)
    same = (jnp.sign(pred) * jnp.sign(target) > 0) | ((pred == 0) & (target != 0))
    outer = same & ((size > epsilon) | ((size == epsilon) & (jnp.abs(pred) < jnp.abs(target))))
    bending = 8 * (jnp.abs(target) * inverse) * inverse * inverse
    return jnp.where(outer, jnp.where(jnp.abs(pred) < jnp.abs(target), bending, -bending), 0 * size)


def _smape_by_target(pred: Array, target: Array, *, epsilon: Array) -> Array:
    return _smape_slope(target, pred, epsilon=epsilon)


def _smape_by_epsilon(pred: Array, target: Array, *, epsilon: Array) -> Array:
    pred, target, size, _ = _smape_parts(pred, target, epsilon)
    return jnp.where(size < epsilon, -2 * (jnp.abs(pred - target) / epsilon) / epsilon, 0)


@pointwise(
    slope=_smape_slope,
    curvature=_smape_curvature,
    partials={"target": _smape_by_target, "epsilon": _smape_by_epsilon},
    domain={"epsilon": POSITIVE},
    traits=Traits(bounded_influence=True),
)
def smape(pred: Array, target: Array, *, epsilon: Array | float = 1e-6) -> Array:
    """Symmetric percentage error 2|r| / max(|pred| + |target|, ε), as a fraction between 0 and 2 (Makridakis 1993).

    Symmetric in pred and target, unlike mape, but not in the sign of r: an underestimate costs more. Estimates no
    common functional; it is 2, with slope 0, for every prediction of the wrong sign and for a target of 0.
    ε > 0, in their units, is the least denominator. With s = |pred| + |target| ≥ ε and equal signs the slope is
    sign(r)·4|target|/s² and the curvature ∓8|target|/s³ above and below |target|.
    Kinks at r = 0, at pred = 0 and at s = ε: slope 0 at the first two, the lesser of both sides at the third.

    >>> smape(jnp.array([3.0, -3.0]), jnp.array([1.0, 1.0]), reduction="none").tolist()
    [1.0, 2.0]
    """
    pred, target, _, inverse = _smape_parts(pred, target, epsilon)
    return 2 * (kink.absolute(pred - target) * inverse)
