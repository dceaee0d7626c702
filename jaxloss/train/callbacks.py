"""What looks on while a fit runs: functions of the user's, a line on the terminal, a log in the run folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxloss.contract import shown
from jaxloss.train.checks import check_at_least_one
from jaxloss.train.state import TrainState

__all__ = ["Audience", "Every", "MetricsLog", "ProgressLine", "Watcher"]

_encode = json.JSONEncoder().encode


@dataclasses.dataclass(frozen=True)
class Every:
    """A callback of `fit` that is called every so many steps instead of after each epoch.

    callback: a function of (step, state, line): the steps taken, the `TrainState`, and the means over the epoch so far,
        by name. The fit ends when it returns True. A learning rate that `optax.inject_hyperparams` has set stands in
        `state.opt_state.hyperparams`.

    To TensorBoard, and to Weights & Biases, after each epoch or every hundred steps:

        writer = tensorboardX.SummaryWriter("runs/1")

        def to_tensorboard(number, state, line):
            for name, value in line.items():
                writer.add_scalar(name, value, number)

        wandb.init(project="study")

        def to_wandb(number, state, line):
            wandb.log(line, step=number)

        fit(..., callbacks=[to_tensorboard, Every(100, to_wandb), ProgressLine()])
    """

    steps: int
    callback: Callable[[int, TrainState, dict[str, float]], Any]

    def __post_init__(self) -> None:
        check_at_least_one("Every", "steps", self.steps)
        if not callable(self.callback):
            raise TypeError(f"Every: callback must be a function of (step, state, line), got {shown(self.callback)}")


class Watcher(Protocol):
    """Hears of epochs as they are done, many at once where they are short, and asks for no stop."""

    def begin(self, epochs: int, steps: int) -> None:
        """Before the first of so many epochs of so many steps, 0 if that is not known."""

    def report(self, first: int, curves: dict[str, np.ndarray], seconds: float) -> None:
        """Tell the epochs ended after `first`; `seconds` have passed since the last report."""

    def close(self) -> None:
        """After the last epoch, whatever ended it."""


class ProgressLine(Watcher):
    """One of the `callbacks` of `fit`: epochs, losses, speed and the time left in a line on stderr, if a terminal."""

    def begin(self, epochs: int, steps: int) -> None:
        """See `Watcher`."""
        self.epochs, self.steps, self.seconds, self.told = epochs, steps, 0.0, 0
        self.show = sys.stderr.isatty() and jax.process_index() == 0

    def report(self, first: int, curves: dict[str, np.ndarray], seconds: float) -> None:
        """See `Watcher`."""
        count = len(next(iter(curves.values()), ()))
        self.seconds, self.told = self.seconds + seconds, self.told + count
        if not (self.show and count):
            return
        rate, done = self.told / self.seconds, first + count
        told = "  ".join(f"{name.replace('_', ' ')} {curve[-1]:.4g}" for name, curve in curves.items() if curve[-1])
        speed = f"{rate * self.steps:.0f} steps/s" if self.steps else f"{rate:.3g} epochs/s"
        left = (self.epochs - done) / rate
        sys.stderr.write(f"\r\x1b[Kepoch {done}/{self.epochs}  {told}  {speed}  {left:.0f} s left")
        sys.stderr.flush()

    def close(self) -> None:
        """See `Watcher`."""
        if self.show:
            sys.stderr.write("\n")


class MetricsLog(Watcher):
    """The log `metrics.jsonl`, a line for each epoch; the first process writes it.

    resumed: the epochs after this one are run again, and so leave the log; None starts anew.
    """

    def __init__(self, folder: Path, resumed: int | None):
        self.path, self.since, self.file = folder / "metrics.jsonl", 0.0, None
        self.writes = jax.process_index() == 0
        if resumed is not None and self.writes and self.path.exists():
            self.path.write_text("".join(self.path.read_text().splitlines(keepends=True)[:resumed]))

    def report(self, first: int, curves: dict[str, np.ndarray], seconds: float) -> None:
        """See `Watcher`."""
        self.since += seconds
        count = len(next(iter(curves.values()), ()))
        if not (self.writes and count):
            return
        if self.file is None:  # not before there is something to write
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a")
        names = ("epoch", *curves, "seconds")
        numbers, shares = range(first + 1, first + count + 1), [self.since / count] * count
        columns = numbers, *(curve.tolist() for curve in curves.values()), shares
        self.file.writelines(_encode(dict(zip(names, line))) + "\n" for line in zip(*columns))
        self.file.flush()
        self.since = 0.0

    def close(self) -> None:
        """See `Watcher`."""
        if self.file is not None:
            self.file.close()


class Audience(NamedTuple):
    """Who looks on: after every epoch, every so many steps, or whenever the host looks up."""

    functions: list[Callable]
    every: list[Every]
    watchers: list[Watcher]

    @classmethod
    def of(cls, callbacks: Any) -> Audience:
        """Those of the argument; raises `TypeError` for anything else."""
        callbacks, special = callbacks or (), (Every, ProgressLine)
        if not isinstance(callbacks, Sequence) or not all(callable(c) or isinstance(c, special) for c in callbacks):
            told = "a list of functions of (epoch, state, line), Every(steps, function) or ProgressLine()"
            raise TypeError(f"fit: callbacks must be {told}, got {shown(callbacks)}")
        functions = [callback for callback in callbacks if not isinstance(callback, special)]
        every, watchers = ([c for c in callbacks if isinstance(c, kind)] for kind in special)
        return cls(functions, every, watchers)  # type: ignore[arg-type]

    @property
    def present(self) -> bool:
        """Whether anyone looks on; the same in every process."""
        return any(self)

    def pace(self, steps: int, taken: int) -> int:
        """How many of these steps until someone is to be called."""
        return min([steps, *(each.steps - taken % each.steps for each in self.every)])

    def due(self, epoch: int | None, step: int | None) -> list[tuple[int, Callable]]:
        """Those to be called when an epoch has ended, or a step, with its number."""
        ended = [] if epoch is None else [(epoch, function) for function in self.functions]
        return ended + ([] if step is None else [(step, e.callback) for e in self.every if step % e.steps == 0])
