"""One training step: differentiate the total, add the parts, divide once, and never apply what is not finite.

The gradient of a mean over several micro-batches or devices is the sum of the gradients of their totals over the sum of
their weights. Written this way it is exact whatever is masked where, and costs one all-reduce.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxloss.contract import shown
from jaxloss.reduce import LossSum, divide
from jaxloss.train.batch import Batch, regular
from jaxloss.train.checks import check_integer, check_optimizer, check_params
from jaxloss.train.evaluation import differentiated_params
from jaxloss.train.objective import Objective, is_stateful, objective_sum, penalty_sum, split_penalty
from jaxloss.train.state import TrainState

__all__ = ["all_finite", "make_step"]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    guard: bool | Literal["gradient"] = True,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """A pure `step(state, batch) -> (state, metrics)`; jit it, scan it, or shard its arguments.

    optimizer: of optax; one that asks for it is told the loss of the batch, and the loss as a function of the
        parameters: `reduce_on_plateau`, Polyak's step; `lbfgs` and line searches, which are meant for full batches.
    micro_batches: split the batch into this many parts, of equal size, and add their gradients: the memory of one part,
        and the full batch's gradient to rounding.
    guard: skip the update when the loss or a new parameter is not finite, as it is after a gradient that is not: the
        state is then the old one but for its step number, and the batch counts in no sum but "skipped". "gradient"
        skips it when the loss or the gradient is not finite, whatever the optimizer would make of that, and holds the
        single parameters that would overflow: it needs no second copy of the state, as True does.
    metrics: of the batch before the update, all sums, so that those of several steps add: "loss", a LossSum;
        "penalty", another, if the objective is `penalized`; with the guard "skipped", the number of skipped updates.

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

    if check_integer("make_step", "micro_batches", micro_batches) < 1:
        raise ValueError(f"make_step: micro_batches={micro_batches} must be at least 1")
    objective, penalty = split_penalty(objective)
    check_optimizer("make_step", optimizer)
    if not callable(objective):
        raise TypeError(f"make_step: objective must be a function of (params, batch), got {shown(objective)}")

    def sums(params: Any, batch: Batch, model_state: Any, key: Any) -> tuple[LossSum, Any]:
        return objective_sum(objective, params, batch, model_state, key, train=True)

    def gradients(params: Any, batch: Batch, model_state: Any, key: Any) -> tuple[tuple[list[Any], LossSum], Any]:
        """One gradient for each head's total: they are divided by different weights, once those are known."""

        def totals(params: Any) -> tuple[list[jax.Array], tuple[LossSum, Any]]:
            sum_, model_state_ = sums(params, batch, model_state, key)
            return jax.tree.leaves(sum_.total), (sum_, model_state_)

        heads, pull, (sum_, model_state) = jax.vjp(totals, params, has_aux=True)
        one, zero = jnp.ones_like, jnp.zeros_like
        grads = [pull([one(head) if head is own else zero(head) for head in heads])[0] for own in heads]
        return (grads, sum_), model_state

    def accumulate(part: Callable, params: Any, batch: Batch, model_state: Any, key: Any) -> tuple[Any, Any]:
        """What `part` gives of all micro-batches, added, and the model state after the last."""
        if micro_batches == 1:
            return part(params, batch, model_state, key)
        parts = _split(batch, micro_batches)

        def add(carry, numbered):
            total, model_state = carry
            number, rows = numbered
            more, model_state = part(params, rows, model_state, jax.random.fold_in(key, number))
            return (jax.tree.map(jnp.add, total, more), model_state), None

        first = jax.tree.map(lambda leaf: leaf[0], parts)
        shapes, _ = jax.eval_shape(part, params, first, model_state, key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return lax.scan(add, (zeros, model_state), (jnp.arange(micro_batches), parts))[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        check_params("make_step", state.params)
        key = jax.random.fold_in(state.key, state.step) if is_stateful(objective) or micro_batches > 1 else state.key
        params = differentiated_params(state.params)
        (totals, sum_), model_state = accumulate(gradients, params, batch, state.model_state, key)
        metrics, more = {"loss": sum_}, []
        if penalty is not None:
            slope, metrics["penalty"] = jax.grad(_valued(penalty), has_aux=True)(params)
            more.append(slope)
        _check_same("apply", model_state, state.model_state, dtypes=True)

        def gradient() -> Any:
            """The totals' gradients divided by the weights, and added."""
            weights = jax.tree.leaves(sum_.weight)
            heads = [
                jax.tree.map(lambda leaf, w=w: divide(leaf, w).astype(leaf.dtype), own)
                for own, w in zip(totals, weights)
            ]
            heads += more
            return jax.tree.map(lambda *heads: sum(heads), *heads) if len(heads) > 1 else heads[0]

        def value(params: Any) -> jax.Array:
            part = sums if micro_batches == 1 else jax.checkpoint(sums)  # searches differentiate: one part's memory
            value = accumulate(part, params, batch, state.model_state, key)[0].mean
            return value if penalty is None else value + penalty_sum(penalty, params).total

        def update() -> TrainState:
            grads = gradient()
            known = {"value": sum(sum_.mean for sum_ in metrics.values()), "grad": grads, "value_fn": value}
            updates, opt_state = optimizer.update(
                grads, state.opt_state, state.params, **_taken(optimizer.update, known)
            )
            _check_same("the optimizer's update", opt_state, state.opt_state, dtypes=False)
            return TrainState(
                optax.apply_updates(state.params, updates), opt_state, model_state, state.key, state.step + 1
            )

        if not guard:
            return update(), metrics
        kept = state._replace(step=state.step + 1)
        if guard == "gradient":  # a conditional updates in place, where a selection holds both of what it selects from
            finite = all_finite((metrics, totals, more))
            new = lax.cond(finite, lambda: _hold(update(), state.params), lambda: kept)
            skipped = ~finite | _overflown(new.params)
        else:
            new = update()
            finite = all_finite((metrics, new.params))
            new, skipped = jax.tree.map(functools.partial(jnp.where, finite), new, kept), ~finite
        metrics = jax.tree.map(lambda sum_: jnp.where(finite, sum_, jnp.zeros_like(sum_)), metrics)
        return new, metrics | {"skipped": skipped.astype(jnp.int32)}

    return step


def _check_same(what: str, after: Any, before: Any, *, dtypes: bool) -> None:
    """Raise `TypeError` for a state that is not of the structure it was given in, or of other types."""
    if jax.tree.structure(after) != jax.tree.structure(before):
        raise TypeError(f"make_step: {what} gives a state of another structure than it was given")
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before)) if dtypes else ():
        if jnp.result_type(new) != jnp.result_type(old):
            told = f"{jnp.result_type(old)} to {jnp.result_type(new)}"
            raise TypeError(f"make_step: {what} turns a leaf of model_state from {told}: it must keep its dtype")


def _hold(new: TrainState, old: Any) -> TrainState:
    """The state with parameters at the largest number of their type where they would overflow."""

    def clip(after: jax.Array, before: jax.Array) -> jax.Array:
        largest = jnp.finfo(after.dtype).max
        return jnp.where(jnp.isnan(after), before, jnp.clip(after, -largest, largest))

    return new._replace(params=jax.tree.map(clip, new.params, old))


def _overflown(params: Any) -> jax.Array:
    """Whether a parameter is where `_hold` has put it."""
    at = [jnp.max(jnp.abs(leaf), initial=0) >= jnp.finfo(leaf.dtype).max for leaf in jax.tree.leaves(params)]
    return functools.reduce(jnp.logical_or, at, jnp.array(False))


def _taken(function: Callable, known: dict[str, Any]) -> dict[str, Any]:
    """Those of the keywords that the function takes; SAM's update, for one, takes none."""
    parameters = inspect.signature(function).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in known.items() if anything or name in parameters}


def _valued(penalty: Callable) -> Callable:
    def value(params: Any) -> tuple[jax.Array, LossSum]:
        sum_ = penalty_sum(penalty, params)
        return sum_.total, sum_

    return value


def all_finite(tree: Any) -> jax.Array:
    """Whether every number of the tree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves], jnp.array(True))


def _split(batch: Batch, parts: int) -> Batch:
    """Every `parts`-th row to one part: on a sharded batch a strided split stays within each shard."""
    rows = batch.rows
    if rows % parts:
        raise ValueError(f"micro_batches={parts} does not divide the batch of {rows} rows; pad it and mask the padding")
    return regular(batch).map_rows(lambda leaf: jnp.swapaxes(leaf.reshape(rows // parts, parts, *leaf.shape[1:]), 0, 1))
