"""Losses that weigh over- and underestimates differently, by a level strictly between 0 and 1. r = pred − target.

How each is called, weighted, masked and reduced is the contract of every loss (`jaxloss.lift.Loss`, and the README).
An underestimate (r < 0) has weight level, an overestimate 1 − level, so that a level near 1 asks for a high prediction.
Several levels at once: `level=jnp.array([0.1, 0.5, 0.9])` with a last axis of 3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxloss.contract import OPEN_UNIT, POSITIVE
from jaxloss.lift import Traits, pointwise
from jaxloss.numerics import kink

__all__ = ["expectile", "quantile", "quantile_huber"]

Array = jax.Array


def _weight(residual: Array, level: Array | float) -> Array:
    return jnp.where(residual > 0, 1 - level, level)


def _least_weight(residual: Array, level: Array) -> Array:
    """The weight on the side of r; at 0 the smaller of both sides, of which the curvature is made."""
    return jnp.where(residual == 0, jnp.minimum(level, 1 - level), _weight(residual, level))


def _quantile_slope(pred: Array, target: Array, *, level: Array) -> Array:
    residual = pred - target
    return jnp.sign(residual) * _weight(residual, level)


@pointwise(
    slope=_quantile_slope,
    domain={"level": OPEN_UNIT},
    traits=Traits(residual=True, convex=True, bounded_influence=True, estimates="quantile(level)"),
)
def quantile(pred: Array, target: Array, *, level: Array | float = 0.5) -> Array:
    """Quantile (pinball) loss level·max(−r, 0) + (1 − level)·max(r, 0) (Koenker and Bassett, Econometrica 1978).

    Estimates the quantile of that level: the value that a share `level` of the targets lies below. mae/2 at 0.5.
    Kink at r = 0: slope 1 − level above, −level below, 0 at a perfect fit; curvature 0 everywhere.

    >>> quantile(jnp.array([2.0, -2.0]), jnp.zeros(2), level=0.75, reduction="none").tolist()
    [0.5, 1.5]
    """
    residual = pred - target
    return jnp.maximum((1 - level) * residual, -level * residual)


def _expectile_slope(pred: Array, target: Array, *, level: Array) -> Array:
    residual = pred - target
    return 2 * _weight(residual, level) * residual


def _expectile_curvature(pred: Array, target: Array, *, level: Array) -> Array:
    return 2 * _least_weight(pred - target, level)


def _expectile_by_level(pred: Array, target: Array, *, level: Array) -> Array:
    residual = pred - target
    return -residual * kink.absolute(residual)


@pointwise(
    slope=_expectile_slope,
    curvature=_expectile_curvature,
    partials={"level": _expectile_by_level},
    domain={"level": OPEN_UNIT},
    traits=Traits(residual=True, convex=True, estimates="expectile(level)"),
)
def expectile(pred: Array, target: Array, *, level: Array | float = 0.5) -> Array:
    """Expectile loss level·max(−r, 0)² + (1 − level)·max(r, 0)² (Newey and Powell, Econometrica 1987).

    Estimates the expectile of that level, to the quantile what the mean is to the median; mse/2 at 0.5.
    The slope is continuous; the curvature is 2(1 − level) above 0 and 2·level below, at 0 the smaller.

    >>> expectile(jnp.array([2.0, -2.0]), jnp.zeros(2), level=0.75, reduction="none").tolist()
    [1.0, 3.0]
    """
    residual = pred - target
    return jnp.square(jnp.maximum(jnp.sqrt(1 - level) * residual, -jnp.sqrt(level) * residual))


def _quantile_huber_slope(pred: Array, target: Array, *, level: Array, delta: Array) -> Array:
    residual = pred - target
    return _weight(residual, level) * jnp.clip(residual / delta, -1, 1)


def _quantile_huber_curvature(pred: Array, target: Array, *, level: Array, delta: Array) -> Array:
    residual = pred - target
    return jnp.where(jnp.abs(residual) > delta, 0, _least_weight(residual, level) / delta)


def _quantile_huber_by_delta(pred: Array, target: Array, *, level: Array, delta: Array) -> Array:
    residual = pred - target
    return -0.5 * _weight(residual, level) * jnp.square(jnp.clip(residual / delta, -1, 1))


@pointwise(
    slope=_quantile_huber_slope,
    curvature=_quantile_huber_curvature,
    partials={"delta": _quantile_huber_by_delta},
    domain={"level": OPEN_UNIT, "delta": POSITIVE},
    traits=Traits(residual=True, convex=True, bounded_influence=True, estimates="M-estimate"),
)
def quantile_huber(pred: Array, target: Array, *, level: Array | float, delta: Array | float = 1.0) -> Array:
    """Quantile Huber loss |level − 1{r > 0}|·huber(r, δ)/δ (QR-DQN: Dabney et al., AAAI 2018, eq. 10).

    The division by δ is that of the sequel (IQN: Dabney et al., ICML 2018, eq. 3), and makes it tend to
    quantile(level) as δ → 0; at δ = 1 both agree. δ > 0, in the units of r, is how far the kink is rounded off.
    Estimates a point between the quantile (δ small) and the expectile (δ large) of that level. smooth_l1(β = δ)/2 at
    level 0.5. The slope is continuous; the curvature is weight/δ for |r| ≤ δ, at 0 the smaller weight, then 0.

    >>> quantile_huber(jnp.array([2.0, -2.0]), jnp.zeros(2), level=0.75, reduction="none").tolist()
    [0.375, 1.125]
    """
    residual = pred - target
    size = jnp.abs(residual)
    inner = jnp.minimum(size, delta)
    rounded = (size - inner) + 0.5 * inner * (inner / delta)
    return jnp.where(residual > 0, (1 - level) * rounded, level * rounded)
