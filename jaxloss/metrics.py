"""What is reported of a fit, in the target's own units. Every loss is a metric too; these are not sums of losses.

Weights count as in scikit-learn, Σw·/Σw. Over nothing (no elements, or all masked) a metric is NaN.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss import kink
from jaxloss.contract import NONNEGATIVE, check_settings, prepare, to_dtype
from jaxloss.reduce import Axis, check_reduction, hide, total_weight

__all__ = ["rmse"]


def rmse(
    pred: Any, target: Any, eps: Any = 0.0, *, weights: Any = None, where: Any = None, axis: Axis = None
) -> jax.Array:
    """Root mean squared error √(Σw(pred − target)²/Σw + ε), pooled over the axes (default all), in the target's units.

    The gradient at a perfect fit is 0 also for ε = 0, so ε ≥ 0, in squared units, is needed only for a smooth one.
    Residuals are scaled by the largest before they are squared: no overflow and no underflow. Arguments are checked as
    those of a loss.

    >>> float(rmse(jnp.array([3.0, 4.0]), jnp.zeros(2), axis=0))
    3.535533905029297
    >>> jax.grad(rmse)(jnp.ones(2), jnp.ones(2)).tolist()
    [0.0, 0.0]
    """
    target, weights, shape = prepare("rmse", pred, target, weights, where)
    check_settings("rmse", {"eps": eps}, {"eps": 0.0}, {"eps": NONNEGATIVE})
    axes = check_reduction("rmse", "mean", axis, len(shape))
    return _rmse(pred, target, to_dtype(eps, target.dtype), weights, where, axes=axes)


@functools.partial(jax.jit, static_argnames="axes")
def _rmse(pred, target, eps, weights, where, *, axes):
    residual = jnp.asarray(pred).astype(target.dtype) - target
    if where is not None:
        residual = hide(residual, where, 0.0)
    size = jnp.max(jnp.abs(residual), axes, initial=0, keepdims=True)
    scale = lax.stop_gradient(jnp.maximum(size, jnp.sqrt(eps)))
    scale = jnp.where((scale > 0) & (scale < jnp.inf), scale, 1)
    squares = jnp.square(residual / scale)
    if weights is not None:
        weights = jnp.broadcast_to(weights, squares.shape)
        weights = weights if where is None else hide(weights, where, 0.0)
        squares = squares * weights
    weight = total_weight(squares.shape, squares.dtype, weights, where, axes, "weighted_mean")
    scale = scale.reshape(weight.shape)
    inverse = 1 / scale  # eps / scale² would be 0/0 where scale² underflows
    return scale * kink.root(squares.sum(axes) / weight + eps * inverse * inverse)
