"""Whole fits as one compiled program: epochs of shuffled batches, validation and early stopping inside it."""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxloss.reduce import LossSum
from jaxloss.train.progress import Progress
from jaxloss.train.state import Batch, TrainState
from jaxloss.train.step import Objective, as_pytree, make_step, objective_sum, supervised

__all__ = ["FitResult", "fit"]

STEPS_PER_CALL = 4096
"""Steps in one call of the compiled program: enough to hide its dispatch, few enough to report progress."""

ROWS_PER_EVALUATION = 8192
"""Validation rows evaluated at once: a bound on memory."""


class FitResult(NamedTuple):
    """What a fit returns."""

    params: Any
    """The best parameters by validation loss, or the last ones if there is no validation data."""
    state: TrainState
    """The last state."""
    history: dict[str, np.ndarray]
    """Per epoch: "loss", the mean training loss over its batches, and "validation_loss" after it, if there is any."""
    best_epoch: int
    """The epoch `params` are from, counted from 1; 0 means the initial ones."""


class _Progress(NamedTuple):
    """The loop's carry: the training state, and what early stopping remembers."""

    state: TrainState
    epoch: jax.Array
    best_params: Any
    best_loss: jax.Array
    best_epoch: jax.Array


def fit(
    apply: Callable | None,
    params: Any,
    data: Any,
    *,
    loss: Callable | None = None,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int | None = None,
    validation: Any = None,
    patience: int | None = None,
    objective: Objective | None = None,
    model_state: Any = None,
    seed: int = 0,
    progress: bool = False,
    run_dir: str | Path | None = None,
) -> FitResult:
    """Minimise a loss over arrays in memory.

    apply: `apply(params, x) -> pred`, or its stateful form (`supervised`) when `model_state` is given.
    data, validation: `(x, target)` or a `Batch` of whole arrays, rows along the first axis.
    loss: any loss; its settings bound with `Partial`. `objective`, in place of apply and loss, for anything else.
    batch_size: rows per step, drawn in a fresh order each epoch that depends on (seed, epoch) alone; the last batch is
        padded, the padding masked. None takes all rows in every step.
    patience: stop after this many epochs without a better validation loss.
    progress: draw a progress line on stderr, if that is a terminal.
    run_dir: append a line per epoch to `metrics.jsonl` in this folder. Without it no file is written.

    The caller's arrays are neither donated nor changed. A second call with the same functions, optimizer and shapes
    compiles nothing.

    >>> from jaxloss import mse
    >>> x = jnp.linspace(-1, 1, 64)
    >>> line = lambda params, x: params["slope"] * x + params["intercept"]
    >>> start = {"slope": jnp.zeros(()), "intercept": jnp.zeros(())}
    >>> result = fit(line, start, (x, 3 * x + 2), loss=mse, optimizer=optax.sgd(0.3), epochs=100)
    >>> round(float(result.params["slope"]), 3), round(float(result.params["intercept"]), 3)
    (3.0, 2.0)
    """
    objective = _objective(apply, loss, objective, stateful=model_state is not None)
    batch = _as_batch("data", data)
    held_out = None if validation is None else _as_batch("validation", validation)
    rows = _rows(batch)
    if batch_size is not None and not 1 <= operator.index(batch_size) <= rows:
        raise ValueError(f"fit: batch_size={batch_size} must be between 1 and the number of rows, {rows}")
    if operator.index(epochs) < 0:
        raise ValueError(f"fit: epochs must not be negative, got {epochs}")
    if patience is not None and (held_out is None or patience < 1):
        raise ValueError(f"fit: patience={patience} needs validation data and must be at least 1")
    batch_size = rows if batch_size is None else batch_size
    steps = -(-rows // batch_size)
    call_epochs = max(1, min(STEPS_PER_CALL // steps, 2**22 // rows))
    carry = _start(params, model_state, seed, optimizer=optimizer)
    patience = epochs if patience is None else patience
    log = Progress(epochs, steps, progress, run_dir)
    done, losses, held_out_losses = 0, [], []
    while done < epochs:
        started = time.perf_counter()
        count = min(call_epochs, epochs - done, log.epochs_per_call)
        orders = None
        if steps > 1:  # padded to one shape, with row 0 where a batch is not full
            orders = np.zeros((call_epochs, steps * batch_size), np.int32)
            orders[:count, :rows] = epoch_orders(seed, done, count, rows)
        static = {"optimizer": optimizer, "batch_size": batch_size, "capacity": call_epochs}
        carry, history = _run(carry, objective, batch, held_out, orders, count, patience, **static)
        ran = int(carry.epoch) - done
        history = [np.asarray(values)[:ran] for values in history]
        losses.append(history[0])
        held_out_losses.append(history[1])
        log.report(done, history[0], history[1] if held_out is not None else None, time.perf_counter() - started)
        done += ran
        if ran < count:
            break
    log.close()
    curves = {"loss": np.concatenate(losses) if losses else np.zeros(0, np.float32)}
    if held_out is None:
        return FitResult(carry.state.params, carry.state, curves, done)
    curves["validation_loss"] = np.concatenate(held_out_losses) if losses else np.zeros(0, np.float32)
    return FitResult(carry.best_params, carry.state, curves, int(carry.best_epoch))


def _objective(apply: Any, loss: Any, objective: Any, *, stateful: bool) -> Any:
    if objective is not None:
        if apply is not None or loss is not None:
            raise TypeError("fit: give either apply and loss, or objective (then apply is None)")
        return as_pytree(objective)
    if apply is None or loss is None:
        raise TypeError("fit: needs apply and loss=, or objective=")
    return supervised(apply, loss, stateful=stateful)


def _as_batch(name: str, data: Any) -> Batch:
    if not isinstance(data, tuple) or not 2 <= len(data) <= 4:
        raise TypeError(f"fit: {name} must be (x, target) or a Batch, got {type(data).__name__}")
    batch = Batch(*data)
    sizes = {
        part: jnp.shape(leaf)[0] if jnp.ndim(leaf) else None
        for part, value in (("x", batch.x), ("target", batch.target))
        for leaf in jax.tree.leaves(value)
    }
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise ValueError(f"fit: {name} must have the same number of rows in x and target, got {sizes}")
    if 0 in sizes.values():
        raise ValueError(f"fit: {name} has no rows")
    return jax.tree.map(jnp.asarray, batch)


def _rows(batch: Batch) -> int:
    return jax.tree.leaves(batch.x)[0].shape[0]


def epoch_orders(seed: int, first: int, count: int, rows: int) -> np.ndarray:
    """The order of the rows in each of `count` epochs after the `first`: a permutation keyed by (seed, epoch).

    Drawn on the host: a permutation on the device is a sort, which for a small network costs as much as the training.
    """
    orders = np.empty((count, rows), np.int32)
    for number in range(count):
        bits = np.random.Philox(key=np.array([seed % 2**64, first + number], np.uint64))
        orders[number] = np.random.Generator(bits).permutation(rows)
    return orders


@functools.partial(jax.jit, static_argnames="optimizer")
def _start(params: Any, model_state: Any, seed: Any, *, optimizer: optax.GradientTransformation) -> _Progress:
    state = TrainState.create(params, optimizer, model_state=model_state, seed=seed)
    return _Progress(state, jnp.zeros((), jnp.int32), params, jnp.full((), jnp.inf), jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames=("optimizer", "batch_size", "capacity"))
def _run(
    carry: _Progress,
    objective: Any,
    data: Batch,
    held_out: Batch | None,
    orders: Any,
    count: Any,
    patience: Any,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    capacity: int,
) -> tuple[_Progress, tuple[jax.Array, jax.Array]]:
    """Run `count` epochs, fewer if patience ends; the losses of each fill the head of two arrays of `capacity`."""
    step = make_step(objective, optimizer)
    rows = _rows(data)

    def train(state: TrainState, order: Any) -> tuple[TrainState, LossSum]:
        if order is None:
            state, metrics = step(state, data)
            return state, metrics["loss"]

        def one(state: TrainState, numbered: Any) -> tuple[TrainState, LossSum]:
            start, index = numbered
            batch = _select(data, rows, index, None if rows % batch_size == 0 else start + positions < rows)
            state, metrics = step(state, batch)
            return state, metrics["loss"]

        positions = jnp.arange(batch_size)
        order = order.reshape(-1, batch_size)
        state, sums = lax.scan(one, state, (batch_size * jnp.arange(len(order)), order))
        return state, jax.tree.map(jnp.sum, sums)

    def epoch(loop: Any) -> Any:
        number, carry, losses, held_out_losses = loop
        state, sum_ = train(carry.state, None if orders is None else orders[number])
        losses = losses.at[number].set(sum_.mean)
        carry = carry._replace(state=state, epoch=carry.epoch + 1)
        if held_out is not None:
            held_out_loss = _evaluate(objective, state, held_out).mean
            held_out_losses = held_out_losses.at[number].set(held_out_loss)
            better = held_out_loss < carry.best_loss
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), state.params, carry.best_params)
            carry = carry._replace(
                best_params=best,
                best_loss=jnp.where(better, held_out_loss, carry.best_loss),
                best_epoch=jnp.where(better, carry.epoch, carry.best_epoch),
            )
        return number + 1, carry, losses, held_out_losses

    def unfinished(loop: Any) -> Any:
        number, carry, _, _ = loop
        return (number < count) & ((held_out is None) | (carry.epoch - carry.best_epoch < patience))

    curve = jnp.zeros(capacity)
    _, carry, losses, held_out_losses = lax.while_loop(unfinished, epoch, (0, carry, curve, curve))
    return carry, (losses, held_out_losses)


def _select(data: Batch, rows: int, index: Any, present: Any) -> Batch:
    """The rows of one batch, those that are padding masked."""

    def take(leaf: Any) -> Any:
        return leaf.at[index].get(mode="promise_in_bounds") if leaf.ndim and leaf.shape[0] == rows else leaf

    batch = jax.tree.map(take, data)
    if present is None:
        return batch

    def mask(target: Any, where: Any = None) -> Any:
        rows_present = present.reshape(present.shape + (1,) * (target.ndim - 1))
        return rows_present if where is None else where & rows_present

    masked = (batch.target,) if batch.where is None else (batch.target, batch.where)
    return batch._replace(where=jax.tree.map(mask, *masked))


def _evaluate(objective: Any, state: TrainState, data: Batch) -> LossSum:
    """The objective's sum over all rows, a bounded number at a time."""

    def part(batch: Batch) -> LossSum:
        return objective_sum(objective, state.params, batch, state.model_state, state.key, train=False)[0]

    rows = _rows(data)
    if rows <= ROWS_PER_EVALUATION:
        return part(data)

    def one(start: Any) -> LossSum:
        index = start + jnp.arange(ROWS_PER_EVALUATION)
        return part(_select(data, rows, jnp.minimum(index, rows - 1), index < rows))

    return jax.tree.map(jnp.sum, lax.map(one, jnp.arange(0, rows, ROWS_PER_EVALUATION)))
