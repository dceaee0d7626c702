"""The checkpoints of a fit: when they are due, what they hold, and how a run goes on from them."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import loss_name, unbound
from jaxloss.train.checkpoint import CheckpointError, Checkpoints
from jaxloss.train.code import code_digest, defaults_of, globals_of, is_ours, is_own
from jaxloss.train.epochs import Clock, Run
from jaxloss.train.interrupt import Interruption
from jaxloss.train.processes import gathered
from jaxloss.train.storage import digest

__all__ = ["Interrupted", "Saving", "fingerprint"]

History = dict[str, list[np.ndarray]]


class Interrupted(SystemExit):
    """The fit was asked to stop by a signal, saved itself, and would end the process with the usual status."""


class Saving:
    """The checkpoints of a fit, or nothing at all without a folder.

    every: seconds between two checkpoints; one is also written at the end, and when a signal asks to stop.
    config: what the run depends on; one that resumes must have the same.
    """

    def __init__(self, run_dir: str | Path | None, every: float | None, keep: int, resume: bool, config: Any):
        self.checkpoints = None
        if run_dir is not None and every is not None:
            self.checkpoints = Checkpoints(Path(run_dir) / "checkpoints", keep=keep, config=config())
            if self.checkpoints.steps and not resume:
                raise ValueError(
                    f"fit: {run_dir} holds checkpoints of an earlier run: go on with it by resume=True, or choose "
                    "another run_dir"
                )
        elif resume:
            raise ValueError("fit: resume=True needs a run_dir, and save_every a number of seconds")
        self.every, self.saved = every, time.monotonic()
        self.interruption = Interruption()

    def resumed(self, run: Run, clock: Clock, history: History) -> tuple[Run, Clock, History]:
        """Where the newest whole checkpoint stands; the start, if there is none."""
        found = self.checkpoints.restore(self._tree(run, clock)) if self.checkpoints is not None else None
        if self.checkpoints is None:
            return run, clock, history
        if found is None:
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)  # a bad folder is told before the work
            return run, clock, history
        tree = found[1]
        saved = self.checkpoints.notes["history"]
        history = {name: [np.asarray(values, dtype)] for name, (dtype, values) in saved.items()}
        return tree["run"], Clock(*tree["clock"]), history

    @staticmethod
    def _tree(run: Run, clock: Clock) -> dict[str, Any]:
        return {"run": run, "clock": [int(clock.epoch), int(clock.position)]}

    def look_up(self, run: Run, clock: Clock, history: History, over: bool, left: int) -> int:
        """Save if it is time to; raise `Interrupted` after a signal. Returns how many steps to run next.

        All processes do what the clock of the first one says, and stop if any is asked to.
        """
        if self.checkpoints is None:
            return left if jax.process_count() == 1 else int(gathered(str(left))[0])
        due = over or time.monotonic() - self.saved >= (self.every or 0)
        told = [json.loads(text) for text in gathered(json.dumps([left, due, self.interruption.received]))]
        (left, due, _), stopped = told[0], [signal for *_, signal in told if signal is not None]
        if due or stopped:
            curves = {name: np.concatenate(parts) for name, parts in history.items()}
            metric = curves["validation_loss"][-1:].tolist() if "validation_loss" in curves else []
            notes = {"history": {name: (str(curve.dtype), curve.tolist()) for name, curve in curves.items()}}
            step = int(run.state.step)
            self.checkpoints.save(step, self._tree(run, clock), metric=metric[0] if metric else None, notes=notes)
            self.saved = time.monotonic()
            if stopped and not over:
                place = self.checkpoints.folder
                print(f"fit: stopped by a signal after step {step}, saved in {place}: resume=True", file=sys.stderr)
                raise Interrupted(128 + stopped[0])
        return left

    def __enter__(self) -> Saving:
        if self.checkpoints is not None:
            self.interruption.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.checkpoints is not None:
            self.interruption.__exit__(kind, error, trace)
        lost = isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1
        if lost and not isinstance(error, CheckpointError):
            repair = "start all processes again" + ("" if self.checkpoints is None else ", with resume=True")
            raise RuntimeError(f"fit: another process is gone, or cannot be reached: {repair}") from error


def configuration(objective: Any, optimizer: Any, data: Any, held_out: Any, **settings: Any) -> dict[str, Any]:
    """What a run depends on, as JSON can hold it."""
    return {
        "objective": fingerprint(objective),
        "optimizer": fingerprint(optimizer),
        "data": "a stream" if data is None else digest(data),
        "validation": None if held_out is None else digest(held_out),
        **{name: fingerprint(value) for name, value in settings.items()},
    }


def fingerprint(value: Any, within: tuple[int, ...] = (), read: set[int] | None = None) -> Any:
    """A function, with all it binds and closes over, by names and numbers that are the same in every process.

    Tells apart two learning rates, which are hidden in the closures of an optimizer, and two bodies of a function, with
    the functions and numbers it reads from its module; not those of installed packages, nor the methods of a class.

    >>> fingerprint(functools.partial(max, default=3))
    {'function': 'max', 'default': 3}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in within:
        return "itself"
    read = set() if read is None else read
    inner = functools.partial(fingerprint, within=(*within, id(value)), read=read)
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
    if not is_ours(function):
        code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
        for name, cell in zip(getattr(code, "co_freevars", ()), cells):
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                told[name] = inner(cell.cell_contents)
    if not is_own(function):
        wrapped = getattr(function, "__wrapped__", None)  # by `jit` or `pointwise`
        return told if wrapped is None or is_ours(wrapped) else told | {"wraps": inner(wrapped)}
    values = defaults_of(function)
    if id(function.__code__) not in read:
        read.add(id(function.__code__))
        told["its code"] = code_digest(function)
        values = globals_of(function) | values
    return told | {name: inner(value) for name, value in values.items() if name not in told}
