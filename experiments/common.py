"""What every experiment shares: losses and optimizers by name, the run folder, tables and figures."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jax
import matplotlib
import numpy as np
import optax
import tyro
from jax.sharding import AxisType
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import jaxloss
from jaxloss.train import ProgressLine, RunDir

matplotlib.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 10}
)


@dataclasses.dataclass(frozen=True)
class Session:
    """How an experiment's main fit is watched, saved and spread over devices, as the command line says."""

    devices: int | None = None
    resume: bool = False
    profile: bool = False
    run_dir: Path | None = None
    """The run folder, which several processes share."""

    def settings(self, folder: Path) -> dict[str, Any]:
        """The arguments of `fit`."""
        devices = jax.devices() if jax.process_count() > 1 else jax.devices()[: self.devices or 1]
        many = len(devices) > 1
        mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices) if many else None
        run_dir = RunDir(self.run_dir or folder, resume=self.resume)
        return {"callbacks": [ProgressLine()], "run_dir": run_dir, "sharding": mesh}


ALONE = Session()
"""On one device, from the start."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of every experiment; one adds its own as fields with a docstring, which `--help` shows."""

    out: Path | None = None
    """Run folder; a new one under runs/NAME if not given."""
    session: Annotated[Session, tyro.conf.Suppress] = ALONE


def is_first_process() -> bool:
    """Whether this process is the one that tells and writes."""
    return jax.process_index() == 0


class UserError(Exception):
    """Something the user asked for cannot be done; the message is the whole story."""


def catalogue() -> dict[str, Callable]:
    """The losses of a prediction that is a number, by name."""
    values = vars(jaxloss).items()
    return {name: loss for name, loss in values if getattr(loss, "__module__", "").startswith("jaxloss.losses.")}


def loss_by_name(name: str) -> Callable:
    """A loss of the catalogue."""
    losses = catalogue()
    if name not in losses:
        raise UserError(f"unknown loss {name!r}: one of {', '.join(sorted(losses))}")
    return losses[name]


def optimizer_by_name(name: str, learning_rate: float) -> optax.GradientTransformation:
    """An optax optimizer with the given learning rate."""
    optimizers = {"sgd": optax.sgd, "adam": optax.adam, "adamw": optax.adamw, "lion": optax.lion}
    if name not in optimizers:
        raise UserError(f"unknown optimizer {name!r}: one of {', '.join(optimizers)}")
    return optimizers[name](learning_rate)


def environment() -> dict[str, Any]:
    """Versions, device and commit: what a figure depends on beside its settings."""
    names = ("jax", "jaxlib", "flax", "optax", "chex", "numpy")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": {"jaxloss": jaxloss.__version__} | {name: version(name) for name in names},
        "device": f"{len(jax.devices())} × {device.device_kind} ({device.platform})",
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of this code, with a + if files differ from it; None outside a checkout."""

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def run_folder(name: str, out: Path | None, session: Session) -> Path:
    """A new folder for the run: `out`, which must not hold anything, or one under runs/NAME named by the time."""
    if out is None and (session.resume or jax.process_count() > 1):
        raise UserError("--resume and --distributed need --out FOLDER")
    try:
        if out is not None:
            there = out.exists() and (not out.is_dir() or any(out.iterdir()))
            if there and is_first_process() and not (session.resume and out.is_dir()):
                raise UserError(f"--out {out}: is there already; name a new folder, or --resume to go on in it")
            out.mkdir(parents=True, exist_ok=True)
            return out
        stem = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        for number in range(1000):
            folder = Path("runs") / name / (stem if number == 0 else f"{stem}-{number}")
            if not folder.exists():
                folder.mkdir(parents=True)
                return folder
    except OSError as error:
        raise UserError(f"cannot make the run folder: {error}") from None
    raise UserError(f"runs/{name} holds a thousand runs of this second")


def write_json(path: Path, value: Any) -> None:
    """Write settings or results, readable."""
    path.write_text(json.dumps(value, indent=2, default=str) + "\n")


def shortest(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The shortest time of a few calls in seconds, and what the last gave."""
    times, found = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        found = call()
        times.append(time.perf_counter() - started)
    return min(times), found


def shortest_of_each(calls: dict[str, Callable[[], Any]], rounds: int, seed: int) -> dict[str, float]:
    """The shortest time of each call in seconds, in a new random order each round, after one that compiles."""
    for call in calls.values():
        call()
    order = np.random.default_rng(seed)
    times = [{name: shortest(calls[name], 1)[0] for name in order.permutation(list(calls))} for _ in range(rounds)]
    return {name: min(turn[name] for turn in times) for name in calls}


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers with four significant digits, to the right."""
    table = Table()
    shown = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    for number, column in enumerate(columns):
        words = " ".join([column, *(row[number] for row in shown)]).split()
        table.add_column(column, justify="left" if number == 0 else "right", min_width=max(map(len, words)))
    for row in shown:
        table.add_row(*row)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(title)
    console.print(table)


def figure(columns: int, *, height: float = 3.6) -> tuple[Figure, Any]:
    """A figure with a row of axes, without pyplot's global state."""
    canvas = Figure(figsize=(4.6 * columns, height), layout="constrained")
    return canvas, canvas.subplots(1, columns, squeeze=False)[0]


def print_claims(claims: dict[str, bool]) -> None:
    """Each claim, and whether it holds."""
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")


def require(config: Any, *positive: str, **least: float) -> None:
    """Refuse settings that are not positive, or below the least given; of a list none may be, and it is not empty.

    require(config, "rates", "seeds", rows=20)
    """
    for name in (*positive, *least):
        value = np.asarray(getattr(config, name))
        good = value >= least[name] if name in least else value > 0
        if value.size == 0 or not good.all():
            wanted = f"must be at least {least[name]:g}" if name in least else "must be positive"
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: {wanted}")
