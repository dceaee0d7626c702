"""How many digits of a loss are right in float32, here and in optax, PyTorch, torchmetrics and scikit-learn?

    pip install torch && python -m experiments accuracy

The worst relative error of value, slope and curvature of every loss, over residuals of 1e-30 … 1e30 and settings of
1e-3 … 1e3, against mpmath at 120 digits; the oracles and the grids are those of the tests (`tests/catalogue.py`). The
error counts wherever the exact value is a normal float32 number, relative to the largest term of the formula where
that changes sign. For the others, value and gradient are asked for one element at a time, as a user would.

Answer: the losses here keep their bars (value and slope 2e-6, curvature 2e-5, five times that with exp and pow).
Elsewhere the slope of optax's huber and log-cosh is wrong altogether for small residuals, as is torchmetrics' log-cosh
for large ones, and scikit-learn's deviances overflow.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mpf

import jaxloss
from experiments import common

SMALLEST, LARGEST = (mpf(float(end)) for end in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
BARS = {"value": 2e-6, "slope": 2e-6, "curvature": 2e-5}


@dataclass(frozen=True)
class Config:
    losses: str = ""
    """Names of the losses, separated by commas; all if empty."""
    full: bool = False
    """The fine grid, which takes minutes."""
    out: Path | None = None
    """Run folder; a new one under runs/accuracy if not given."""


def run(config: Config, folder: Path) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    rows = importlib.import_module("catalogue").ROWS
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
        line = [row.name, *(f"{error:.1e}" for error in worst.values())]
        for peer in (_optax, _torch, _torchmetrics, _sklearn):
            columns = {name: np.asarray(values) for name, values in settings.items()}
            found = peer(row.name, np.asarray(pred), np.asarray(target), columns)
            errors = [_worst(values, *exact[what]) for what, values in zip(("value", "slope"), found, strict=False)]
            worst |= {f"{peer.__name__[1:]} {what}": e for what, e in zip(("value", "slope"), errors, strict=False)}
            line.append(" ".join(f"{error:.0e}" for error in errors))
        table.append(line)
        result["worst"][row.name] = worst
        within = all(worst[what] <= bar * row.tolerance for what, bar in BARS.items())
        result["claims"][f"{row.name} keeps the bars"] = within
    heads = ("loss", "value", "slope", "curv.", "optax", "torch", "tmetr.", "sklearn")
    title = "Worst relative error in float32: value, slope and curvature here; value (and slope) elsewhere"
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
    """The worst relative error; inf for a NaN or a wrong infinity."""
    worst = 0.0
    for number, true, size in zip(numbers.astype(np.float64).tolist(), exact, sizes, strict=True):
        if SMALLEST <= abs(true) <= LARGEST:
            worst = max(worst, float(abs(mpf(number) - true) / abs(size)) if np.isfinite(number) else np.inf)
    return worst


def _optax(name: str, pred: np.ndarray, target: np.ndarray, settings: Any) -> list[np.ndarray]:
    losses: dict[str, Callable] = {
        "mse": optax.losses.squared_error,
        "huber": optax.losses.huber_loss,
        "log_cosh": optax.losses.log_cosh,
    }
    if name not in losses:
        return []
    loss = losses[name]
    both = jax.jit(jax.vmap(jax.value_and_grad(lambda p, t, s: loss(p, t, **s))))
    return [np.asarray(part) for part in both(pred, target, settings)]


def _torch(name: str, pred: np.ndarray, target: np.ndarray, settings: Any) -> list[np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError:
        return []
    losses = {"mse": "mse_loss", "mae": "l1_loss", "huber": "huber_loss", "smooth_l1": "smooth_l1_loss"}
    if name not in losses:
        return []
    value, slope = np.empty_like(pred), np.empty_like(pred)
    keys = np.stack([*settings.values()]) if settings else np.zeros((1, len(pred)))
    for key in np.unique(keys, axis=1).T:
        chosen = (keys == key[:, None]).all(0)
        p = torch.from_numpy(pred[chosen].copy()).requires_grad_()
        bound = {setting: float(number) for setting, number in zip(settings, key, strict=False)}
        losses_of = getattr(torch.nn.functional, losses[name])(
            p, torch.from_numpy(target[chosen].copy()), reduction="none", **bound
        )
        losses_of.sum().backward()
        value[chosen], slope[chosen] = losses_of.detach().numpy(), p.grad.numpy()
    return [value, slope]


def _torchmetrics(name: str, pred: np.ndarray, target: np.ndarray, settings: Any) -> list[np.ndarray]:
    try:
        import torch
        from torchmetrics.functional import regression
    except ModuleNotFoundError:
        return []
    losses = {"log_cosh": "log_cosh_error", "msle": "mean_squared_log_error", "mse": "mean_squared_error"}
    if name not in losses:
        return []
    metric = getattr(regression, losses[name])
    pairs = zip(torch.from_numpy(pred.copy()), torch.from_numpy(target.copy()), strict=True)
    return [np.array([float(metric(p[None], t[None])) for p, t in pairs], np.float32)]


def _sklearn(name: str, pred: np.ndarray, target: np.ndarray, settings: Any) -> list[np.ndarray]:
    """Its metrics compute in the type they are given."""
    from sklearn import metrics

    losses: dict[str, Callable] = {
        "mse": metrics.mean_squared_error,
        "mae": metrics.mean_absolute_error,
        "quantile": lambda t, p, level: metrics.mean_pinball_loss(t, p, alpha=float(level)),
        "msle": metrics.mean_squared_log_error,
        "poisson_deviance": metrics.mean_poisson_deviance,
        "gamma_deviance": metrics.mean_gamma_deviance,
        "tweedie_deviance": lambda t, p, power: metrics.mean_tweedie_deviance(t, p, power=float(power)),
    }
    if name not in losses:
        return []
    values = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(len(pred)):
            bound = {setting: column[i] for setting, column in settings.items()}
            try:
                values.append(losses[name](target[i : i + 1], pred[i : i + 1], **bound))
            except ValueError:
                values.append(np.nan)  # outside what it accepts
    return [np.array(values)]


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
