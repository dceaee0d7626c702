"""Checkpoints that are whole or absent: written aside and renamed, verified when read, and stepped back past.

folder/step_1200      a checkpoint, as `storage` lays it out
folder/unfinished_…   a save or a removal that was killed; the next save clears it away
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxloss.contract import shown
from jaxloss.train.processes import agreed, gathered
from jaxloss.train.storage import (
    FORMAT,
    described,
    flat,
    flush,
    placed,
    problem_of,
    read_arrays,
    read_manifest,
    seal,
    stored,
    write,
)

__all__ = ["CheckpointError", "Checkpoints"]

STEP, UNFINISHED = "step_", "unfinished_"
DIFFERENCES_SHOWN = 3


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those there are can be read."""


class Checkpoints:
    """The checkpoints of one run, in one folder.

    folder: made by the first save. With many processes, on a file system they share; all of them make the same calls.
    keep: how many of the newest to keep; the best, of lowest `metric`, is kept beside them.
    config: what the run depends on, as JSON: the loss and its settings, the optimizer, the batch size, the seed, the
        `storage.digest` of the data, …, the same in every process. It is stored, and a run with another one is refused.
        None compares nothing.

    A tree is any pytree of arrays, typed random keys, NumPy arrays and Python numbers; of what lies on the hosts, the
    first process's is kept.

    >>> import tempfile
    >>> import jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder, config={"batch_size": 32})
    ...     checkpoints.save(10, {"weight": jnp.arange(3.0), "epoch": 1}, metric=0.5)
    ...     checkpoints.restore({"weight": jnp.zeros(3), "epoch": 0})
    (10, {'epoch': 1, 'weight': Array([0., 1., 2.], dtype=float32)})
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, config: dict[str, Any] | None = None):
        if operator.index(keep) < 1:
            raise ValueError(f"Checkpoints: keep must be at least 1, got {keep}")
        self.folder, self.keep, self.config = Path(folder).absolute(), keep, _as_json(config)
        self.damaged: dict[int, str] = {}
        """The steps `restore` found damaged, and what is wrong with each; the next save removes them."""
        self.notes: Any = None
        """What `save` was given beside the tree `restore` has read."""
        self._last: int | None = None
        self._saves_work = False
        self._metrics: dict[int, float | None] = {}

    @property
    def steps(self) -> list[int]:
        """The steps in the folder that are not known to be damaged, oldest first."""
        found = self.folder.glob(f"{STEP}*") if self.folder.is_dir() else ()
        numbers = [path.name.removeprefix(STEP) for path in found if path.is_dir()]
        return sorted({int(number) for number in numbers if number.isdecimal()} - self.damaged.keys())

    @property
    def best(self) -> int | None:
        """The step of lowest metric; None if no save was given one."""
        steps = self.steps
        for step in steps:
            if step not in self._metrics:
                self._metrics[step] = read_manifest(self._at(step))[1].get("metric")
        metrics = {step: metric for step in steps if (metric := self._metrics[step]) is not None}
        return min(metrics, key=metrics.__getitem__, default=None)

    def save(self, step: int, tree: Any, *, metric: float | None = None, notes: Any = None) -> None:
        """Write the tree as of this step; on return it is on the disk, whole.

        metric: what `best` compares, lower is better; one that is not finite is never the best.
        notes: anything JSON can hold, found in `notes` after `restore`: what has no fixed shape, such as a history.

        A disk that fails after a save that worked is a warning: training goes on. If the next save fails too, or the
        first one, it is a `CheckpointError`. To save again the step last saved or restored does nothing.
        """
        step = operator.index(step)
        if step == self._last:
            return
        arrays, leaves = stored(tree)
        metric = None if metric is None or not math.isfinite(metric) else float(metric)
        problem = self._write(
            step, arrays, {"step": step, "metric": metric, "config": self.config, "notes": notes, "leaves": leaves}
        )
        if not problem:
            self._last, self._saves_work = step, True
            return
        told = f"checkpoint {STEP}{step} could not be saved in {self.folder}: {problem}"
        if not self._saves_work:
            raise CheckpointError(told)
        self._saves_work = False
        warnings.warn(f"{told}; training goes on, and stops if the next save fails too", stacklevel=2)

    def restore(self, like: Any, *, step: int | None = None) -> tuple[int, Any] | None:
        """(step, tree) of the newest checkpoint that is whole; None if the folder holds none.

        like: a tree of the structure saved; its arrays, or `jax.ShapeDtypeStruct`s, say dtype, shape and sharding,
            which may be on other devices than those saved from. NumPy arrays and Python numbers come back as such.
        step: this one, and no other.

        A damaged checkpoint is told in a warning, and the one before is taken. Raises `CheckpointError` if all are
        damaged, and `ValueError` if the configuration, the structure, a dtype or a shape is not the one saved.

        Each process holds the whole tree in host memory while it is verified.
        """
        wanted = {path: described(path, leaf) for path, leaf in flat(like).items()}
        steps = json.loads(gathered(json.dumps(self.steps))[0])  # the first process's: all must take the same one
        if step is not None:
            if step not in steps:
                raise CheckpointError(f"no checkpoint {STEP}{step} in {self.folder}: it holds steps {steps}")
            steps = [step]
        problems = {}
        for candidate in reversed(steps):
            problem, tree = self._read(candidate, like, wanted)
            if not problem:
                self._last = candidate
                return candidate, tree
            if step is None and json.loads(gathered(json.dumps(not self._at(candidate).exists()))[0]):
                return self.restore(like)  # it is not damaged: another run has gone on meanwhile, and removed it
            problems[candidate] = self.damaged[candidate] = problem
            if len(problems) < len(steps):
                told = f"checkpoint {self._at(candidate)} is damaged and passed over: {problem}"
                warnings.warn(told, stacklevel=2)
        if problems:
            told = "; ".join(f"{STEP}{number}: {problem}" for number, problem in problems.items())
            raise CheckpointError(f"no checkpoint in {self.folder} can be restored: {told}")
        return None

    def _at(self, step: int) -> Path:
        return self.folder / f"{STEP}{step}"

    def _read(self, step: int, like: Any, wanted: dict[str, str]) -> tuple[str, Any]:
        """(what is wrong in any process, or "", and the tree)."""
        problem, content = read_manifest(self._at(step))
        if not problem and content["step"] != step:
            problem = f"it holds step {content['step']}"
        if problem := agreed(problem):
            return problem, None
        if content["format"] != FORMAT:
            raise CheckpointError(f"checkpoint {self._at(step)} is of format {content['format']}, this reads {FORMAT}")
        saved = content["config"]
        if None not in (saved, self.config) and (differences := _differences(_dotted(saved), _dotted(self.config))):
            repair = "restore the configuration it was saved with, or start in another folder"
            raise ValueError(f"checkpoint {self._at(step)} is of another run: {differences}; {repair}")
        entries = {entry["path"]: entry for entry in content["leaves"]}
        if differences := _differences({path: entry["leaf"] for path, entry in entries.items()}, wanted):
            raise ValueError(f"checkpoint {self._at(step)} is of another tree, and nothing is cast: {differences}")
        arrays: dict[str, Any] = {}
        if problem := agreed(problem_of(lambda: arrays.update(read_arrays(self._at(step), content)))):
            return problem, None
        leaves = [placed(arrays[path], leaf, entries[path].get("key")) for path, leaf in flat(like).items()]
        self.notes = content.get("notes")
        return "", jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _write(self, step: int, arrays: list[Any], content: dict[str, Any]) -> str:
        """Write all or nothing; what went wrong in any process, or ""."""
        aside = self.folder / f"{UNFINISHED}{STEP}{step}"

        def begin() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_held(self.folder))
            newest = max(self.steps, default=-1)
            if newest >= step:
                raise FileExistsError(f"{STEP}{newest} is there already, of an earlier run or of one going on")
            for leftover in self.folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            aside.mkdir()

        def end() -> None:
            seal(aside, content)
            self._remove(step)  # if it is there, it is damaged
            aside.rename(self._at(step))
            flush(self.folder)
            self._metrics[step] = content["metric"]
            self.damaged.pop(step, None)
            kept = {*self.steps[-self.keep :], self.best}
            for old in {*self.damaged, *self.steps} - kept:
                self._remove(old)

        first = jax.process_index() == 0
        with contextlib.ExitStack() as held:
            problem = agreed(problem_of(begin) if first else "")
            problem = problem or agreed(problem_of(lambda: write(aside, arrays)))
            problem = problem or agreed(problem_of(end) if first else "")
            if first and problem:
                shutil.rmtree(aside, ignore_errors=True)
        if not problem:
            self.damaged.clear()
        return problem

    def _remove(self, step: int) -> None:
        """Out of the list of steps in one move, and then off the disk; what cannot be removed does no harm."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self._at(step).rename(self.folder / f"{UNFINISHED}removal_of_{step}"))


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder against other savers, so that what is unfinished in it belongs to none alive."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError, OSError):  # not every system and not every file system has such locks
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _as_json(config: Any) -> Any:
    """The configuration as it will be read back."""
    try:
        if config is not None and not isinstance(config, dict):
            raise TypeError(f"got {type(config).__name__}")
        return json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        raise TypeError(f"Checkpoints: config must be a dict of what JSON can hold: {error}") from None


def _dotted(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix("."): config}
    return {name: value for key, inner in config.items() for name, value in _dotted(inner, f"{prefix}{key}.").items()}


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, the first few; "" if there are none."""

    def told(values: dict[str, Any], name: str) -> str:
        value = values.get(name, "absent")
        return " ".join(value.split()) if isinstance(value, str) else shown(value)

    def same(name: str) -> bool:
        if name not in saved or name not in now:
            return False
        return saved[name] == now[name] or repr(saved[name]) == repr(now[name])  # NaN is what NaN was

    names = [name for name in {**saved, **now} if not same(name)]
    words = [f"{name}: {told(saved, name)} in the checkpoint, {told(now, name)} now" for name in names]
    more = [f"and {len(names) - DIFFERENCES_SHOWN} more"] if len(names) > DIFFERENCES_SHOWN else []
    return "; ".join(words[:DIFFERENCES_SHOWN] + more)
