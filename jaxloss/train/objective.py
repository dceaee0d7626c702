"""What is minimised: a function of parameters and a batch that returns a `LossSum`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.tree_util import Partial

from jaxloss.contract import as_pytree, check_loss, loss_name, shown, unbound
from jaxloss.reduce import LossSum, loss_rank, loss_sum
from jaxloss.train.batch import Batch

__all__ = [
    "Objective",
    "has_statistics",
    "is_stateful",
    "objective_sum",
    "penalized",
    "penalty_sum",
    "split_penalty",
    "supervised",
]

Objective = Callable[..., Any]
"""`(params, batch) -> LossSum`, or a `Stateful` one."""


@runtime_checkable
class Stateful(Protocol):
    """An objective that says whether it has the second form.

    If `stateful` is True it is `(params, batch, *, model_state, key, train) -> (LossSum, model_state)`.
    """

    stateful: bool


def supervised(apply: Callable, loss: Callable, *, stateful: bool = False, reduction: str = "mean") -> Objective:
    """The usual objective: the loss of the model's predictions against the batch's targets.

    apply: `apply(params, x) -> pred`; with `stateful`, `apply(params, x, *, model_state, key, train) -> (pred,
        model_state)`, for models with BatchNorm, Dropout and the like.
    loss: any loss; settings bound with `Partial` are traced, so a new value compiles nothing.
    reduction: "mean" divides by the number of unmasked elements, "weighted_mean" by the sum of their weights.

    Further keywords of the objective itself are settings of the loss: `objective(params, batch, delta=0.3)`.
    """
    if isinstance(apply, nnx.Module | linen.Module):
        repair = "pass the two of `apply, params = functional(model)`, which may give model_state as a third"
        raise TypeError(f"supervised: apply is a flax module, {type(apply).__name__}: {repair}")
    if not callable(apply):
        raise TypeError(f"supervised: apply must be a function of (params, x), got {shown(apply)}")
    check_loss(loss)
    _check_keywords(loss)
    if reduction not in ("mean", "weighted_mean"):
        raise ValueError(f"supervised: reduction must be 'mean' or 'weighted_mean', got {reduction!r}")
    return Partial(_Supervised(stateful, reduction), Partial(apply), as_pytree(loss))


def _check_keywords(loss: Callable) -> None:
    """Raise `TypeError` for a function that cannot be called as a loss is."""
    try:
        parameters = inspect.signature(loss).parameters
    except (TypeError, ValueError):  # of a builtin
        return
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    missing = [name for name in ("weights", "where", "reduction") if name not in parameters]
    if missing and not open_ended:
        raise TypeError(
            f"supervised: {loss_name(loss)} takes no {missing[0]}=, as a loss does: make it one by jaxloss.pointwise"
        )


@dataclass(frozen=True)
class _Supervised:
    """A value, so that two objectives of the same functions are the same to `jit`."""

    stateful: bool
    reduction: str

    def __call__(self, apply: Callable, loss: Callable, params: Any, batch: Batch, **settings: Any) -> Any:
        mode = {name: settings.pop(name) for name in ("model_state", "key", "train") if self.stateful}
        result = apply(params, batch.x, **mode)
        if self.stateful and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"supervised: a stateful apply returns (pred, model_state), got {shown(type(result))}")
        pred, model_state = result if self.stateful else (result, None)
        weights, where = (_narrow(tree, loss, pred, batch.target) for tree in (batch.weights, batch.where))
        total = loss_sum(loss, pred, batch.target, weights=weights, where=where, reduction=self.reduction, **settings)
        return (total, model_state) if self.stateful else total


def _narrow(tree: Any, loss: Callable, pred: Any, target: Any) -> Any:
    """A weight or mask without the last axes of size 1 that a loss of vectors, which has fewer than its target, lacks.

    Batches are padded and masked before the loss is known, with a mask of the target's rank.
    """
    if tree is None or not isinstance(target, jax.Array | np.ndarray):  # several heads
        return tree
    rank, shape = loss_rank(loss, pred, target), jnp.shape(tree)
    surplus = shape[rank:]
    return tree if not surplus or set(surplus) != {1} else jnp.reshape(tree, shape[:rank])


def penalized(objective: Objective, penalty: Callable[[Any], Any]) -> Objective:
    """The objective plus `penalty(params)`, a number: its gradient counts in every step, whatever the batch holds.

    The two are reported apart: the total and weight of the sum are dicts with the entries "loss" and "penalty". `fit`
    leaves the penalty out of the validation loss.

    >>> import optax
    >>> from jaxloss import mse
    >>> from jaxloss.train import Batch
    >>> ridge = penalized(supervised(lambda params, x: x @ params, mse), lambda params: 0.5 * jnp.sum(params**2))
    >>> ridge(jnp.array([2.0]), Batch(jnp.ones((4, 1)), jnp.zeros(4))).each
    {'loss': Array(4., dtype=float32), 'penalty': Array(2., dtype=float32)}
    """
    for what, function in (("objective", objective), ("penalty", penalty)):
        if not callable(function):
            raise TypeError(f"penalized: {what} must be a function, got {shown(function)}")
    return Partial(_Penalized(is_stateful(objective)), as_pytree(objective), Partial(penalty))


@dataclass(frozen=True)
class _Penalized:
    stateful: bool

    def __call__(self, objective: Objective, penalty: Callable, params: Any, batch: Batch, **more: Any) -> Any:
        result = objective(params, batch, **more)
        total, model_state = result if self.stateful else (result, None)
        value = penalty_sum(penalty, params)
        both = LossSum(*({"loss": a, "penalty": b} for a, b in zip(total, value, strict=True)))
        return (both, model_state) if self.stateful else both


def split_penalty(objective: Objective) -> tuple[Objective, Callable | None]:
    """The objective without its penalty, and the penalty: it needs no batch, and so no sum over parts."""
    if isinstance(objective, Partial) and isinstance(objective.func, _Penalized):
        inner, penalty = objective.args
        return Partial(inner, **objective.keywords), penalty
    return objective, None


def penalty_sum(penalty: Callable, params: Any) -> LossSum:
    """The penalty as a sum with weight 1: the mean over steps is that of the values."""
    value = penalty(params)
    if jnp.shape(value) != ():
        raise TypeError(f"a penalty is a number, got shape {jnp.shape(value)}: add it up")
    return LossSum(value, jnp.ones_like(value))


def is_stateful(objective: Objective) -> bool:
    """Whether the objective takes and returns model state."""
    function, _ = unbound(objective)
    return isinstance(function, Stateful) and function.stateful


def has_statistics(model_state: Any) -> bool:
    """Whether the model state holds numbers that learn from every row, such as BatchNorm's: not keys and counts."""
    return any(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in jax.tree.leaves(model_state))


def objective_sum(
    objective: Objective, params: Any, batch: Batch, model_state: Any, key: Any, train: bool
) -> tuple[LossSum, Any]:
    """Call either form of objective, and check what it returns."""
    if is_stateful(objective):
        total, model_state = objective(params, batch, model_state=model_state, key=key, train=train)
    else:
        total = objective(params, batch)
    if not isinstance(total, LossSum):
        raise TypeError(f"an objective returns a LossSum, got {type(total).__name__}: use jaxloss.loss_sum(…)")
    for leaf in jax.tree.leaves(total.total):
        if jnp.shape(leaf) != ():
            raise TypeError(f"an objective's total is a scalar, got shape {jnp.shape(leaf)}: leave axis out")
    return total, model_state
