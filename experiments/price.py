"""Prices with a heavy right tail: train on dollars, on their logarithm, or by a Gamma deviance?

    python -m experiments price

Flats whose worth follows from area, distance, age, floor and quality, sold at that times log-normal noise (simulated,
`data.Market`). The same network is trained on dollars (raw), on standardised prices (mse, huber, mae), on the
logarithm, and by Gamma deviance on its exponential. The predictions of the logarithm are also turned into means, by
exp(σ²/2) and by Duan's smearing, the mean of exp(residual), both from the validation rows. The rates are chosen on the
first market, and used on the second, with another law, Gamma noise and its own data. `relative` is the mean relative
error, `total` how far the sum of the predictions is off, `below` the part of the sales below them.

Answer: squared error and Gamma deviance estimate the mean, with 56 to 60 % of the sales below; MAE and the logarithm
the middle; Huber is between. The logarithm has the lowest MAE, 131,600 dollars against 139,700 on standardised prices
(second market: 85,700 and 89,700), where the true median has 129,900 (84,000), and a relative error of 44 % against
57 % (67 and 98 %), for squared error spends the network on the dearest flats. Gamma deviance has 136,100 and 52 %
(87,200 and 83 %) and keeps the mean. RMSE is 242 to 251 thousand (162 to 168) whatever the loss, the true mean's 237
(158). But the sum of the logarithm's predictions is 12 % (18 %) too low; smearing repairs that to 0.3 % (0.1 %), lowers
RMSE by 2 to 3 %, and pays with the relative error, 51 % (83 %). exp(σ²/2) does as well where the noise is log-normal,
and is 2 % too high where it is not. The logarithm estimates the geometric mean, which is the median only where its
noise is symmetric: of the second market's sales 45 % are below. Raw dollars need rates thirty times as high, and end a
little better here than standardised (MAE 137,000, 88,000).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from experiments import common, data, sweeps
from experiments.models import MLP, Exponential
from experiments.sweeps import Estimate
from jaxloss import Standardizer, diagnose, gamma_deviance, huber, mae, mape, mse
from jaxloss.metrics import ResidualStats
from jaxloss.train import functional

MARKETS = {
    "log-normal": data.Market(worth=400_000, area=1.1, distance=0.05, noise="lognormal", spread=0.5),
    "gamma": data.Market(worth=250_000, area=1.3, distance=0.08, noise="gamma", spread=0.6),
}
"""The rates are chosen on the first, and used on the second."""
HUBER = 1.345
"""Huber's δ in robust scales of the residuals that squared error leaves on the validation rows."""
BASE = "mse"
"""What the others are compared with."""
TINY = {"rows": 1000, "seeds": 4, "hidden": 16, "epochs": 40, "rates": (1e-2,), "dollar_rates": (1.0,)}
"""Settings under which a run is short, and every claim holds."""


@dataclass(frozen=True)
class Config(common.Config):
    rows: int = 4000
    """Training rows of each seed; twice as many for validation, and five times as many for the test."""
    seeds: int = 8
    """Data sets and initial weights, each its own."""
    hidden: int = 32
    epochs: int = 60
    batch_size: int = 100
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
    """Learning rates (Adam, decaying to 0) to choose from, for each loss by its own validation loss."""
    dollar_rates: tuple[float, ...] = (1e-1, 3e-1, 1.0, 3.0, 10.0)
    """Those where the network puts out dollars."""
    seed: int = 0


class Way(NamedTuple):
    """A way to train."""

    loss: Callable
    target: np.ndarray
    """What the loss compares with, of shape (rows of all seeds, 1)."""
    price: Callable
    """From the prediction of that to dollars."""
    model: type = MLP


class Rows(NamedTuple):
    """The sales of every seed, of shape (seeds, rows, …), and which of them serve for what."""

    sales: data.Sales
    train: slice
    validation: slice
    test: slice


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, "hidden", "epochs", "batch_size", "rates", "dollar_rates")
    common.require(config, seeds=2, rows=max(100, config.batch_size))
    rates: dict[str, Any] = {}
    found, claims, drawn = {}, {}, []
    for number, (name, market) in enumerate(MARKETS.items()):
        rows = sell(config, market, config.seed + 1000 * number)
        preds, chosen = fits(config, rows, rates)
        rates = {way: (rate,) for way, rate in chosen.items()}
        tested = data.Sales(*(part[:, rows.test] for part in rows.sales))
        found[name] = {way: scores(pred[:, rows.test], tested) for way, pred in preds.items()}
        found[name] |= {"(true mean)": scores(tested.mean, tested), "(true median)": scores(tested.median, tested)}
        _report(name, market, found[name], chosen)
        claims |= {f"{name}: {claim}": bool(holds) for claim, holds in judged(found[name]).items()}
        drawn.append((tested, {way: pred[:, rows.test] for way, pred in preds.items()}, found[name]))
    common.print_claims(claims)
    verdict = verdict_of(found)
    print(f"\n{verdict}")
    _draw(folder, *drawn[0])
    return {"markets": jax.tree.map(Estimate.of, found), "rates": chosen, "claims": claims, "verdict": verdict}


def judged(found: dict[str, Any]) -> dict[str, bool]:
    """Differences are paired by seed."""

    def above(name: str, high: str, low: str) -> bool:
        return Estimate.of(found[high][name] - found[low][name]).beyond_chance

    def mean(name: str, way: str) -> float:
        return float(found[way][name].mean())

    log, smeared, gamma = "log mse", "log·smearing", "gamma"
    return {
        "the logarithm has a lower MAE than squared error on prices, raw or standardised": (
            above("mae", BASE, log) and above("mae", "raw mse", log)
        ),
        "and a lower relative error": above("relative", BASE, log) and above("relative", "raw mse", log),
        "Gamma deviance has both lower than squared error on standardised prices": (
            above("mae", BASE, gamma) and above("relative", BASE, gamma)
        ),
        "the logarithm's total is 10 % too low or more, and smearing repairs two thirds of that": (
            -mean("total", log) > max(10, 3 * abs(mean("total", smeared)))
        ),
        "which lowers RMSE, and costs relative error": (
            above("rmse", log, smeared) and above("relative", smeared, log)
        ),
        "squared error and Gamma deviance estimate the mean: most sales are below": (
            min(mean("below", BASE), mean("below", gamma)) > 53
        ),
        "absolute error and the logarithm the middle: about half are": all(
            42 < mean("below", way) < 53 for way in ("mae", log)
        ),
    }


def verdict_of(found: dict[str, Any]) -> str:
    def lower(way: str, score: str) -> str:
        shares = (1 - np.mean(ways[way][score] / ways[BASE][score]) for ways in found.values())
        return " and ".join(f"{100 * share:.0f} %" for share in shares)

    return (
        f"On the logarithm MAE is {lower('log mse', 'mae')} and relative error {lower('log mse', 'relative')} "
        f"below squared error's on standardised prices; by Gamma deviance {lower('gamma', 'mae')} and "
        f"{lower('gamma', 'relative')}."
    )


def sell(config: Config, market: data.Market, first: int) -> Rows:
    sets = [market.sell(8 * config.rows, first + seed) for seed in range(config.seeds)]
    ends = itertools.pairwise(np.array([0, 1, 3, 8]) * config.rows)
    return Rows(data.Sales(*map(np.stack, zip(*sets, strict=True))), *itertools.starmap(slice, ends))


def fits(config: Config, rows: Rows, rates: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """By name the prices predicted for all rows, of shape (seeds, rows, 1); and the rates."""
    shape = rows.sales.price.shape
    places = np.arange(shape[0] * shape[1]).reshape(shape[:2])
    x, price = rows.sales.x.reshape(-1, rows.sales.x.shape[-1]), rows.sales.price.reshape(-1, 1)
    seen = places[:, rows.train].ravel()
    features, dollars, logs = (Standardizer.fit(part[seen]) for part in (x, price, np.log(price)))
    x = features.transform(x).astype(np.float32)
    widths = (x.shape[1], config.hidden, config.hidden, 1)
    chosen: dict[str, float] = {}

    def trained(name: str, way: Way, grid: tuple[float, ...]) -> np.ndarray:
        models = [functional(way.model(widths, rngs=nnx.Rngs(config.seed + seed))) for seed in range(config.seeds)]
        apply, starts = models[0][0], [params for _, params in models]
        sweep = sweeps.fit_seeds(
            apply, starts, (x, way.target.astype(np.float32)), (places[:, rows.train], places[:, rows.validation]),
            loss=way.loss, rates=rates.get(name, grid), epochs=config.epochs, batch_size=config.batch_size,
        )  # fmt: skip
        chosen[name] = sweep.rate
        seen = sweeps.predict_seeds(apply, sweep.params, x.reshape(*shape[:2], -1))
        return way.price(np.asarray(seen, np.float64))

    scaled = functools.partial(Way, target=dollars.transform(price), price=dollars.inverse)
    preds = {
        "raw mse": trained("raw mse", Way(mse, price, np.asarray), config.dollar_rates),
        BASE: trained(BASE, scaled(mse), config.rates),
    }
    held_out = diagnose(preds[BASE][:, rows.validation].reshape(-1), rows.sales.price[:, rows.validation].reshape(-1))
    delta = HUBER * held_out.figures["robust_scale"] / dollars.scale.item()
    middle = np.exp(logs.mean)
    ways = {
        "huber": scaled(Partial(huber, delta=delta)),
        "mae": scaled(mae),
        "gamma": Way(gamma_deviance, price / middle, lambda pred: middle * pred, Exponential),
        "log mse": Way(mse, logs.transform(np.log(price)), lambda pred: np.exp(logs.inverse(pred))),
    }
    for name, way in ways.items():
        preds[name] = trained(name, way, config.rates)
    log = preds["log mse"]
    residual = np.log(rows.sales.price[:, rows.validation] / log[:, rows.validation])
    preds["log·exp(σ²/2)"] = log * np.exp(residual.var(1, keepdims=True) / 2)
    preds["log·smearing"] = log * np.exp(residual).mean(1, keepdims=True)
    return preds, chosen


def scores(pred: np.ndarray, sales: data.Sales) -> dict[str, np.ndarray]:
    """Of every seed: errors in thousands of dollars, the others in per cent."""
    stats = [ResidualStats.of(*(part[..., 0] / 1000 for part in pair)).summary() for pair in zip(pred, sales.price)]
    return {
        "rmse": np.array([one["rmse"] for one in stats]),
        "mae": np.array([one["mae"] for one in stats]),
        "relative": np.array([100 * float(mape(*pair)) for pair in zip(pred, sales.price)]),
        "total": 100 * (pred.sum((1, 2)) / sales.price.sum((1, 2)) - 1),
        "below": 100 * (sales.price < pred).mean((1, 2)),
        "from_mean": np.array([100 * float(mape(*pair)) for pair in zip(pred, sales.mean)]),
        "from_median": np.array([100 * float(mape(*pair)) for pair in zip(pred, sales.median)]),
    }


def _report(name: str, market: data.Market, found: dict[str, Any], rates: dict[str, float]) -> None:
    columns = ("trained on", "RMSE, k$", "MAE, k$", "relative, %", "total, %", "below, %")
    table = [(way, *map(Estimate.of, list(one.values())[:5])) for way, one in found.items()]
    common.print_table(f"\n{name} noise of sd {market.spread:g} around the worth: test rows", columns, table)
    sweeps.print_rates(rates)


def _draw(folder: Path, sales: data.Sales, preds: dict[str, np.ndarray], found: dict[str, Any]) -> None:
    figure, (left, right) = common.figure(2, height=4.2)
    ways = [way for way in preds if way != BASE]
    places = np.arange(len(ways))[::-1]
    marks = {
        "relative": ("relative error", "#0072B2", "o"),
        "mae": ("MAE", "#D55E00", "s"),
        "rmse": ("RMSE", "#009E73", "^"),
    }
    for number, (score, (label, color, mark)) in enumerate(marks.items()):
        changes = [Estimate.of(100 * (found[way][score] / found[BASE][score] - 1)) for way in ways]
        left.errorbar(
            [change.mean for change in changes], places + 0.2 * (1 - number), fmt=mark, color=color, label=label,
            xerr=[2 * change.error for change in changes], markersize=5,
        )  # fmt: skip
    left.axvline(0, color="gray", linewidth=1)
    left.set_yticks(places, ways)
    left.set(xlabel="against mse on standardised prices, % (± 2 se)", title="left is better")
    left.legend(frameon=False, fontsize=8)
    edges = np.quantile(sales.mean, np.linspace(0, 1, 16))
    bins = np.digitize(sales.mean, edges[1:-1])
    centres = [np.median(sales.mean[bins == number]) / 1000 for number in range(15)]
    shown = {BASE: ("#D55E00", "-"), "log mse": ("#0072B2", "--"), "gamma": ("#009E73", "-.")}
    for way, (color, style) in shown.items():
        ratio = preds[way] / sales.mean
        low, middle, high = (
            [np.quantile(ratio[bins == number], level) for number in range(15)] for level in (0.1, 0.5, 0.9)
        )
        right.fill_between(centres, low, high, color=color, alpha=0.15, linewidth=0)
        right.plot(centres, middle, style, color=color, label=way)
    right.axhline(1, color="black", linewidth=0.8)
    right.set(
        xscale="log", xlabel="mean price of such a flat, thousand $", ylabel="predicted / mean price",
        title="squared error of dollars loses cheap flats",
    )  # fmt: skip
    right.set_xticks([100, 200, 500, 1000], ["100", "200", "500", "1,000"])
    right.legend(frameon=False, fontsize=9)
    figure.savefig(folder / "figure.png", dpi=140)
