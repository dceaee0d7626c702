"""A network learns the heat a plate radiates: is its error the sensor's noise, and what does it know beyond the data?

    python -m experiments physics

A radiometer reads the net flux εσ(T⁴ − T₀⁴) of a plate, with normal noise of a known standard deviation (simulated,
`data.Radiometer`). A small tanh network learns it from the two temperatures by squared error, Huber and MAE; beside it
a straight line, and the law itself, linear in T⁴ and T₀⁴, by least squares. The rates are chosen on the warm plate,
and used on the hot one, with its own range, emissivity, noise and data. Errors are in units of the noise's variance;
`excess` is the MSE against the law, without the noise; `lag 1` the autocorrelation of the residuals
in order of the plate's temperature, in its standard errors, and `p` Ljung and Box's of ten lags and all seeds; `far`
by how many per cent the fit is off at 1.4 times the temperature of the hottest plate.

Answer: the floor is the noise. Over eight seeds the validation MSE is 1.006 ± 0.003 of the variance (hot: 0.994 ±
0.003), the network's own part 0.47 % (0.38 %), and what is left is white, where a straight line leaves an
autocorrelation of 0.7. With normal noise MAE costs: its own part is 0.65 % (0.56 %), Huber's 0.52 % (0.44 %). Outside
nothing holds: at 700 K the network is off by 71 % (at 1260 K too), the law by 0.2 %, and the networks of eight seeds
are wrong together: they differ by 1 % of the flux. The known noise tells that there is nothing more to learn from
these rows, not what lies beyond them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax.scipy.stats import chi2
from jax.tree_util import Partial

from experiments import common, data, sweeps
from experiments.models import MLP
from experiments.sweeps import Estimate
from jaxloss import Standardizer, huber, mae, mse
from jaxloss.metrics import ResidualStats, rmse
from jaxloss.train import functional

PLATES = {
    "warm": data.Radiometer(plate=(300, 500), surroundings=(270, 320), emissivity=0.9, noise=100),
    "hot": data.Radiometer(plate=(600, 900), surroundings=(300, 500), emissivity=0.5, noise=1000),
}
"""The rates are chosen on the first, and used on the second."""
BEYOND = 1.4
"""How far outside the training rows the fits are looked at: at this times the temperature of the hottest plate."""
LAGS = 10
HUBER = 1.345
"""Huber's δ in standard deviations of the noise."""
TINY = {"rows": 5000, "seeds": 3, "hidden": 16, "epochs": 25, "batch_size": 100, "rates": (3e-2,)}
"""Settings under which a run is short, and every claim holds."""


@dataclass(frozen=True)
class Config(common.Config):
    rows: int = 8000
    """Training rows of each seed; four times as many each for validation and test."""
    seeds: int = 8
    """Data sets and initial weights, each its own."""
    hidden: int = 32
    epochs: int = 100
    batch_size: int = 200
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """Learning rates (Adam, decaying to 0) to choose from, for each loss by its own validation loss."""
    seed: int = 0


class Rows(NamedTuple):
    """What was measured, for every seed."""

    x: np.ndarray
    """Temperatures of plate and surroundings, K, of shape (seeds, rows, 2)."""
    y: np.ndarray
    """Flux, W/m², of shape (seeds, rows, 1)."""
    train: slice
    validation: slice
    test: slice


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, "hidden", "epochs", "batch_size", "rates", seeds=2, rows=max(100, config.batch_size))
    rates: dict[str, Any] = {}
    found, claims, drawn = {}, {}, []
    for number, (name, plate) in enumerate(PLATES.items()):
        rows = measure(config, plate, config.seed + 1000 * number)
        models, chosen = fits(config, plate, rows, rates)
        rates = {loss: (rate,) for loss, rate in chosen.items()}
        found[name] = {model: scores(plate, rows, predict) for model, predict in models.items()}
        _report(name, plate, found[name], chosen)
        claims |= {f"{name}: {claim}": bool(holds) for claim, holds in judged(config, found[name]).items()}
        drawn.append((plate, rows, models))
    common.print_claims(claims)
    verdict = verdict_of(found)
    print(f"\n{verdict}")
    _draw(folder, *drawn[0])
    return {"plates": found, "rates": chosen, "claims": claims, "verdict": verdict}


def verdict_of(found: dict[str, Any]) -> str:
    floors, off = ([one["mse"][key] for one in found.values()] for key in ("validation", "off"))
    return (
        f"Squared error ends at the sensor's noise, at {' and '.join(f'{floor.mean:.3f}' for floor in floors)} of its "
        f"variance; {BEYOND:g} times hotter than the data it is off by {' and '.join(f'{100 * x:.0f} %' for x in off)}."
    )


def judged(config: Config, found: dict[str, Any]) -> dict[str, bool]:
    squared, line, law = (found[name] for name in ("mse", "line", "law"))
    lag = squared["lag_1"].mean
    return {
        "squared error's floor is the noise: MSE within 2 % of its variance": (
            max(abs(squared[part].mean - 1) for part in ("validation", "test")) < 0.02
        ),
        "its residuals are white along the plate's temperature": (
            abs(lag) < 3 / np.sqrt(config.seeds) and squared["ljung_box"] > 0.001
        ),
        "those of a straight line are not": line["lag_1"].mean > 10 and line["ljung_box"] < 1e-6,
        f"at {BEYOND:g} times the hottest plate the network is off by 10 % or more": squared["off"] > 0.1,
        "and the law by less than 1 %": law["off"] < 0.01,
        "networks of other seeds differ there by less than half of the error": squared["spread"] < squared["off"] / 2,
    }


def measure(config: Config, plate: data.Radiometer, first: int) -> Rows:
    sets = [plate.measure(9 * config.rows, first + seed) for seed in range(config.seeds)]
    ends = itertools.pairwise(np.array([0, 1, 5, 9]) * config.rows)
    return Rows(*map(np.stack, zip(*sets, strict=True)), *itertools.starmap(slice, ends))


def fits(config: Config, plate: data.Radiometer, rows: Rows, rates: dict[str, Any]) -> tuple[dict[str, Callable], Any]:
    """By name functions from temperatures of shape (seeds, rows, 2) to the flux; and the rate of every loss."""
    features, flux = (Standardizer.fit(part[:, rows.train].reshape(-1, part.shape[-1])) for part in (rows.x, rows.y))
    scaled = tuple(
        units.transform(part).astype(np.float32).reshape(-1, part.shape[-1])
        for units, part in ((features, rows.x), (flux, rows.y))
    )
    places = np.arange(len(scaled[0])).reshape(rows.x.shape[:2])
    networks = [
        functional(MLP((2, config.hidden, config.hidden, 1), activation=nnx.tanh, rngs=nnx.Rngs(config.seed + seed)))
        for seed in range(config.seeds)
    ]
    apply, starts = networks[0][0], [params for _, params in networks]

    def network(params: Any, x: np.ndarray) -> np.ndarray:
        seen = sweeps.predict_seeds(apply, params, features.transform(x).astype(np.float32))
        return flux.inverse(np.asarray(seen, np.float64))

    losses = {"mse": mse, "huber": Partial(huber, delta=HUBER * plate.noise / flux.scale.item()), "mae": mae}
    found: dict[str, Callable] = {}
    chosen = {}
    for name, loss in losses.items():
        sweep = sweeps.fit_seeds(
            apply, starts, scaled, (places[:, rows.train], places[:, rows.validation]), loss=loss,
            rates=rates.get(name, config.rates), epochs=config.epochs, batch_size=config.batch_size,
        )  # fmt: skip
        found[name], chosen[name] = functools.partial(network, sweep.params), sweep.rate

    def by_least_squares(terms: Callable) -> Callable:
        seeds = zip(terms(rows.x[:, rows.train]), rows.y[:, rows.train], strict=True)
        coefficients = np.stack([data.least_squares(x, y) for x, y in seeds])
        return lambda x: terms(x) @ coefficients[:, :-1] + coefficients[:, -1:]

    found["line"] = by_least_squares(lambda x: x)
    found["law"] = by_least_squares(lambda x: (x / 100) ** 4)
    return found, chosen


def scores(plate: data.Radiometer, rows: Rows, predict: Callable) -> dict[str, Any]:
    """Errors in units of the noise's variance, and how white the residuals are; and what happens outside."""
    seeds, variance = range(len(rows.x)), plate.noise**2
    pred, true = predict(rows.x), np.stack([plate.flux(x) for x in rows.x])
    parts = {"validation": (rows.validation, rows.y), "test": (rows.test, rows.y), "excess": (rows.test, true)}
    stats = {
        name: [ResidualStats.of(pred[seed, part], target[seed, part]).summary() for seed in seeds]
        for name, (part, target) in parts.items()
    }
    residual = (pred - rows.y)[:, rows.test, 0]
    residual = np.take_along_axis(residual, np.argsort(rows.x[:, rows.test, 0], axis=1), axis=1)
    number = residual.shape[1]
    each = np.stack([autocorrelation(one) for one in residual])
    ljung_box = number * (number + 2) * np.sum(each**2 / (number - np.arange(1, LAGS + 1)))
    far = np.broadcast_to([BEYOND * plate.plate[1], np.mean(plate.surroundings)], (len(rows.x), 1, 2))
    there, known = predict(far)[:, 0], plate.flux(far[:, 0])
    return {
        "rmse": Estimate.of([one["rmse"] for one in stats["test"]]),
        **{name: Estimate.of([one["mse"] / variance for one in part]) for name, part in stats.items()},
        "lag_1": Estimate.of(each[:, 0] * np.sqrt(number)),
        "ljung_box": float(chi2.sf(ljung_box, LAGS * len(rows.x))),
        "autocorrelation": each.mean(0).tolist(),
        "off": float(rmse(there, known) / known[0, 0]),
        "spread": float(there.std(ddof=1) / known[0, 0]),
    }


def autocorrelation(residual: np.ndarray) -> np.ndarray:
    """That at lags 1 … LAGS; of n white residuals each is normal around 0 with a standard error of 1/√n."""
    centred = residual - residual.mean()
    return np.array([centred[lag:] @ centred[:-lag] for lag in range(1, LAGS + 1)]) / (centred @ centred)


def _report(name: str, plate: data.Radiometer, found: dict[str, Any], rates: dict[str, float]) -> None:
    columns = ("by", "RMSE, W/m²", "MSE/σ²", "excess, %", "lag 1", "p", "far")
    table = [
        (
            model, one["rmse"], one["validation"], Estimate(*(100 * part for part in one["excess"])), one["lag_1"],
            f"{one['ljung_box']:.2g}", f"{100 * one['off']:.3g}",
        )
        for model, one in found.items()
    ]  # fmt: skip
    title = f"\n{name} plate: {plate.plate[0]:g} to {plate.plate[1]:g} K, sensor noise σ = {plate.noise:g} W/m²"
    common.print_table(title, columns, table)
    sweeps.print_rates(rates)


def _draw(folder: Path, plate: data.Radiometer, rows: Rows, models: dict[str, Callable]) -> None:
    figure, (left, right) = common.figure(2, height=4)
    low, high = plate.plate
    grid = np.stack([np.linspace(0.95 * low, BEYOND * high, 200), np.full(200, np.mean(plate.surroundings))], axis=1)
    curves = np.broadcast_to(grid, (len(rows.x), *grid.shape))
    shown = rows.train.start, min(rows.train.stop, 600)
    left.axvspan(low, high, color="gray", alpha=0.12, linewidth=0)
    left.plot(rows.x[0, slice(*shown), 0], rows.y[0, slice(*shown), 0] / 1000, ".", color="gray", markersize=2)
    left.plot(grid[:, 0], plate.flux(grid) / 1000, "k--", linewidth=1.5, label="the law", zorder=3)
    networks = models["mse"](curves)[..., 0] / 1000
    for number, curve in enumerate(networks):
        left.plot(grid[:, 0], curve, color="#D55E00", alpha=0.6, label=None if number else "networks, each seed")
    left.plot(grid[:, 0], models["law"](curves)[0, :, 0] / 1000, color="#0072B2", label="law, fitted")
    left.set(
        xlabel="temperature of the plate, K",
        ylabel="net flux, kW/m²",
        title="outside the data (gray) networks go astray",
    )
    left.legend(frameon=False, loc="upper left")
    lags = np.arange(1, LAGS + 1)
    for name, color, mark in (("line", "#009E73", "s"), ("mse", "#D55E00", "o")):
        values = scores(plate, rows, models[name])["autocorrelation"]
        right.plot(lags, values, mark, color=color, label="network" if name == "mse" else name)
        right.vlines(lags, 0, values, color=color, linewidth=1)
    error = 2 / np.sqrt(rows.x[:, rows.test].shape[0] * rows.x[:, rows.test].shape[1])
    right.axhspan(-error, error, color="gray", alpha=0.3, linewidth=0, label="± 2 standard errors")
    right.set(
        xlabel="lag, rows in order of temperature",
        ylabel="autocorrelation",
        title="inside: the network leaves white noise",
    )
    right.legend(facecolor="white", framealpha=1, edgecolor="none", loc="center right")
    figure.savefig(folder / "figure.png", dpi=140)
