"""Scores of a fit from whole arrays, for what is not a sum of losses. Every loss is a metric too.

Each is called as a loss is, `score(pred, target, *, weights=None, where=None, axis=None)`. With axis None all entries
are pooled; axis=0 gives a score for each output, whose plain mean is scikit-learn's `uniform_average`. Weights count as
there, Σw·/Σw, and an entry of weight 0 is absent. Over nothing (no entries, or all masked) a score is NaN.
Means are taken of deviations from one entry, so that an offset such as that of N(10⁶, 1) costs no digits of float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.contract import (
    NONNEGATIVE,
    PointwiseLoss,
    as_arrays,
    check_loss,
    check_settings,
    loss_name,
    prepare,
    to_dtype,
    unbound,
)
from jaxloss.metrics.group import Group, pooled
from jaxloss.numerics import kink
from jaxloss.reduce import Axis, check_reduction, hide, total_weight

__all__ = ["bias", "d2", "explained_variance", "max_error", "median_absolute_error", "pearson", "r2", "rmse"]


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
    pred, target, weights, where = as_arrays(pred, target, weights, where)
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


def _less(error: jax.Array, spread: jax.Array) -> jax.Array:
    """1 − error/spread; over a spread of 0 it is 1 for no error, else 0."""
    flat = spread == 0
    ratio = 1 - error / jnp.where(flat, 1, spread)
    return jnp.where(flat, jnp.where(error == 0, 1.0, 0.0).astype(error.dtype), ratio)


def _in_units(values: jax.Array, group: Group) -> tuple[jax.Array, jax.Array]:
    """The largest size, or 1 where that is 0 or not finite, and its inverse: squares neither over- nor underflow."""
    size = lax.stop_gradient(group.largest(jnp.abs(values)))
    size = jnp.where((size > 0) & (size < jnp.inf), size, 1)
    return values / size, size


@pooled
def r2(pred: Any, target: Any, group: Group) -> jax.Array:
    """Coefficient of determination 1 − Σw(pred − target)²/Σw(target − t̄)², t̄ the weighted mean of the target.

    1 is a perfect fit, 0 no better than the mean. scikit-learn's `r2_score`, per output with axis=0; pooled, with
    axis None, the spread is that about the one mean of all entries. Of a constant target it is 1 for a perfect fit and
    0 otherwise (scikit-learn's `force_finite=True`), which a single entry is too (NaN there).

    >>> from jaxloss.metrics import r2
    >>> float(r2(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 2.0, 3.0])))
    0.5
    """
    spread, size = _in_units(group.centred(target), group)
    return _less(group.average(jnp.square((pred - target) / size)), group.average(jnp.square(spread)))


@pooled
def explained_variance(pred: Any, target: Any, group: Group) -> jax.Array:
    """Explained variance 1 − Var(pred − target)/Var(target), weighted: r2 after the bias is taken off.

    scikit-learn's `explained_variance_score`, per output with axis=0. Of a constant target as in `r2`.

    >>> from jaxloss.metrics import explained_variance
    >>> float(explained_variance(jnp.array([11.0, 12.0, 13.0]), jnp.array([1.0, 2.0, 3.0])))
    1.0
    """
    spread, size = _in_units(group.centred(target), group)
    return _less(group.average(jnp.square(group.centred(pred - target) / size)), group.average(jnp.square(spread)))


@pooled
def bias(pred: Any, target: Any, group: Group) -> jax.Array:
    """Mean error Σw(pred − target)/Σw, in the target's units: positive where predictions are too high.

    >>> from jaxloss.metrics import bias
    >>> float(bias(jnp.array([3.0, 2.0]), jnp.array([1.0, 2.0])))
    1.0
    """
    return group.average(pred - target)


@pooled
def max_error(pred: Any, target: Any, group: Group) -> jax.Array:
    """Largest absolute error max |pred − target|; of weights only whether they are 0 matters.

    scikit-learn's `max_error`, which takes neither weights nor several outputs.

    >>> from jaxloss.metrics import max_error
    >>> float(max_error(jnp.array([3.0, 2.0]), jnp.array([1.0, 2.0])))
    2.0
    """
    return group.largest(kink.absolute(pred - target))


@pooled
def median_absolute_error(pred: Any, target: Any, group: Group) -> jax.Array:
    """Weighted median of |pred − target|, in the target's units; between two values it is their middle.

    scikit-learn's `median_absolute_error`, per output with axis=0.

    >>> from jaxloss.metrics import median_absolute_error
    >>> float(median_absolute_error(jnp.array([1.0, 2.0, 90.0]), jnp.zeros(3)))
    2.0
    """
    errors = kink.absolute(pred - target)
    seen = jnp.any(jnp.isnan(errors) & group.present, group.axes, keepdims=True)
    return jnp.where(seen, jnp.nan, group.quantile(errors, 0.5))


@pooled
def pearson(pred: Any, target: Any, group: Group) -> jax.Array:
    """Weighted correlation of prediction and target, from −1 to 1; NaN where one of them is constant.

    It forgives bias and scale: a prediction of 10·target + 3 has 1.

    >>> from jaxloss.metrics import pearson
    >>> float(pearson(jnp.array([13.0, 23.0, 33.0]), jnp.array([1.0, 2.0, 3.0])))
    1.0
    """
    pred, target = (_in_units(group.centred(values), group)[0] for values in (pred, target))
    spreads = [jnp.sqrt(group.average(jnp.square(values))) for values in (pred, target)]
    return jnp.clip(group.average(pred * target) / (spreads[0] * spreads[1]), -1, 1)


def d2(loss: Any) -> Callable[..., jax.Array]:
    """The score 1 − Σwℓ(pred, target)/Σwℓ(c, target), c the best constant prediction under the loss.

    d2(mse) is `r2`; d2(mae), d2(Partial(quantile, level=a)) and d2(Partial(tweedie_deviance, power=p)) are
    scikit-learn's `d2_absolute_error_score`, `d2_pinball_score` and `d2_tweedie_score`. c is the mean, the median or
    the quantile that `traits(loss).estimates` names, and for any other convex loss is found by bisection; a loss that
    is neither is a `TypeError`. Of targets that a constant predicts without loss, as in `r2`.

    >>> from jaxloss import mae
    >>> from jaxloss.metrics import d2
    >>> float(d2(mae)(jnp.array([1.0, 2.0, 5.0]), jnp.array([1.0, 2.0, 3.0])))
    0.0
    """
    check_loss(loss)
    function, settings = unbound(loss)
    name = f"d2({loss_name(loss)})"
    if not isinstance(function, PointwiseLoss) or function.lifted.event_ndim:
        raise TypeError(f"{name}: needs a loss of one prediction and one target made by jaxloss.pointwise")
    lifted = function.lifted
    settings = {**lifted.defaults, **settings}
    constant = _best_constant(name, lifted.traits, settings)

    def score(pred, target, group):
        def average(pred, target):
            losses = loss(pred, target, where=group.present, reduction="none")
            return group.average(losses)

        origin = lax.stop_gradient(group.least(target)) if lifted.traits.residual else 0.0
        # A loss of the residual sees small numbers: in float32 the mean of N(10⁶, 1) is known to 0.03 only.
        moved = jnp.where(group.present, target - origin, 0)
        best = lax.stop_gradient(constant(moved, group, average))
        return _less(average(pred, target), average(jnp.broadcast_to(best, moved.shape), moved))

    score.__name__ = score.__qualname__ = name
    score.__doc__ = f"1 − Σw·{loss_name(loss)} of the prediction over that of the best constant."
    return pooled(score)


def _best_constant(name: str, traits: Any, settings: dict[str, Any]) -> Callable:
    """How to find the constant of least loss: a function of (target, group, average loss)."""
    level: Any = settings.get("level")
    if traits.estimates == "mean":
        return lambda target, group, average: group.average(target)
    if traits.estimates == "median":
        return lambda target, group, average: group.quantile(target, 0.5)
    if traits.estimates == "quantile(level)" and jnp.ndim(level) == 0:
        level = float(level) if isinstance(level, int | float | np.floating) else level
        return lambda target, group, average: group.quantile(target, level)
    if traits.convex:
        return _bisect
    raise TypeError(
        f"{name}: its best constant is not known: only for a loss whose traits say convex=True, or that it "
        "estimates the mean, the median or the quantile(level)"
    )


def _bisect(target: jax.Array, group: Group, average: Callable) -> jax.Array:
    """Where the slope of the average loss changes sign, between the least and the largest target."""

    def slope(constant):
        return jax.grad(lambda c: average(jnp.broadcast_to(c, target.shape), target).sum())(constant)

    def halve(_, ends):
        middle = 0.5 * ends[0] + 0.5 * ends[1]
        rising = slope(middle) > 0
        return jnp.where(rising, ends[0], middle), jnp.where(rising, middle, ends[1])

    ends = group.least(target), jnp.maximum(group.largest(target), group.least(target))
    low, high = lax.fori_loop(0, 30 if target.dtype == jnp.float32 else 60, halve, ends)
    return 0.5 * low + 0.5 * high
