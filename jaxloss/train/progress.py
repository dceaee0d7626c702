"""What a fit tells while it runs: a line on the terminal, and a log in the run folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Progress"]

SECONDS_PER_LINE = 0.3


class Progress:
    """Reports epochs as they are done; silent unless asked for and able to speak."""

    def __init__(self, epochs: int, steps: int, show: bool, run_dir: str | Path | None):
        self.epochs, self.steps = epochs, steps
        self.show = show and sys.stderr.isatty()
        self.seconds = 0.0
        self.epochs_per_call = 1 if self.show else epochs
        self.file = None
        if run_dir is not None:
            Path(run_dir).mkdir(parents=True, exist_ok=True)
            self.file = (Path(run_dir) / "metrics.jsonl").open("a")

    def report(self, first: int, losses: np.ndarray, held_out_losses: np.ndarray | None, seconds: float) -> None:
        """Tell the epochs after `first`, which took `seconds` together."""
        curves = {"loss": losses} | ({} if held_out_losses is None else {"validation_loss": held_out_losses})
        if self.file is not None:
            for number in range(len(losses)):
                line: dict[str, Any] = {"epoch": first + number + 1}
                line |= {name: float(values[number]) for name, values in curves.items()}
                self.file.write(json.dumps(line | {"seconds": seconds / len(losses)}) + "\n")
            self.file.flush()
        if not self.show or not len(losses):
            return
        self.seconds += seconds
        done = first + len(losses)
        rate = done / self.seconds
        self.epochs_per_call = max(1, int(SECONDS_PER_LINE * len(losses) / seconds))
        told = "  ".join(f"{name.replace('_', ' ')} {values[-1]:.4g}" for name, values in curves.items())
        left = (self.epochs - done) / rate
        sys.stderr.write(
            f"\r\x1b[Kepoch {done}/{self.epochs}  {told}  {rate * self.steps:.0f} steps/s  {left:.0f} s left"
        )
        sys.stderr.flush()

    def close(self) -> None:
        """End the line and the log."""
        if self.show:
            sys.stderr.write("\n")
        if self.file is not None:
            self.file.close()
