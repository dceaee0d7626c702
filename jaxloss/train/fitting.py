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
from jax.sharding import Mesh

from jaxloss.train.batch import Batch, as_batch, screen
from jaxloss.train.callbacks import Audience, Every, MetricsLog, ProgressLine
from jaxloss.train.checks import (
    Settings,
    check_at_least_one,
    check_batch_size,
    check_integer,
    check_optimizer,
    check_params,
    choose_objective,
    read_batch_size,
    recall_loss,
)
from jaxloss.train.compiled import means
from jaxloss.train.evaluation import evaluated_params
from jaxloss.train.mesh import DATA_AXIS, Placement, Sharding
from jaxloss.train.objective import has_statistics
from jaxloss.train.order import Layout, Shuffle
from jaxloss.train.resume import RunDir, Saver, Standing, describe
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
    apply: Callable,
    params: Any,
    data: Any,
    *,
    loss: Callable | None = None,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int | tuple[int, int] | None = None,
    validation: Any = None,
    patience: int | None = None,
    model_state: Any = None,
    seed: int = 0,
    nonfinite: str = "error",
    max_skipped: int = 10,
    callbacks: Sequence[Callable[[int, TrainState, dict[str, float]], Any] | Every | ProgressLine] = (),
    run_dir: str | Path | RunDir | None = None,
    sharding: Mesh | Sharding | None = None,
) -> FitResult:
    """Minimise a loss over arrays or over a stream of batches.

    apply: `apply(params, x) -> pred`, or its stateful form (`supervised`) when `model_state` is given.
    data: `(x, target)` or a `Batch` of whole arrays, rows along the first axis; those in files (`np.memmap`) are read
        batch by batch. Or an iterable of such batches, lists of two or dicts included, one pass an epoch: a list, a
        PyTorch `DataLoader`, a grain dataset, a generator; with more to say of it, a `Stream`.
    validation: whole arrays.
    loss: any loss; its settings bound with `Partial`. Without one the first argument is an objective, `(params, batch)
        -> LossSum`, such as `supervised` and `penalized` give.
    optimizer: of optax, also one that asks for the loss or searches along a line, such as `optax.lbfgs()`: see
        `make_step`. Where it has other parameters to evaluate than those it steps, as `average_params` does,
        `optax.contrib.schedule_free` and `optax.lookahead` (of `optax.LookaheadParams`), they are validated and
        returned.
    batch_size: rows per step, drawn in a fresh order each epoch that depends on (seed, epoch) alone; the last batch is
        padded, the padding masked. None takes all rows in every step. Of a stream: the rows all batches are padded to,
        None for those of the first. A pair (parts, rows) makes a step of so many micro-batches of `rows`, whose
        gradients add: the memory of one, and the gradient of all. With batch statistics in `model_state` no batch is
        padded: the last has a shape of its own, which is compiled too.
    patience: stop after this many epochs without a better validation loss.
    nonfinite: what to do with rows that hold NaN or infinity and are not masked: "error" or "mask".
    max_skipped: an update that is not finite is skipped; after so many `NonFiniteError` is raised.
    callbacks: functions of (epoch, state, that epoch's line of the history), called after every epoch; the fit ends
        when one returns True. `Every(steps, callback)` for another pace, `ProgressLine()` for a line on the terminal.
    run_dir: the folder to which a log and checkpoints are written, every minute and at the end; a `RunDir` says more,
        and goes on with an earlier run. Without one no file is written.
    sharding: a mesh, over whose axis "data" the rows are split; of a `Sharding` the parameters are, too. In the fit its
        axes are Auto, and the result lies on it as it is given. Several processes pass the same arrays each, or a part
        of their own of every batch of a stream.

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
    size, micro_batches = read_batch_size("fit", batch_size)
    settings = Settings(epochs, patience, micro_batches, nonfinite, max_skipped, size, seed)
    settings.check("fit", validated=validation is not None)
    objective = choose_objective("fit", apply, loss, stateful=model_state is not None)
    check_optimizer("fit", optimizer)
    check_params("fit", params)
    audience = Audience.of(callbacks)
    folder = RunDir(run_dir) if isinstance(run_dir, str | Path) else run_dir
    placement = Placement.of("fit", sharding)
    if placement.mesh is not None and DATA_AXIS not in placement.mesh.shape:
        raise ValueError(f"fit: the mesh needs an axis {DATA_AXIS!r}, it has {tuple(placement.mesh.shape)}")
    held_out = None if validation is None else screen("validation", as_batch("validation", validation), nonfinite)
    pads = not has_statistics(model_state)
    feed = as_feed(data, settings, pads)
    saver = Saver(
        folder,
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
            with recall_loss("fit", loss):
                run = source.begin(start)
            standing = saver.restore(Standing(run, Clock(0, 0), {}))
        begun.pop_all()
    resumed = folder is not None and folder.resume
    if resumed:  # patience may be another one now
        standing = _reconsider(standing, settings, placement)
    if folder is not None:
        audience.watchers.append(MetricsLog(Path(folder.path), standing.clock.epoch if resumed else None))
    with saver, contextlib.ExitStack() as opened:
        opened.callback(source.close)
        for watcher in audience.watchers:
            watcher.begin(epochs, source.task.plan.layout.steps)
            opened.callback(watcher.close)
        standing = _Loop(source, saver, placement, audience, Pace(audience.present)).run(standing, epochs)
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


class _Loop(NamedTuple):
    """The calls of a fit, and what is told, saved and asked between them."""

    source: Source
    saver: Saver
    placement: Placement
    audience: Audience
    pace: Pace

    def run(self, standing: Standing, epochs: int) -> Standing:
        """Up to so many epochs."""
        audience, going = self.audience, standing.clock == Clock(0, 0) or bool(standing.run.active)
        taken = int(standing.run.state.step) if audience.every else 0
        while standing.clock.epoch < epochs and going:
            (run, clock, history), started = standing, time.perf_counter()
            end = clock.epoch + 1 if audience.functions else epochs
            steps = audience.pace(self.pace.steps, taken)
            with self.placement.activate():
                done = self.source.advance(run, clock, steps, end)
            seconds = time.perf_counter() - started
            for name, curve in done.curves.items():
                history.setdefault(name, []).append(curve)
            for watcher in audience.watchers:
                watcher.report(clock.epoch, done.curves, seconds)
            standing, before = Standing(done.run, done.clock, history), taken
            taken = int(done.run.state.step) if audience.every else 0
            due = audience.due(
                done.clock.epoch if done.clock.epoch > clock.epoch else None, taken if taken > before else None
            )
            going = not (due and self._call_back(due, standing, done.curves)) and done.going
            self.pace.adapt(seconds)
            if self.pace.watched:
                with self.placement.activate():
                    self.saver.save_if_due(standing, over=standing.clock.epoch >= epochs or not going)
        return standing

    def _call_back(self, due: list[tuple[int, Callable]], standing: Standing, curves: dict[str, np.ndarray]) -> bool:
        """Whether a callback asks to stop. The line is that of the epoch ended, else the means of the epoch so far."""
        ended = {name: curve[-1] for name, curve in curves.items() if len(curve)}
        values = means(standing.run.sums) if standing.clock.position else ended
        line = {name: float(value) for name, value in values.items()}
        with self.placement.activate():
            state = jax.tree.map(jnp.copy, standing.run.state)  # the next call takes the run's arrays
        state = self.placement.give_back(state)
        answers = [callback(number, state, line) for number, callback in due]
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
