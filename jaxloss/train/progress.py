"""What a fit tells while it runs: a line on the terminal, and a log in the run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np

__all__ = ["Progress"]

_encode = json.JSONEncoder().encode


class Progress:
    """Reports epochs as they are done; silent unless asked for and able to speak."""

    def __init__(self, epochs: int, steps: int, show: bool, run_dir: str | Path | None, resumed: int | None = None):
        self.epochs, self.steps = epochs, steps
        self.show = show and sys.stderr.isatty()
        self.seconds, self.since, self.told = 0.0, 0.0, 0
        first = jax.process_index() == 0
        self.show = self.show and first
        self.path = None if run_dir is None or not first else Path(run_dir) / "metrics.jsonl"
        self.watches = show or run_dir is not None
        """Whether it wants to hear of epochs while they pass; the same in every process."""
        if resumed is not None and self.path is not None and self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            self.path.write_text("".join(lines[:resumed]))  # the epochs after are run again
        self.file = None

    def report(self, first: int, curves: dict[str, np.ndarray], seconds: float) -> None:
        """Tell the epochs ended after `first`; `seconds` have passed since the last report."""
        self.seconds, self.since = self.seconds + seconds, self.since + seconds
        count = len(next(iter(curves.values()), ()))
        if not count:
            return
        if self.path is not None:
            if self.file is None:  # not before there is something to write
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("a")
            names = ("epoch", *curves, "seconds")
            numbers, shares = range(first + 1, first + count + 1), [self.since / count] * count
            columns = numbers, *(curve.tolist() for curve in curves.values()), shares
            self.file.writelines(_encode(dict(zip(names, line))) + "\n" for line in zip(*columns))
            self.file.flush()
        self.since, self.told = 0.0, self.told + count
        if not self.show:
            return
        rate, done = self.told / self.seconds, first + count
        told = "  ".join(f"{name.replace('_', ' ')} {curve[-1]:.4g}" for name, curve in curves.items() if curve[-1])
        speed = f"{rate * self.steps:.0f} steps/s" if self.steps else f"{rate:.3g} epochs/s"
        left = (self.epochs - done) / rate
        sys.stderr.write(f"\r\x1b[Kepoch {done}/{self.epochs}  {told}  {speed}  {left:.0f} s left")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line and the log."""
        if self.show:
            sys.stderr.write("\n")
        if self.file is not None:
            self.file.close()
