"""Which loss should an autoencoder be trained by? Handwritten digits, rebuilt from eight numbers each.

    python -m experiments autoencoder

scikit-learn's digits, 8 × 8 pixels of grey levels 0 to 16, in five splits. The same network with a code of eight
numbers is trained by mse, by mae, and by Barron's likelihood with a shape α and a scale of its own for each pixel,
learned with the network. Each loss takes the learning rate and the epoch at which it is itself lowest on validation
digits.

Answer: no loss wins every metric. On test digits, in grey levels (standard errors of 0.005 to 0.04):

    metric            by mse    by mae    by barron    wins
    RMSE               1.91      2.04       2.20       mse
    MAE                1.22      1.20       1.25       mae
    Cauchy loss        0.598     0.587      0.611      mae
    median |error|     0.69      0.53       0.47       barron
    bias              −0.01     −0.07      −0.08       mse

A loss wins where the paired difference over the splits is more than two standard errors. mse and mae win what they
minimise. Barron's loss gets more pixels almost right and some others further wrong. The scales of the pixels that are
black in nearly every digit end at the floor set here, for the likelihood would make them 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial
from matplotlib.figure import Figure

from experiments import common, data, sweeps
from experiments.models import Autoencoder
from experiments.sweeps import Estimate
from jaxloss import barron, barron_nll, loss_sum, mae, mse, rmse
from jaxloss.metrics import bias, median_absolute_error
from jaxloss.plots.canvas import BLUE, GREEN, ORANGE
from jaxloss.train import Batch, functional

WHITE = 16.0
"""The brightest grey level; the network's unit."""
FLOOR = 0.01
"""The least scale that Barron's loss may learn, in units of WHITE: pixels that are always black would make it 0."""
LOSSES: dict[str, Callable | None] = {"mse": mse, "mae": mae, "barron": None}
METRICS: dict[str, Callable] = {
    "RMSE": rmse,
    "MAE": mae,
    "Cauchy loss": Partial(barron, alpha=0.0, scale=1.0),  # a pure number; the others are grey levels
    "median |error|": median_absolute_error,
    "bias": bias,
}
WINNERS = {"RMSE": "mse", "MAE": "mae", "Cauchy loss": "mae", "median |error|": "barron", "bias": "mse"}
"""What the docstring says."""
TINY = {"rates": (0.01,), "epochs": 80}


@dataclass(frozen=True)
class Config(common.Config):
    code: int = 8
    """Numbers that a digit is squeezed into."""
    hidden: int = 64
    epochs: int = 150
    batch_size: int = 64
    rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    """Learning rates (Adam, decaying to 0) to choose from."""
    seeds: int = 5
    """Splits of the digits, networks and orders: seed, seed + 1, …"""
    seed: int = 0


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, "code", "hidden", "epochs", "batch_size", "rates", seeds=2)
    images = (data.digits() / WHITE).astype(np.float32)
    found = compare(config, images)
    scores = {metric: {name: one["scores"][metric] for name, one in found.items()} for metric in METRICS}
    winners = {metric: winner(each) for metric, each in scores.items()}
    rows = [(metric, *map(Estimate.of, each.values()), winners[metric]) for metric, each in scores.items()]
    title = f"Reconstruction of test digits, grey levels of 0 to 16: mean ± standard error over {config.seeds} splits"
    common.print_table(title, ("metric", *(f"by {name}" for name in LOSSES), "wins"), rows)
    alpha, scale = (np.asarray(found["barron"]["settings"][name]) for name in ("alpha", "scale"))
    floored = float(np.mean(scale < 1.1 * FLOOR))
    print(
        f"barron learned α of {alpha.min():.2g} to {alpha.max():.2g}; {floored:.0%} of the pixels have the least scale"
    )
    claims = {f"{name} has the lowest {metric}": winners[metric] == name for metric, name in WINNERS.items()}
    common.print_claims(claims)
    won = {name: [metric for metric, first in winners.items() if first == name] for name in LOSSES}
    told = (f"{name} wins {', '.join(metrics) or 'nothing'}" for name, metrics in won.items())
    answer = (
        f"No loss wins every metric: {'; '.join(told)}." if max(map(len, won.values())) < len(METRICS) else "One wins."
    )
    print(answer)
    _draw(folder, found)
    rates = {name: one["rate"] for name, one in found.items()}
    learned = {"alpha": alpha.tolist(), "scale": (WHITE * scale).tolist()}
    return {
        "winners": winners, "scores": scores, "rates": rates, "learned": learned, "answer": answer, "claims": claims,
    }  # fmt: skip


def winner(each: dict[str, list[float]]) -> str:
    """The loss with the metric nearest to 0; "none" if it is not by two standard errors of the paired difference."""
    sizes = {name: np.abs(values) for name, values in each.items()}
    first, second = sorted(sizes, key=lambda name: sizes[name].mean())[:2]
    return first if Estimate.of(sizes[second] - sizes[first]).beyond_chance else "none"


def settings_of(raw: Any) -> dict[str, jax.Array]:
    """A shape in (0, 2) and a scale for each pixel, from numbers without bounds."""
    return {"alpha": 2 * jax.nn.sigmoid(raw["alpha"]), "scale": FLOOR + jax.nn.softplus(raw["scale"])}


def compare(config: Config, images: np.ndarray) -> dict[str, Any]:
    """By loss: the best of its rates by its own loss on validation digits, and the scores of each split."""
    seeds = [config.seed + number for number in range(config.seeds)]
    orders = np.stack([np.random.default_rng(seed).permutation(len(images)) for seed in seeds])
    test, validation, train = np.split(orders, [360, 620], 1)
    widths = (images.shape[1], config.hidden, config.code)
    networks = [functional(Autoencoder(widths, rngs=nnx.Rngs(seed))) for seed in seeds]
    apply, starts = networks[0][0], [params for _, params in networks]
    raw = {part: jnp.full(images.shape[1], value) for part, value in (("alpha", 0.0), ("scale", -2.0))}
    size = min(config.batch_size, train.shape[1])
    train = train[:, : train.shape[1] // size * size]  # whole batches: a mask would make log Z(α) one per entry

    def learned(params: Any, batch: Batch) -> Any:
        loss = Partial(barron_nll, **settings_of(params["loss"]))
        return loss_sum(loss, apply(params["model"], batch.x), batch.target, where=batch.where)

    found = {}
    for name, loss in LOSSES.items():
        params = starts if loss else [{"model": start, "loss": raw} for start in starts]
        best, rate, _ = sweeps.fit_seeds(
            apply if loss else learned, params, (images, images), (train, validation), loss=loss,
            rates=config.rates, epochs=config.epochs, batch_size=size,
            first=config.seed,
        )  # fmt: skip
        model = best if loss else best["model"]
        preds = np.asarray(jax.vmap(apply)(model, images[test]))
        pairs = [(WHITE * pred, WHITE * images[rows]) for pred, rows in zip(preds, test, strict=True)]
        found[name] = {
            "rate": rate,
            "scores": {metric: [float(of(*pair)) for pair in pairs] for metric, of in METRICS.items()},
            "settings": {} if loss else {key: np.asarray(value) for key, value in settings_of(best["loss"]).items()},
            "pairs": pairs,
        }
    return found


def _draw(folder: Path, found: Any) -> None:
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    pictures = {"digit": found["mse"]["pairs"][0][1]} | {name: one["pairs"][0][0] for name, one in found.items()}
    for row, (label, values) in zip(left.subplots(len(pictures), 7), pictures.items(), strict=True):
        for axes, pixels in zip(row, values[::9], strict=False):
            drawn = axes.imshow(pixels.reshape(8, 8), cmap="gray", vmin=0, vmax=WHITE)
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=12)
    left.colorbar(drawn, ax=left.axes, label="grey level", shrink=0.7, location="bottom", aspect=40)
    left.suptitle("test digits, and what each loss makes of them", fontsize=11)
    axes = right.subplots()
    for (name, one), color, style in zip(found.items(), (ORANGE, GREEN, BLUE), ("-", "--", "-."), strict=True):
        errors = np.sort(np.abs(np.concatenate([pred - target for pred, target in one["pairs"]])).ravel())
        shares = np.arange(1, len(errors) + 1) / len(errors)
        thin = np.unique(np.searchsorted(errors, np.geomspace(0.02, WHITE, 300)).clip(max=len(errors) - 1))
        axes.plot(errors[thin], 100 * shares[thin], style, color=color, linewidth=2, label=name)
    axes.set(xscale="log", xlabel="error at most, grey levels", ylabel="share of the pixels, %", ylim=(0, 101))
    axes.set_title("barron: many pixels almost right, more far off", fontsize=11)
    axes.legend(frameon=False)
    figure.savefig(folder / "figure.png", dpi=140)
