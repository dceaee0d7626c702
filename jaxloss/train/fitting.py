"""`fit`: from a model, a loss and data to trained parameters, watched, saved and resumed on the way."""

from __future__ import annotations

import contextlib
import functools
import operator
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxloss.contract import as_pytree, shown
from jaxloss.train.data import Layout, as_batch, count_rows, screen
from jaxloss.train.epochs import Clock, Limits, Run, told_params
from jaxloss.train.objective import Objective, supervised
from jaxloss.train.placement import DATA_AXIS, automatic, returned, spread, spread_orders, spread_params, within
from jaxloss.train.progress import Progress
from jaxloss.train.saving import Saving, configuration
from jaxloss.train.sources import Arrays, Stream, is_whole, iterable_passes, mapped_batches
from jaxloss.train.state import Batch, TrainState
from jaxloss.train.step import check_optimizer, check_params, whole

__all__ = ["FitResult", "NonFiniteError", "fit"]

ALL_STEPS = 2**30
"""No bound on the steps of a call but that of its source."""

SECONDS_PER_CALL = 0.25
"""How long the compiled program runs before the host looks up, where there is something to look after."""


class FitResult(NamedTuple):
    """What a fit returns."""

    params: Any
    """The best parameters by validation loss, or the last ones if there is no validation data; averaged, if asked."""
    state: TrainState
    """The last state."""
    history: dict[str, np.ndarray]
    """Per epoch: "loss", the mean training loss over its batches, without any penalty; "skipped", updates skipped;
    "validation_loss" after it, if there is such data; "penalty", if the objective has one."""
    best_epoch: int
    """The epoch `params` are from, counted from 1; 0 means the initial ones."""


class NonFiniteError(FloatingPointError):
    """Too many updates were skipped because a loss or parameter was not finite; `result` is what there is."""

    def __init__(self, message: str, result: Any):
        super().__init__(message)
        self.result = result


def fit(
    apply: Callable | None,
    params: Any,
    data: Any,
    *,
    loss: Callable | None = None,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int | None = None,
    epoch_steps: int | None = None,
    validation: Any = None,
    patience: int | None = None,
    objective: Objective | None = None,
    model_state: Any = None,
    seed: int = 0,
    micro_batches: int = 1,
    average: float | None = None,
    nonfinite: str = "error",
    max_skipped: int = 10,
    callbacks: Sequence[Callable[[int, TrainState, dict[str, float]], Any]] = (),
    mesh: Mesh | None = None,
    shard_params: Callable[[Any, Any], PartitionSpec] | None = None,
    progress: bool = False,
    run_dir: str | Path | None = None,
    resume: bool = False,
    save_every: float | None = 60.0,
    keep: int = 3,
    profile: bool = False,
) -> FitResult:
    """Minimise a loss over arrays or over a stream of batches.

    apply: `apply(params, x) -> pred`, or its stateful form (`supervised`) when `model_state` is given.
    data: `(x, target)` or a `Batch` of whole arrays, rows along the first axis; those in files (`np.memmap`) are read
        batch by batch. Or an iterable of such batches, one pass an epoch: a list, a grain dataset, a generator.
    validation: whole arrays.
    loss: any loss; its settings bound with `Partial`. `objective`, in place of apply and loss, for anything else.
    optimizer: of optax, also one that asks for the loss or searches along a line, such as `optax.lbfgs()`: see
        `make_step`.
    batch_size: rows per step, drawn in a fresh order each epoch that depends on (seed, epoch) alone; the last batch is
        padded, the padding masked. None takes all rows in every step. Of a stream: the rows all batches are padded to,
        None for those of the first.
    epoch_steps: ends the epochs of a stream after so many batches; it may then be endless, or begin anew meanwhile.
    patience: stop after this many epochs without a better validation loss.
    micro_batches: see `make_step`.
    average: the decay of a moving average of the parameters, such as 0.999, which is validated and returned.
    nonfinite: what to do with rows that hold NaN or infinity and are not masked: "error" or "mask".
    max_skipped: an update that is not finite is skipped; after so many `NonFiniteError` is raised.
    callbacks: functions of (epoch, state, that epoch's line of the history), called after every epoch; the fit ends
        when one returns True.
    mesh: spreads the rows over its axis "data"; the parameters are on every device, or split by the rule
        `shard_params(path, leaf) -> PartitionSpec`. In the fit its axes are Auto, and the result lies on it as it is
        given. Several processes pass the same arrays each, or a part of their own of every batch of a stream.
    progress: draw a progress line on stderr, if that is a terminal.
    run_dir: append a line per epoch to `metrics.jsonl` in this folder, and write checkpoints under it: every
        `save_every` seconds (None: none), at the end, and when SIGTERM asks to stop, after which `Interrupted`, a
        `SystemExit`, is raised. The last `keep` are kept, and the best. Without it no file is written.
    resume: go on from the newest whole checkpoint in run_dir, to the same bytes as if it had never stopped; from the
        start, if there is none. Refused where the functions, optimizer, data or numbers are not those of the
        checkpoint; epochs, patience and mesh may differ. Of a function its code is compared (under one version of
        Python), and what it closes over and reads from its module; not the methods of classes, such as a flax
        model's, nor the code of installed packages, nor a stream.
    profile: write a profiler trace of the first two calls of the compiled program to run_dir.

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
    objective = choose_objective("fit", apply, loss, objective, stateful=model_state is not None)
    held_out = None if validation is None else screen("validation", as_batch("validation", validation), nonfinite)
    check_numbers("fit", epochs, patience, held_out, average, max_skipped, micro_batches)
    limits, seed = limits_of(patience, max_skipped), whole("fit", "seed", seed)
    check_optimizer("fit", optimizer)
    check_params("fit", params)
    callbacks = callbacks or ()
    if not (isinstance(callbacks, Sequence) and all(map(callable, callbacks))):
        raise TypeError(f"fit: callbacks must be a list of functions of (epoch, state, line), got {shown(callbacks)}")
    given, mesh = mesh, automatic("fit", mesh)
    if mesh is not None and DATA_AXIS not in mesh.shape:
        raise ValueError(f"fit: the mesh needs an axis {DATA_AXIS!r}, it has {tuple(mesh.shape)}")
    if mesh is None and shard_params is not None:
        raise ValueError("fit: shard_params needs a mesh")
    objective, model_state = spread_params((objective, model_state), mesh)
    params = spread_params(params, mesh, shard_params)
    shared = (objective, optimizer, None if held_out is None else spread(held_out, mesh), limits, average)
    numbers = {
        "batch_size": batch_size, "epoch_steps": epoch_steps, "seed": seed, "micro_batches": micro_batches,
        "nonfinite": nonfinite,
    }  # fmt: skip
    saving = Saving(
        run_dir, save_every, keep, resume,
        lambda: configuration(
            objective, optimizer, as_batch("data", data) if is_whole(data) else None, held_out, average=average,
            **numbers,
        ),
    )  # fmt: skip
    source = _source((*shared, mesh, shard_params), data, epochs=epochs, mesh=mesh, **numbers)
    with contextlib.ExitStack() as begun:
        begun.callback(source.close)  # if anything goes wrong
        with within(mesh):
            run = source.begin(params, model_state, np.uint32(seed % 2**32))
            run, clock, history = saving.resumed(run, Clock(0, 0), {})
        begun.pop_all()
    if resume:  # patience may be another one now
        ended = held_out is not None and clock.epoch - int(run.best_epoch) >= limits.patience
        with within(mesh):
            run = run._replace(active=jnp.array(not ended and int(run.skipped) < max_skipped))
    log = Progress(epochs, source.plan.layout.steps, progress, run_dir, clock.epoch if resume else None)
    watched = log.watches or bool(callbacks)
    left, going = 32 if watched else ALL_STEPS, not resume or bool(run.active)
    with saving, contextlib.ExitStack() as opened:
        opened.callback(log.close)
        opened.callback(source.close)
        trace = opened.enter_context(contextlib.ExitStack())
        if profile:
            if run_dir is None:
                raise ValueError("fit: profile=True needs a run_dir")
            jax.profiler.start_trace(str(run_dir))
            trace.callback(jax.profiler.stop_trace)
        calls = 0
        while clock.epoch < epochs and going:
            began, started = clock.epoch, time.perf_counter()
            with within(mesh):
                run, clock, going, ended = source.advance(run, clock, left, began + 1 if callbacks else epochs)
            seconds, calls = time.perf_counter() - started, calls + 1
            if calls == 2:
                trace.close()
            for name, curve in ended.items():
                history.setdefault(name, []).append(curve)
            log.report(began, ended, seconds)
            if callbacks and clock.epoch > began:
                line = {name: float(curve[0]) for name, curve in ended.items()}
                with within(mesh):
                    state = jax.tree.map(jnp.copy, run.state)  # the next call takes the run's arrays
                state = returned(state, given)
                told = [callback(clock.epoch, state, line) for callback in callbacks]
                going = going and not any(isinstance(one, bool | np.bool_) and one for one in told)
            if watched:
                left = max(1, min(8 * left, int(left * SECONDS_PER_CALL / seconds), ALL_STEPS))
                with within(mesh):
                    left = saving.look_up(run, clock, history, clock.epoch >= epochs or not going, left)
    return finished(run, clock, history, held_out is not None, max_skipped, mesh, given)


def _source(
    shared: tuple, data: Any, *, epochs: int, batch_size: int | None, epoch_steps: int | None, seed: int,
    micro_batches: int, nonfinite: str, mesh: Mesh | None,
) -> Arrays | Stream:  # fmt: skip
    """Where the batches come from."""
    if is_whole(data):
        if epoch_steps is not None:
            raise ValueError(f"fit: epoch_steps={epoch_steps} is for streams; of arrays an epoch is all rows")
        batch = screen("data", as_batch("data", data), nonfinite)
        rows = check_batch_size(batch_size, batch)
        layout = Layout.of(count_rows(batch), rows, 1 if mesh is None else mesh.shape[DATA_AXIS])
        return Arrays(
            *shared, data=spread(batch, mesh), layout=layout, epochs=epochs, micro_batches=micro_batches,
            orders=None if layout.steps == 1 else functools.partial(layout.orders, seed),
            place_orders=lambda orders: spread_orders(orders, mesh),
        )  # fmt: skip
    even = False
    if isinstance(data, tuple):
        batch = as_batch("data", data)
        batch_size = check_batch_size(batch_size, batch)
        passes, even = mapped_batches(batch, batch_size, seed), count_rows(batch) % batch_size == 0
    elif hasattr(data, "__iter__") and not isinstance(data, str | bytes | Mapping):
        passes = iterable_passes(data)
    else:
        raise TypeError(f"fit: data must be (x, target), a Batch or an iterable of them, got {type(data).__name__}")
    for what, number in (("batch_size", batch_size), ("epoch_steps", epoch_steps)):
        if number is not None and whole("fit", what, number) < 1:
            raise ValueError(f"fit: {what}={number} must be at least 1")
    return Stream(
        *shared, passes=passes, micro_batches=micro_batches, batch_size=batch_size, epoch_steps=epoch_steps,
        nonfinite=nonfinite, even=even,
    )  # fmt: skip


def finished(
    run: Run, clock: Clock, history: dict[str, list[np.ndarray]], validated: bool, limit: int, mesh: Any, given: Any
) -> FitResult:
    """The result of a run; raises if it was given up, warns if updates were skipped."""
    curves = {name: np.concatenate(parts) for name, parts in history.items()}
    for name in ("loss", *(["validation_loss"] if validated else [])):
        curves.setdefault(name, np.zeros(0, np.float32))
    with within(mesh):
        params = run.best_params if validated else told_params(run)
    params, state = returned((params, run.state), given)
    result = FitResult(params, state, curves, int(run.best_epoch) if validated else clock.epoch)
    told_of = clock.position == 0 and "skipped" in curves  # the history then tells, at no cost
    if skipped := int(curves["skipped"].sum() if told_of else run.skipped):
        first = int(run.first_skipped)
        told = f"{skipped} updates were skipped because a loss or parameter was not finite, the first at step {first}"
        if skipped >= limit:
            repair = "lower the learning rate, clip gradients, or look at that batch"
            raise NonFiniteError(f"fit: {told}: {repair}; the error's `result` holds the last good state", result)
        warnings.warn(f"fit: {told}", stacklevel=3)
    return result


def limits_of(patience: int | None, max_skipped: int) -> Limits:
    """When a run ends early, in numbers that a program can take."""
    return Limits(min(ALL_STEPS if patience is None else patience, ALL_STEPS), min(max_skipped, ALL_STEPS))


def choose_objective(name: str, apply: Any, loss: Any, objective: Any, *, stateful: bool) -> Any:
    """The objective, or that of apply and loss."""
    if objective is not None:
        if apply is not None or loss is not None:
            raise TypeError(f"{name}: give either apply and loss, or objective (then apply is None)")
        if not callable(objective):
            raise TypeError(f"{name}: objective must be a function of (params, batch), got {shown(objective)}")
        return as_pytree(objective)
    if apply is None or loss is None:
        raise TypeError(f"{name}: needs apply and loss=, or objective=")
    return supervised(apply, loss, stateful=stateful)


def check_numbers(
    name: str, epochs: Any, patience: Any, held_out: Any, average: Any, max_skipped: Any, micro_batches: Any
) -> None:
    """Raise `ValueError` for a bad number, `TypeError` for what is none."""
    if whole(name, "epochs", epochs) < 0:
        raise ValueError(f"{name}: epochs must not be negative, got {epochs}")
    if patience is not None and (held_out is None or whole(name, "patience", patience) < 1):
        raise ValueError(f"{name}: patience={patience} needs validation data and must be at least 1")
    if average is not None and not (isinstance(average, float | int) and 0 <= average < 1):
        raise ValueError(f"{name}: average={average!r} is a decay, at least 0 and less than 1")
    if whole(name, "max_skipped", max_skipped) < 1:
        raise ValueError(f"{name}: max_skipped={max_skipped} must be at least 1")
    if whole(name, "micro_batches", micro_batches) < 1:
        raise ValueError(f"{name}: micro_batches={micro_batches} must be at least 1")


def check_batch_size(batch_size: Any, batch: Batch) -> int:
    """The batch size, that of all rows for None."""
    rows = count_rows(batch)
    if batch_size is not None and not 1 <= whole("fit", "batch_size", batch_size) <= rows:
        raise ValueError(f"fit: batch_size={batch_size} must be between 1 and the number of rows, {rows}")
    return rows if batch_size is None else operator.index(batch_size)
