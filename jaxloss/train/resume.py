"""The checkpoints of a fit: when they are due, what they hold, and how a run goes on from them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import loss_name, unbound
from jaxloss.train.checkpoint import CheckpointError, Checkpoints
from jaxloss.train.interrupt import Interruption
from jaxloss.train.processes import gathered
from jaxloss.train.storage import digest
from jaxloss.train.task import Clock, Run

__all__ = ["Interrupted", "RunDir", "Saver", "Standing", "describe"]


class Interrupted(SystemExit):
    """The fit was asked to stop by a signal, saved itself, and would end the process with the usual status."""


class Standing(NamedTuple):
    """Where a fit stands: all that a checkpoint of it holds."""

    run: Run
    clock: Clock
    history: dict[str, list[np.ndarray]]
    """The curves in the parts in which they were told."""

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """The history in one piece."""
        return {name: np.concatenate(parts) for name, parts in self.history.items()}


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The folder of a run: a line for each epoch in `metrics.jsonl`, and checkpoints.

    save_every: seconds between two checkpoints; one more is written at the end, and when SIGTERM asks to stop, after
        which `Interrupted`, a `SystemExit`, is raised. None: none is written.
    keep: how many of the newest to keep; the best is kept beside them.
    resume: go on from the newest whole checkpoint, to the same bytes as if the run had never stopped; from the start,
        if there is none. Refused where data, numbers, or the names of functions, the settings they bind and the numbers
        they close over are not those of the checkpoint; epochs, patience and devices may differ. The code of functions
        and the batches of a stream are not compared.
    """

    path: str | Path
    save_every: float | None = 60.0
    keep: int = 3
    resume: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.save_every is None:
            raise ValueError("RunDir: resume=True needs checkpoints: give save_every a number of seconds")


class Saver:
    """The checkpoints of a fit, or nothing at all without a folder.

    config: tells what the run depends on; one that resumes must have the same.
    """

    def __init__(self, run_dir: RunDir | None, config: Callable[[], dict]):
        self.checkpoints, every = None, None if run_dir is None else run_dir.save_every
        if run_dir is not None and every is not None:
            self.checkpoints = Checkpoints(Path(run_dir.path) / "checkpoints", keep=run_dir.keep, config=config())
            if self.checkpoints.steps and not run_dir.resume:
                raise ValueError(
                    f"fit: {run_dir.path} holds checkpoints of an earlier run: go on with it by "
                    f"run_dir=RunDir({str(run_dir.path)!r}, resume=True), or choose another folder"
                )
        self.every, self.saved = every, time.monotonic()
        self.interruption = Interruption()

    def restore(self, start: Standing) -> Standing:
        """Where the newest whole checkpoint stands; the start, if there is none."""
        if self.checkpoints is None:
            return start
        found = self.checkpoints.restore(_tree_of(start))
        if found is None:
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)  # a bad folder is told before the work
            return start
        saved = self.checkpoints.notes["history"]
        history = {name: [np.asarray(values, dtype)] for name, (dtype, values) in saved.items()}
        return Standing(found[1]["run"], Clock(*found[1]["clock"]), history)

    def save_if_due(self, standing: Standing, over: bool) -> None:
        """Save if it is time to, or all is over; after a signal save and raise `Interrupted`.

        All processes do what the clock of the first one says, and stop if any is asked to.
        """
        if self.checkpoints is None:
            return
        due = over or time.monotonic() - self.saved >= (self.every or 0)
        told = [json.loads(text) for text in gathered(json.dumps([due, self.interruption.received]))]
        due, stopped = told[0][0], [signal for _, signal in told if signal is not None]
        if not (due or stopped):
            return
        curves, step = standing.curves, int(standing.run.state.step)
        metric = curves["validation_loss"][-1:].tolist() if "validation_loss" in curves else []
        notes = {"history": {name: (str(curve.dtype), curve.tolist()) for name, curve in curves.items()}}
        self.checkpoints.save(step, _tree_of(standing), metric=metric[0] if metric else None, notes=notes)
        self.saved = time.monotonic()
        if stopped and not over:
            told = f"saved in {self.checkpoints.folder}: go on by RunDir(…, resume=True)"
            print(f"fit: stopped by a signal after step {step}, {told}", file=sys.stderr)
            raise Interrupted(128 + stopped[0])

    def __enter__(self) -> Saver:
        if self.checkpoints is not None:
            self.interruption.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.checkpoints is not None:
            self.interruption.__exit__(kind, error, trace)
        lost = isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1
        if lost and not isinstance(error, CheckpointError):
            repair = "start all processes again" + ("" if self.checkpoints is None else ", with RunDir(…, resume=True)")
            raise RuntimeError(f"fit: another process is gone, or cannot be reached: {repair}") from error


def _tree_of(standing: Standing) -> dict[str, Any]:
    """What is saved as arrays; the history, which has no fixed shape, goes into the notes."""
    return {"run": standing.run, "clock": [int(number) for number in standing.clock]}


def describe(value: Any, within: tuple[int, ...] = ()) -> Any:
    """A function with all it binds and closes over, or data, by names and numbers that JSON can hold.

    They are the same in every process, and tell apart two learning rates, which are hidden in the closures of an
    optimizer, and two settings that are bound; not two bodies of a function of the same name.

    >>> describe(functools.partial(max, default=3))
    {'function': 'max', 'default': 3}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in within:
        return "itself"
    inner = functools.partial(describe, within=(*within, id(value)))
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)  # type: ignore[arg-type]
        short = value.size <= 8 and not jnp.issubdtype(value.dtype, jnp.complexfloating)
        return np.asarray(value).tolist() if short else digest(value)
    if isinstance(value, list | tuple):
        return {name: inner(v) for name, v in zip(getattr(value, "_fields", map(str, range(len(value)))), value)}
    if isinstance(value, dict):
        return {str(key): inner(v) for key, v in value.items()}
    function, bound = unbound(value)
    told: dict[str, Any] = {"function": loss_name(value) if hasattr(function, "__name__") else type(function).__name__}
    if isinstance(value, functools.partial) and value.args:
        told["of"] = inner(value.args)
    told |= {name: inner(v) for name, v in bound.items()}
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        fields = {field.name: getattr(function, field.name) for field in dataclasses.fields(function)}
        told |= {name: v for name, v in fields.items() if isinstance(v, bool | int | float | str)}
    while hasattr(function, "__wrapped__") and not hasattr(function, "__code__"):  # `jit` hides the closure
        function = getattr(function, "__wrapped__")  # noqa: B009
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    for name, cell in zip(getattr(code, "co_freevars", ()), cells):
        with contextlib.suppress(ValueError):  # a cell that is not filled yet
            told[name] = inner(cell.cell_contents)
    return told
