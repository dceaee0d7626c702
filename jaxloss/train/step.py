"""One training step: differentiate the total, add the parts, divide once.

The gradient of a mean over several micro-batches or devices is the sum of the gradients of their totals over the sum of
their weights. Written this way it is exact whatever is masked where, and costs one all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial

from jaxloss.contract import as_pytree, check_loss, unbound
from jaxloss.reduce import LossSum, divide, loss_sum
from jaxloss.train.state import Batch, TrainState

__all__ = ["Objective", "is_stateful", "make_step", "objective_sum", "supervised"]

Objective = Callable[..., Any]
"""`(params, batch) -> LossSum`; with an attribute `stateful = True`,
`(params, batch, *, model_state, key, train) -> (LossSum, model_state)`."""


def supervised(apply: Callable, loss: Callable, *, stateful: bool = False, reduction: str = "mean") -> Objective:
    """The usual objective: the loss of the model's predictions against the batch's targets.

    apply: `apply(params, x) -> pred`; with `stateful`, `apply(params, x, *, model_state, key, train) -> (pred,
        model_state)`, for models with BatchNorm, Dropout and the like.
    loss: any loss; settings bound with `Partial` are traced, so a new value compiles nothing.
    reduction: "mean" divides by the number of unmasked elements, "weighted_mean" by the sum of their weights.
    """
    check_loss(loss)
    return Partial(_Supervised(stateful, reduction), Partial(apply), as_pytree(loss))


@dataclass(frozen=True)
class _Supervised:
    """A value, so that two objectives of the same functions are the same to `jit`."""

    stateful: bool
    reduction: str

    def __call__(self, apply: Callable, loss: Callable, params: Any, batch: Batch, **mode: Any) -> Any:
        pred, model_state = apply(params, batch.x, **mode) if self.stateful else (apply(params, batch.x), None)
        total = loss_sum(loss, pred, batch.target, weights=batch.weights, where=batch.where, reduction=self.reduction)
        return (total, model_state) if self.stateful else total


def is_stateful(objective: Objective) -> bool:
    """Whether the objective takes and returns model state."""
    return getattr(unbound(objective)[0], "stateful", False)


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


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, *, micro_batches: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, LossSum]]]:
    """A pure `step(state, batch) -> (state, metrics)`; jit it, scan it, or shard its arguments.

    micro_batches: split the batch into this many parts, of equal size, and add their gradients: the memory of one part,
        and the full batch's gradient to rounding.
    metrics: {"loss": LossSum} of the batch before the update; sums, so metrics of several steps add.

    >>> import optax
    >>> from jaxloss import mse
    >>> from jaxloss.train import Batch, TrainState, make_step, supervised
    >>> optimizer = optax.sgd(0.1)
    >>> step = jax.jit(make_step(supervised(lambda params, x: x @ params, mse), optimizer))
    >>> state = TrainState.create(jnp.zeros(2), optimizer)
    >>> state, metrics = step(state, Batch(jnp.eye(2), jnp.array([1.0, 2.0])))
    >>> state.params.tolist(), float(metrics["loss"].mean)
    ([0.10000000149011612, 0.20000000298023224], 2.5)
    """

    def gradients(params: Any, batch: Batch, model_state: Any, key: Any) -> tuple[list[Any], tuple[LossSum, Any]]:
        """One gradient for each head's total: they are divided by different weights, once those are known."""

        def totals(params: Any) -> tuple[list[jax.Array], tuple[LossSum, Any]]:
            sum_, model_state_ = objective_sum(objective, params, batch, model_state, key, train=True)
            return jax.tree.leaves(sum_.total), (sum_, model_state_)

        heads, pull, aux = jax.vjp(totals, params, has_aux=True)
        one, zero = jnp.ones_like, jnp.zeros_like
        return [pull([one(head) if head is own else zero(head) for head in heads])[0] for own in heads], aux

    def accumulate(params: Any, batch: Batch, model_state: Any, key: Any) -> tuple[Any, tuple[LossSum, Any]]:
        if micro_batches == 1:
            return gradients(params, batch, model_state, key)
        parts = _split(batch, micro_batches)

        def add(carry, numbered):
            grads, sum_, model_state = carry
            number, part = numbered
            more, (more_sum, model_state) = gradients(params, part, model_state, jax.random.fold_in(key, number))
            return (jax.tree.map(jnp.add, grads, more), sum_ + more_sum, model_state), None

        first = jax.tree.map(lambda leaf: leaf[0], parts)
        shapes = jax.eval_shape(gradients, params, first, model_state, key)
        grads, (sum_, _) = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        carry, _ = lax.scan(add, (grads, sum_, model_state), (jnp.arange(micro_batches), parts))
        return carry[0], carry[1:]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, LossSum]]:
        key = jax.random.fold_in(state.key, state.step) if is_stateful(objective) or micro_batches > 1 else state.key
        grads, (sum_, model_state) = accumulate(state.params, batch, state.model_state, key)
        weights = jax.tree.leaves(sum_.weight)
        grads = [jax.tree.map(lambda leaf, w=w: divide(leaf, w).astype(leaf.dtype), g) for g, w in zip(grads, weights)]
        grads = jax.tree.map(lambda *heads: sum(heads), *grads) if len(grads) > 1 else grads[0]
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, model_state, state.key, state.step + 1), {"loss": sum_}

    return step


def _split(batch: Batch, parts: int) -> Batch:
    """Every `parts`-th row to one part: on a sharded batch a strided split stays within each shard."""
    rows = jax.tree.leaves(batch.x)[0].shape[0]
    if rows % parts:
        raise ValueError(f"micro_batches={parts} does not divide the batch of {rows} rows; pad it and mask the padding")

    def split(leaf: Any) -> jax.Array:
        if jnp.ndim(leaf) == 0 or leaf.shape[0] != rows:
            return jnp.broadcast_to(leaf, (parts, *jnp.shape(leaf)))
        return jnp.swapaxes(leaf.reshape(rows // parts, parts, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)
