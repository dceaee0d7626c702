"""`fit`: from a model, a loss and data to trained parameters, watched, saved and resumed on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxloss.train.batch import Batch, as_batch, screen
from jaxloss.train.checks import (
    Settings,
    check_at_least_one,
    check_batch_size,
    check_callbacks,
    check_integer,
    check_optimizer,
    check_params,
    choose_objective,
)
from jaxloss.train.evaluation import evaluated_params
from jaxloss.train.mesh import DATA_AXIS, Placement
from jaxloss.train.objective import Objective, has_statistics
from jaxloss.train.order import Layout, Shuffle
from jaxloss.train.progress import Progress
from jaxloss.train.resume import Saver, Standing, describe
from jaxloss.train.sources import ArraySource, Feed, Pace, Source, Stream, StreamSource, read_mapped
from jaxloss.train.state import TrainState
from jaxloss.train.storage import digest
from jaxloss.train.task import Clock, Plan, Start, Task

__all__ = ["FitResult", "NonFiniteError", "fit"]


class FitResult(NamedTuple):
    """What a fit returns."""

    params: Any
    """The best parameters by validation loss, or the last ones if there is no validation data; those to evaluate, where
    the optimizer steps others: `average_params`, `optax.contrib.schedule_free`, `optax.lookahead`."""
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
    validation: Any = None,
    patience: int | None = None,
    objective: Objective | None = None,
    model_state: Any = None,
    seed: int = 0,
    micro_batches: int = 1,
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
        batch by batch. Or an iterable of such batches, lists of two or dicts included, one pass an epoch: a list, a
        PyTorch `DataLoader`, a grain dataset, a generator; with more to say of it, a `Stream`.
    validation: whole arrays.
    loss: any loss; its settings bound with `Partial`. `objective`, in place of apply and loss, for anything else.
    optimizer: of optax, also one that asks for the loss or searches along a line, such as `optax.lbfgs()`: see
        `make_step`. Where it has other parameters to evaluate than those it steps, as `average_params` does,
        `optax.contrib.schedule_free` and `optax.lookahead` (of `optax.LookaheadParams`), they are validated and
        returned.
    batch_size: rows per step, drawn in a fresh order each epoch that depends on (seed, epoch) alone; the last batch is
        padded, the padding masked. None takes all rows in every step. Of a stream: the rows all batches are padded to,
        None for those of the first. With batch statistics in `model_state` no batch is padded: the last has a shape of
        its own, which is compiled too.
    patience: stop after this many epochs without a better validation loss.
    micro_batches: see `make_step`.
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
        start, if there is none. Refused where data, numbers, or the names of functions, the settings they bind and the
        numbers they close over are not those of the checkpoint; epochs, patience and mesh may differ. The code of
        functions and the batches of a stream are not compared.
    profile: write a profiler trace of the first two calls of the compiled program to run_dir.

    Memory, in copies of the parameters: theirs and the optimizer's, as of the loop by hand, and one of the best where
    there is validation. Of a state below 64 MiB one more copy is held, to which a block of steps is rolled back if
    something in it was not finite; of a larger one none (`guard="gradient"` of `make_step`).

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
    seed = check_integer("fit", "seed", seed)
    settings = Settings(epochs, patience, micro_batches, nonfinite, max_skipped, batch_size, seed)
    settings.check("fit", validated=validation is not None)
    objective = choose_objective("fit", apply, loss, objective, stateful=model_state is not None)
    check_optimizer("fit", optimizer)
    check_params("fit", params)
    callbacks = check_callbacks(callbacks)
    if profile and run_dir is None:
        raise ValueError("fit: profile=True needs a run_dir")
    placement = Placement.of("fit", mesh, shard_params)
    if placement.mesh is not None and DATA_AXIS not in placement.mesh.shape:
        raise ValueError(f"fit: the mesh needs an axis {DATA_AXIS!r}, it has {tuple(placement.mesh.shape)}")
    held_out = None if validation is None else screen("validation", as_batch("validation", validation), nonfinite)
    pads = not has_statistics(model_state)
    feed = as_feed(data, settings, pads)
    saver = Saver(
        run_dir, save_every, keep, resume,
        lambda: {
            "objective": describe(objective), "optimizer": describe(optimizer),
            "data": digest(feed) if isinstance(feed, Batch) else "a stream",
            "validation": None if held_out is None else digest(held_out),
            **{name: describe(value) for name, value in settings.identity.items()},
        },
    )  # fmt: skip
    everywhere = placement._replace(rule=None)
    task = Task(
        everywhere.put_params(objective), {}, None, None if held_out is None else placement.put_rows(held_out),
        optimizer, Plan(micro_batches, placement.mesh, placement.rule),
    )  # fmt: skip
    source = open_source(task, feed, settings, placement, pads)
    start = Start(placement.put_params(params), everywhere.put_params(model_state), np.uint32(seed % 2**32))
    with contextlib.ExitStack() as begun:
        begun.callback(source.close)  # if anything goes wrong
        with placement.activate():
            standing = saver.restore(Standing(source.begin(start), Clock(0, 0), {}))
        begun.pop_all()
    if resume:  # patience may be another one now
        standing = _reconsider(standing, settings, placement)
    log = Progress(epochs, source.task.plan.layout.steps, progress, run_dir, standing.clock.epoch if resume else None)
    loop = _Loop(source, saver, log, placement, callbacks, Pace(log.watches or bool(callbacks)))
    with saver, contextlib.ExitStack() as opened:
        opened.callback(log.close)
        opened.callback(source.close)
        standing = loop.run(standing, epochs, _trace_of_calls(opened, run_dir) if profile else None)
    return _conclude(standing, settings, placement, held_out is not None)


def as_feed(data: Any, settings: Settings, pads: bool) -> Batch | Feed:
    """The data converted, checked and screened: whole arrays, or what gives batches."""
    size = settings.batch_size
    if isinstance(data, tuple | Mapping):
        batch = as_batch("data", data)
        size = check_batch_size("fit", size, batch.rows)
        if not any(isinstance(leaf, np.memmap) for leaf in jax.tree.leaves(batch)):
            return screen("data", batch, settings.nonfinite)
        passes, even = read_mapped(batch, size, settings.seed), batch.rows % size == 0
        return Feed(passes, size, settings.nonfinite, even=even, pads=pads)
    if not isinstance(data, Stream):
        if not isinstance(data, Iterable) or isinstance(data, str | bytes):
            told = type(data).__name__
            raise TypeError(f"fit: data must be (x, target), a Batch or an iterable of them, got {told}")
        data = Stream(data)
    if size is not None:
        check_at_least_one("fit", "batch_size", size)
    return Feed(lambda epoch: iter(data.batches), size, settings.nonfinite, data.epoch_steps, data.keys, pads=pads)


def open_source(task: Task, feed: Batch | Feed, settings: Settings, placement: Placement, pads: bool) -> Source:
    """Where the batches of the task come from."""
    if isinstance(feed, Feed):
        return StreamSource(task, settings.limits, feed, placement)
    layout = Layout.of(feed.rows, settings.batch_size or feed.rows, placement.shards, pads=pads)
    plan = task.plan._replace(layout=layout)
    task = dataclasses.replace(task, data=placement.put_rows(feed), plan=plan)
    shuffle = None if layout.steps == 1 else Shuffle.of(layout, [settings.seed])
    return ArraySource(task, settings.limits, shuffle, placement, settings.epochs)


def _reconsider(standing: Standing, settings: Settings, placement: Placement) -> Standing:
    """Whether a run that is resumed goes on, by the patience of now."""
    run, limits = standing.run, settings.limits
    late = run.best_epoch is not None and standing.clock.epoch - int(run.best_epoch) >= limits.patience
    with placement.activate():
        active = jnp.array(not late and int(run.skipped) < limits.max_skipped)
    return standing._replace(run=run._replace(active=active))


def _trace_of_calls(opened: contextlib.ExitStack, run_dir: Any) -> contextlib.ExitStack:
    """A profiler trace, closed with the stack or before."""
    trace = opened.enter_context(contextlib.ExitStack())
    jax.profiler.start_trace(str(run_dir))
    trace.callback(jax.profiler.stop_trace)
    return trace


class _Loop(NamedTuple):
    """The calls of a fit, and what is told, saved and asked between them."""

    source: Source
    saver: Saver
    log: Progress
    placement: Placement
    callbacks: Sequence[Callable]
    pace: Pace

    def run(self, standing: Standing, epochs: int, trace: contextlib.ExitStack | None) -> Standing:
        """Up to so many epochs; the trace is closed after the second call."""
        going, calls = standing.clock == Clock(0, 0) or bool(standing.run.active), 0
        while standing.clock.epoch < epochs and going:
            (run, clock, history), started = standing, time.perf_counter()
            with self.placement.activate():
                done = self.source.advance(run, clock, self.pace.steps, clock.epoch + 1 if self.callbacks else epochs)
            seconds, calls = time.perf_counter() - started, calls + 1
            if trace is not None and calls == 2:
                trace.close()
            for name, curve in done.curves.items():
                history.setdefault(name, []).append(curve)
            self.log.report(clock.epoch, done.curves, seconds)
            standing, going = Standing(done.run, done.clock, history), done.going
            if done.clock.epoch > clock.epoch:
                going = not self._call_back(standing, done.curves) and going
            self.pace.adapt(seconds)
            if self.pace.watched:
                with self.placement.activate():
                    self.saver.save_if_due(standing, over=standing.clock.epoch >= epochs or not going)
        return standing

    def _call_back(self, standing: Standing, curves: dict[str, np.ndarray]) -> bool:
        """Whether a callback asks to stop."""
        if not self.callbacks:
            return False
        line = {name: float(curve[0]) for name, curve in curves.items()}
        with self.placement.activate():
            state = jax.tree.map(jnp.copy, standing.run.state)  # the next call takes the run's arrays
        state = self.placement.give_back(state)
        answers = [callback(standing.clock.epoch, state, line) for callback in self.callbacks]
        return any(isinstance(answer, bool | np.bool_) and bool(answer) for answer in answers)


def _conclude(standing: Standing, settings: Settings, placement: Placement, validated: bool) -> FitResult:
    """The result of a run; raises if it was given up, warns if updates were skipped."""
    run, clock, curves = standing.run, standing.clock, standing.curves
    for name in ("loss", *(["validation_loss"] if validated else [])):
        curves.setdefault(name, np.zeros(0, np.float32))
    with placement.activate():
        params = run.best_params if validated else evaluated_params(run.state.params, run.state.opt_state)
    params, state = placement.give_back((params, run.state))
    result = FitResult(params, state, curves, int(run.best_epoch) if validated else clock.epoch)
    in_history = clock.position == 0 and "skipped" in curves  # which then tells, at no cost
    if skipped := int(curves["skipped"].sum() if in_history else run.skipped):
        first = int(run.first_skipped)
        told = f"{skipped} updates were skipped because a loss or parameter was not finite, the first at step {first}"
        if skipped >= settings.max_skipped:
            repair = "lower the learning rate, clip gradients, or look at that batch"
            raise NonFiniteError(f"fit: {told}: {repair}; the error's `result` holds the last good state", result)
        warnings.warn(f"fit: {told}", stacklevel=3)
    return result
