"""What every experiment shares: losses and optimizers by name, the run folder, tables and figures."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jax.sharding import AxisType
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import jaxloss
from jaxloss.train import Batch, TrainState, fit_many, make_step

matplotlib.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 10}
)


@dataclasses.dataclass(frozen=True)
class Session:
    """What the command line says of every experiment."""

    devices: int | None = None
    resume: bool = False
    profile: bool = False
    run_dir: Path | None = None
    """What `run_folder` has chosen."""


session = Session()


def watched(folder: Path) -> dict[str, Any]:
    """How an experiment's main fit is watched, saved and spread over devices."""
    devices = jax.devices() if jax.process_count() > 1 else jax.devices()[: session.devices or 1]
    mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices) if len(devices) > 1 else None
    where = {"run_dir": session.run_dir or folder, "mesh": mesh}
    return {"progress": True, "resume": session.resume, "profile": session.profile, **where}


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


def train_at_rates(
    objective: Any, params: Any, batch: Batch, optimizer: Callable, rates: Sequence[float], steps: int
) -> tuple[Any, np.ndarray]:
    """Full-batch training at several learning rates at once: last parameters, and losses of shape (rates, steps).

    objective: as `supervised` makes it. optimizer: from a learning rate to an optax optimizer.
    The loss of a step is that before it.
    """

    params, losses = _train_at_rates(
        objective, params, batch, jnp.asarray(rates, jnp.float32), optimizer=optimizer, steps=steps
    )
    return params, np.asarray(losses)


@functools.partial(jax.jit, static_argnames=("optimizer", "steps"))
def _train_at_rates(objective: Any, params: Any, batch: Batch, rates: Any, *, optimizer: Callable, steps: int) -> Any:
    def train(rate: Any) -> Any:
        chosen = optimizer(rate)
        step = make_step(objective, chosen, guard=False)  # a rate that diverges is to be seen

        def one(state: TrainState, _: Any) -> Any:
            state, metrics = step(state, batch)
            return state, metrics["loss"].mean

        state, losses = jax.lax.scan(one, TrainState.create(params, chosen), None, length=steps)
        return state.params, losses

    return jax.vmap(train)(rates)


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


def run_folder(name: str, out: Path | None) -> Path:
    """A new folder for the run: `out`, which must not hold anything, or one under runs/NAME named by the time."""
    global session
    folder = _run_folder(name, out)
    session = dataclasses.replace(session, run_dir=folder)
    return folder


def _run_folder(name: str, out: Path | None) -> Path:
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


def as_settings(config: Any) -> dict[str, Any]:
    """The settings of a config dataclass."""
    return dataclasses.asdict(config)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers with four significant digits, to the right."""
    table = Table()
    shown = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    for number, column in enumerate(columns):
        words = " ".join([column, *(row[number] for row in shown)]).split()
        table.add_column(column, justify="left" if number == 0 else "right", min_width=max(map(len, words)))
    for row in shown:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(title)
    console.print(table)


def figure(columns: int, *, height: float = 3.6) -> tuple[Figure, Any]:
    """A figure with a row of axes, without pyplot's global state."""
    canvas = Figure(figsize=(4.6 * columns, height), layout="constrained")
    return canvas, canvas.subplots(1, columns, squeeze=False)[0]


class Sweep(NamedTuple):
    """What `fit_seeds` found."""

    params: Any
    """Of every seed at the chosen rate, along the first axis of the leaves."""
    rate: float
    validation: np.ndarray
    """The best validation loss of every fit, of shape (rates, seeds)."""


def fit_seeds(
    apply: Callable, starts: Sequence[Any], data: Any, rows: Sequence[np.ndarray], *, loss: Callable,
    rates: Sequence[float], epochs: int, batch_size: int, optimizer: Callable = optax.adam,
) -> Sweep:  # fmt: skip
    """Fit from every start at every learning rate, in one program; the rate with the lowest mean validation loss.

    starts: parameters, one tree a seed. rows: the training and the validation rows of each seed, of shape (seeds, n).
    optimizer: a function of the learning rate, which decays to 0 over the run along a cosine.
    """
    seeds, steps = len(starts), epochs * -(-rows[0].shape[1] // batch_size)
    found = fit_many(
        apply,
        jax.tree.map(lambda *leaves: jnp.stack(leaves * len(rates)), *starts),
        data,
        loss=loss,
        optimizer=_decaying(optimizer, steps),
        optimizer_settings={"learning_rate": np.repeat(np.float32(rates), seeds)},
        seeds=np.tile(np.arange(seeds), len(rates)),
        rows=np.tile(rows[0], (len(rates), 1)),
        validation_rows=np.tile(rows[1], (len(rates), 1)),
        epochs=epochs,
        batch_size=batch_size,
    )
    lowest = np.nanmin(found.history["validation_loss"], axis=1).reshape(len(rates), seeds)
    best = int(np.argmin(np.nan_to_num(lowest.mean(1), nan=np.inf)))
    params = jax.tree.map(lambda leaf: leaf[best * seeds : (best + 1) * seeds], found.params)
    return Sweep(params, float(rates[best]), lowest)


@functools.cache
def _decaying(optimizer: Callable, steps: int) -> Callable:
    """The same function each time, so that a second sweep of the same shapes compiles nothing."""
    return lambda learning_rate: optimizer(lambda step: learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * step / steps)))


@functools.partial(jax.jit, static_argnums=0)
def predict_seeds(apply: Callable, params: Any, x: Any) -> jax.Array:
    """The predictions of every seed's parameters for its own rows."""
    return jax.vmap(apply)(params, x)


class Estimate(NamedTuple):
    """A mean over seeds and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Estimate:
        values = np.asarray(values, np.float64)
        return cls(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))

    def __str__(self) -> str:
        """Both to the error's first digit."""
        if not 0 < self.error < np.inf:
            return f"{self.mean:.4g}"
        places = max(0, -int(f"{self.error:.0e}".split("e")[1]))
        return f"{self.mean:,.{places}f}±{self.error:.{places}f}"

    @property
    def beyond_chance(self) -> bool:
        """Above zero by more than two standard errors."""
        return self.mean > 2 * self.error


def need_positive(config: Any, *names: str) -> None:
    """Refuse settings that are not positive, or lists that are empty or hold one that is not."""
    for name in names:
        value = np.asarray(getattr(config, name))
        if value.size == 0 or not (value > 0).all():
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be positive")


def grid(rates: Sequence[float], seeds: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The learning rate and the seed of each member of a sweep, every rate with seeds first, first + 1, …"""
    return np.repeat(np.float32(rates), seeds), np.tile(np.arange(first, first + seeds), len(rates))


@functools.cache  # the same object for the same number, so that `fit_many` compiles once
def decaying_adam(steps: int) -> Callable[..., optax.GradientTransformation]:
    """Adam whose learning rate goes to 0 along a cosine, as a function of its first one, as `fit_many` wants it."""

    def optimizer(learning_rate: Any) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    return optimizer


def mean_and_error(values: Any) -> tuple[float, float]:
    """The mean over repetitions and its standard error; NaN of fewer than two."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def with_error(values: Any) -> str:
    """The mean ± its standard error, as a cell of a table."""
    mean, error = mean_and_error(values)
    return f"{mean:.3g} ± {error:.1g}" if np.isfinite(error) else f"{mean:.3g}"


def print_claims(claims: dict[str, bool]) -> None:
    """Each claim, and whether it holds."""
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")


def print_rates(rates: dict[str, float]) -> None:
    """The learning rate chosen for each loss."""
    print("learning rates: " + ", ".join(f"{name} {rate:g}" for name, rate in rates.items()))


def at_least(**least: tuple[Any, float]) -> None:
    """Refuse settings below what makes sense: at_least(frames=(config.frames, 10))."""
    for name, (value, bound) in least.items():
        if value < bound:
            raise UserError(f"--{name.replace('_', '-')} {value}: at least {bound}")
