"""How many digits of a loss are right in float32, here and in the libraries that have it?

    pip install torch && python -m experiments accuracy

The worst relative error of value, slope and curvature of every loss, over residuals of 1e-30 … 1e30 and settings of
1e-3 … 1e3, against mpmath at 120 digits; the oracles and the grids are those of the tests (`tests/catalogue.py`). The
error counts wherever the exact value is a normal float32 number, relative to the largest term of the formula where
that changes sign. The others (optax, PyTorch, torchmetrics, scikit-learn, SciPy and statsmodels) are asked as in the
table of the tests (`tests/peers.py`), in float32; a mean one element at a time, and one with an ε of its own only where
neither its nor ours counts.

Answer: the losses here keep their bars (value and slope 2e-6, curvature 2e-5, five times that with exp and pow).
Elsewhere every digit can be lost: by the slope of optax's huber and by its log-cosh at small residuals; by the
log-cosh of torchmetrics, which overflows as well; by msle and the deviances of torchmetrics and scikit-learn, which
cancel and overflow, as do the norms of statsmodels; by the slope of torchmetrics' smape where pred and target are far
apart.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mpf

import jaxloss
from experiments import common

SMALLEST, LARGEST = (mpf(float(end)) for end in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
LIBRARIES = ("optax", "torch", "torchmetrics", "sklearn", "scipy", "statsmodels")
BARS = {"value": 2e-6, "slope": 2e-6, "curvature": 2e-5}


TINY = {"losses": "log_cosh,smape"}


@dataclass(frozen=True)
class Config(common.Config):
    losses: str = ""
    """Names of the losses, separated by commas; all if empty."""
    full: bool = False
    """The fine grid, which takes minutes."""


def run(config: Config, folder: Path) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    rows, peers = importlib.import_module("catalogue").ROWS, importlib.import_module("peers").PEERS
    chosen = [name for name in config.losses.split(",") if name] or [row.name for row in rows]
    for name in chosen:
        common.loss_by_name(name)
    result: dict[str, Any] = {"worst": {}, "claims": {}}
    table = []
    for row in (row for row in rows if row.name in chosen):
        pred, target, settings = _grid(row, config.full)
        ours = {
            "value": row.loss(pred, target, reduction="none", **settings),
            "slope": jaxloss.slope(row.loss)(pred, target, **settings),
            "curvature": jaxloss.curvature(row.loss)(pred, target, **settings),
        }
        exact = _exact(row, pred, target, settings)
        worst = {what: _worst(np.asarray(ours[what]), *exact[what]) for what in ours}
        line = [row.name, "\n".join(f"{error:.1e}" for error in worst.values())]
        for library in LIBRARIES:
            peer = _peer(peers, library, row.name)
            numbers = _ask(peer, *map(np.asarray, (pred, target)), settings) if peer else {}
            errors = {what: _worst(numbers[what], *exact[what]) for what in numbers}
            worst |= {f"{library} {what}": error for what, error in errors.items()}
            line.append("\n".join(f"{error:.0e}" for error in errors.values()))
        table.append(line)
        result["worst"][row.name] = worst
        within = all(worst[what] <= bar * row.tolerance for what, bar in BARS.items())
        result["claims"][f"{row.name} keeps the bars"] = within
    heads = ("loss", "jaxloss", "optax", "torch", "torch\nmetrics", "sklearn", "scipy", "stats\nmodels")
    title = "Worst relative error in float32: of value, below it slope, below that curvature"
    common.print_table(title, heads, table)
    broken = [name for name, holds in result["claims"].items() if not holds]
    print(f"bars: value and slope 2e-6, curvature 2e-5, five times that with exp and pow; broken: {broken or 'none'}")
    _draw(folder, result["worst"])
    return result


def _grid(row: Any, full: bool) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Predictions, targets and settings of every entry of the row's sweep, end to end."""
    drawn = [(settings, *row.pairs(row, settings, full)) for settings in row.sweep]
    pred, target = (jnp.asarray(np.concatenate([entry[part] for entry in drawn])) for part in (1, 2))
    columns = {
        name: np.concatenate([np.full(len(entry[1]), entry[0][name], np.float32) for entry in drawn])
        for name in row.sweep[0]
    }
    return pred, target, {name: jnp.asarray(column) for name, column in columns.items()}


def _exact(row: Any, pred: Any, target: Any, settings: Any) -> dict[str, tuple[list[Any], list[Any]]]:
    """Exact numbers, and what their errors are relative to."""
    columns = {name: np.asarray(values) for name, values in settings.items()}
    inputs = [
        (mpf(float(p)), mpf(float(t)), {name: mpf(float(column[i])) for name, column in columns.items()})
        for i, (p, t) in enumerate(zip(np.asarray(pred), np.asarray(target), strict=True))
    ]
    oracles = zip(("value", "slope", "curvature"), (row.value, row.slope, row.curvature), row.sizes, strict=True)
    return {
        what: ([mpf(f(p, t, **s)) for p, t, s in inputs], [mpf(size(p, t, **s)) for p, t, s in inputs])
        for what, f, size in oracles
    }


def _worst(numbers: np.ndarray, exact: list[Any], sizes: list[Any]) -> float:
    """The worst relative error; inf for a NaN or a wrong infinity. Masked numbers are left out."""
    worst = 0.0
    for number, true, size in zip(numbers.astype(np.float64).tolist(), exact, sizes, strict=True):
        if number is not None and SMALLEST <= abs(true) <= LARGEST:
            worst = max(worst, float(abs(mpf(number) - true) / abs(size)) if np.isfinite(number) else np.inf)
    return worst


def _peer(peers: Any, library: str, name: str) -> Any:
    """The loss in that library, if it is installed and has it; a likelihood is another loss, up to constants."""
    for peer in peers:
        if (peer.library, peer.loss) == (library, name) and not peer.settings and "nll" not in peer.name:
            return peer if importlib.util.find_spec(library) else None
    return None


def _ask(peer: Any, pred: np.ndarray, target: np.ndarray, settings: Any) -> dict[str, Any]:
    """The peer's value, and slope if it has it, setting by setting; masked where its own ε is what counts."""
    columns = {name: np.asarray(values) for name, values in settings.items()}
    masked = np.zeros(len(pred), bool)
    if peer.epsilon is not None:
        size = np.abs(target) + (np.abs(pred) if peer.loss == "smape" else 0)
        masked, columns = size <= np.maximum(columns["epsilon"], peer.epsilon), {}
    answers: dict[str, Any] = {}
    keys = np.stack([*columns.values()]) if columns else np.zeros((1, len(pred)))
    for key in np.unique(keys, axis=1).T:
        chosen = (keys == key[:, None]).all(0)
        bound = {name: float(number) for name, number in zip(columns, key, strict=False)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            numbers = peer.numbers(pred[chosen], target[chosen], **bound)
        for what in {"value", "slope"} & set(numbers):
            answers.setdefault(what, np.zeros(len(pred)))[chosen] = numbers[what]
    return {what: np.ma.masked_array(answers[what], masked) for what in ("value", "slope") if what in answers}


def _draw(folder: Path, worst: dict[str, dict[str, float]]) -> None:
    figure, (axes,) = common.figure(1, height=4.6)
    figure.set_size_inches(9, 4.8)
    peers = sorted({what for errors in worst.values() for what in errors} - set(BARS))
    for number, what in enumerate([*BARS, *peers]):
        points = [(name, errors[what]) for name, errors in worst.items() if what in errors]
        if points:
            marker = "o" if what in BARS else "x"
            axes.plot(*zip(*((n, min(max(e, 1e-8), 10)) for n, e in points)), marker, color=f"C{number}", label=what)
    axes.axhline(2e-6, color="gray", linestyle="--", linewidth=1)
    axes.tick_params(axis="x", rotation=75)
    axes.set(yscale="log", ylabel="worst relative error (10: wrong altogether)", title="float32 against mpmath")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(folder / "figure.png", dpi=140)
