"""Masks, weights and reductions: from elementwise losses to a number.

Every reduction is a pair (total, weight), so that partial results add exactly over shards and micro-batches; dividing
comes last.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.contract import PointwiseLoss, event_rank, loss_name, require_function, shown, unbound

__all__ = [
    "Axis", "LossSum", "check_reduction", "divide", "hide", "loss_rank", "loss_sum", "observed", "reduce_losses",
    "total_weight",
]  # fmt: skip

WINDOW, MANY = 32, 2**15
"""How many losses XLA adds up in one compiled loop, and from how many on it leaves a sum to a library."""

REDUCTIONS = ("mean", "weighted_mean", "sum", "none")

Axis = int | Sequence[int] | None


class LossSum(NamedTuple):
    """A total and the weight to divide it by; two of them add.

    `total` is Σwℓ. `weight` is N, the number of unmasked elements, for reduction "mean", and Σw for "weighted_mean".
    For a loss of several heads (`composite`) both are pytrees, with one leaf to a head.
    """

    total: Any
    weight: Any

    def __add__(self, other: LossSum) -> LossSum:  # type: ignore[override]
        if not isinstance(other, LossSum):
            return NotImplemented
        return LossSum(*jax.tree.map(jnp.add, tuple(self), tuple(other)))

    def __radd__(self, other: Any) -> LossSum:
        """So that `sum(parts)`, which starts at 0, works."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    @property
    def each(self) -> Any:
        """total / weight of every head; 0 over nothing."""
        return jax.tree.map(divide, self.total, self.weight)

    @property
    def mean(self) -> jax.Array:
        """total / weight, summed over the heads; 0 over nothing."""
        return sum(jax.tree.leaves(self.each), start=0)  # type: ignore[return-value]


@runtime_checkable
class SummedLoss(Protocol):
    """A loss of several heads, which gives the pair of each; called like `loss_sum`, with the arguments of a loss."""

    sums: Callable[..., LossSum]


def observed(target: Any) -> Any:
    """A mask of the entries that are not NaN: `loss(pred, target, where=observed(target))` takes NaN as absent.

    >>> from jaxloss import mse, observed
    >>> target = jnp.array([1.0, jnp.nan, 3.0])
    >>> float(mse(jnp.zeros(3), target, where=observed(target)))
    5.0
    """
    return jax.tree.map(lambda leaf: ~jnp.isnan(leaf), target)


def divide(total: jax.Array, weight: jax.Array) -> jax.Array:
    """total / weight, and total (which is then 0) where weight is 0."""
    return total / jnp.where(weight == 0, jnp.ones_like(weight), weight)


def hide(value: Any, where: Any, safe: float) -> Any:
    """The array with `safe` in place of every masked entry; trailing axes the mask lacks are masked as a whole."""
    where = jnp.asarray(where)
    if where.ndim:
        where = where.reshape(where.shape + (1,) * (jnp.ndim(value) - where.ndim))
    return jnp.where(where, value, jnp.asarray(safe, value.dtype))


def check_reduction(name: str, reduction: Any, axis: Any, ndim: int) -> tuple[int, ...]:
    """The axes to reduce over, as sorted non-negative numbers; raises `ValueError` for a bad reduction or axis."""
    if not (isinstance(reduction, str) and reduction in REDUCTIONS):
        raise ValueError(f"{name}: unknown reduction {shown(reduction)}; one of {', '.join(map(repr, REDUCTIONS))}")
    if axis is None:
        return tuple(range(ndim))
    if reduction == "none":
        raise ValueError(f"{name}: axis={shown(axis)} has no meaning with reduction='none'; leave one of them out")
    try:
        listed = isinstance(axis, Sequence) and not isinstance(axis, str)
        axes = tuple(map(operator.index, axis if listed else (axis,)))
    except TypeError:
        raise ValueError(f"{name}: axis={shown(axis)} must be an integer or a tuple of them") from None
    if not all(-ndim <= number < ndim for number in axes):
        raise ValueError(f"{name}: axis={axis!r} is out of range for losses of rank {ndim}")
    positive = tuple(sorted(number % ndim for number in axes))
    if len(set(positive)) < len(positive):
        raise ValueError(f"{name}: axis={axis!r} names an axis twice")
    return positive


def reduce_losses(
    losses: jax.Array, weights: Any, where: Any, axes: tuple[int, ...], reduction: str, *, half: bool = False
) -> jax.Array:
    """Σwℓ/N, Σwℓ/Σw, Σwℓ over the axes, or wℓ; masked elements count for nothing.

    half: whether the losses were computed from half precision.
    """
    if where is not None:
        losses = hide(losses, where, 0.0)
    if weights is not None:
        losses = losses * (weights if where is None else _hidden_weights(weights, where, losses))
    if reduction == "none":
        return losses
    total = _sum_of_half(losses) if half and len(axes) == losses.ndim else losses.sum(axes)
    if reduction == "sum":
        return total
    return divide(total, total_weight(losses.shape, losses.dtype, weights, where, axes, reduction))


@jax.custom_jvp
def _sum_of_half(losses: jax.Array) -> jax.Array:
    """Σℓ, without an array of what half precision becomes in float32.

    XLA on a CPU gives a sum and what leads to it to a library, but for the conversion from float16: that it stores.
    A sum of WINDOW neighbours that is not quite an addition, though it is that to the last bit, it compiles itself;
    but among several devices it can distribute nothing else than an addition.
    """

    def by_windows(losses: jax.Array) -> jax.Array:
        def plus(left: jax.Array, right: jax.Array) -> jax.Array:
            return lax.reduce_precision(left + right, info.nexp, info.nmant)

        info = jnp.finfo(losses.dtype)
        windows = jnp.pad(losses.ravel(), (0, -losses.size % WINDOW)).reshape(-1, WINDOW)
        return lax.reduce(windows, np.zeros((), losses.dtype), plus, (1,)).sum()

    if losses.size < MANY or not _one_cpu():
        return losses.sum()
    return lax.platform_dependent(losses, cpu=by_windows, default=jnp.sum)


def _one_cpu() -> bool:
    try:
        return len(jax.devices("cpu")) == 1
    except RuntimeError:  # there is none
        return True


_sum_of_half.defjvps(lambda tangent, _, losses: tangent.sum())


def _hidden_weights(weights: Any, where: Any, like: jax.Array) -> jax.Array:
    return hide(jnp.broadcast_to(weights, like.shape), where, 0.0)


def total_weight(
    shape: tuple[int, ...], dtype: Any, weights: Any, where: Any, axes: tuple[int, ...], reduction: str
) -> jax.Array:
    """What the total is divided by: N, or Σw for "weighted_mean" with weights.

    N is counted in integers where a float32 count would stop, at 2²⁴; below it in floats, which a mesh adds up together
    with the totals.
    """
    reduced = math.prod(shape[axis] for axis in axes)
    kept = tuple(size for axis, size in enumerate(shape) if axis not in axes)
    if reduction == "weighted_mean" and weights is not None:
        weights = jnp.broadcast_to(jnp.asarray(weights, dtype), shape)
        return (weights if where is None else hide(weights, where, 0.0)).sum(axes)
    if where is None:
        return jnp.full(kept, reduced, dtype)
    return jnp.broadcast_to(where, shape).sum(axes, dtype=dtype if reduced <= 2**24 else jnp.int32).astype(dtype)


def loss_rank(loss: Any, pred: Any, target: Any) -> int:
    """The rank of the elementwise losses: the target's, less the axes that are one value to the loss."""
    function = unbound(loss)[0]
    return jnp.ndim(target) - event_rank(function.lifted.event_ndim if isinstance(function, PointwiseLoss) else 0, pred)


def loss_sum(
    loss: Any,
    pred: Any,
    target: Any,
    *,
    weights: Any = None,
    where: Any = None,
    axis: Axis = None,
    reduction: str = "mean",
    **settings: Any,
) -> LossSum:
    """The loss as `LossSum(total, weight)`: total Σwℓ, weight N for reduction "mean" or Σw for "weighted_mean".

    `loss(pred, target, …)` is `loss_sum(loss, pred, target, …).mean`. Differentiate the total and divide once, after
    all parts are added: the result is then exact under padding, masks, micro-batches and meshes.

    >>> import jax.numpy as jnp
    >>> from jaxloss import loss_sum, mse
    >>> parts = [(jnp.array([1.0, 2.0]), jnp.zeros(2)), (jnp.array([3.0]), jnp.zeros(1))]
    >>> float(sum(loss_sum(mse, pred, target) for pred, target in parts).mean)
    4.666666507720947
    """
    name, (function, bound) = loss_name(loss), unbound(loss)
    require_function(function)
    if not (isinstance(reduction, str) and reduction in ("mean", "weighted_mean")):
        raise ValueError(f"loss_sum({name}): reduction must be 'mean' or 'weighted_mean', got {shown(reduction)}")
    lifted = function.lifted if isinstance(function, PointwiseLoss) else None
    if lifted is None and isinstance(function, SummedLoss):
        shared = {"weights": weights, "where": where, "axis": axis, "reduction": reduction}
        return function.sums(pred, target, **shared, **bound, **settings)
    total = loss(pred, target, weights=weights, where=where, axis=axis, reduction="sum", **settings)
    shape = jnp.shape(target)[: loss_rank(function, pred, target)]
    axes = check_reduction(name, reduction, axis, len(shape))
    return LossSum(total, total_weight(shape, total.dtype, weights, where, axes, reduction))
