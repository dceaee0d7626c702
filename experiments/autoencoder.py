"""Which loss should an autoencoder be trained by? Handwritten digits, rebuilt from eight numbers each.

    python -m experiments autoencoder
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

from experiments import common, data
from experiments.models import MLP
from jaxloss import barron, barron_nll, loss_sum, mae, mse, rmse
from jaxloss.metrics import bias, median_absolute_error
from jaxloss.train import Batch, fit_many, functional

WHITE = 16.0
"""The brightest grey level; the network's unit."""
FLOOR = 0.01
"""The least scale that Barron's loss may learn, in units of WHITE: pixels that are always black would make it 0."""
LOSSES: dict[str, Callable | None] = {"mse": mse, "mae": mae, "barron": None}
METRICS: dict[str, Callable] = {
    "RMSE": rmse,
    "MAE": mae,
    "Cauchy loss": Partial(barron, alpha=0.0, scale=1.0),
    "median |error|": median_absolute_error,
    "bias": bias,
}
UNITS = {"Cauchy loss": ""}
WINNERS = {"RMSE": "mse"}
TINY = {"epochs": 40, "seeds": 3, "rates": (0.01,)}


@dataclass(frozen=True)
class Config:
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
    out: Path | None = None
    """Run folder; a new one under runs/autoencoder if not given."""


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.at_least(
        code=(config.code, 1), hidden=(config.hidden, 1), epochs=(config.epochs, 1), batch_size=(config.batch_size, 1),
        seeds=(config.seeds, 2), rates=(len(config.rates), 1),
    )  # fmt: skip
    if min(config.rates) <= 0:
        raise common.UserError(f"--rates must be positive, got {config.rates}")
    images = data.digits() / WHITE
    images = images.astype(np.float32)
    found = compare(config, images)
    scores = {metric: {name: one["scores"][metric] for name, one in found.items()} for metric in METRICS}
    winners = {metric: winner(each) for metric, each in scores.items()}
    rows = [
        (metric, *(common.with_error(values) for values in each.values()), winners[metric])
        for metric, each in scores.items()
    ]
    title = f"Reconstruction of test digits, grey levels of 0 to 16: mean ± standard error over {config.seeds} splits"
    common.print_table(title, ("metric", *(f"by {name}" for name in LOSSES), "wins"), rows)
    for name, one in found.items():
        print(name, one["rate"])
    alpha = np.array(found["barron"]["settings"]["alpha"])
    print(np.quantile(alpha, [0, 0.25, 0.5, 0.75, 1]), np.quantile(np.array(found["barron"]["settings"]["scale"]), [0, 0.25, 0.5, 0.75, 1]))
    claims = {f"{name} has the lowest {metric}": winners[metric] == name for metric, name in WINNERS.items()}
    common.print_claims(claims)
    answer = "; ".join(f"{metric}: {name}" for metric, name in winners.items())
    print(answer)
    _draw(folder, images, found)
    return {"winners": winners, "scores": scores, "answer": answer, "claims": claims}


def winner(each: dict[str, list[float]]) -> str:
    """The loss with the metric nearest to 0; "none" if it is not by two standard errors of the paired difference."""
    sizes = {name: np.abs(values) for name, values in each.items()}
    first, second = sorted(sizes, key=lambda name: sizes[name].mean())[:2]
    gap, error = common.mean_and_error(sizes[second] - sizes[first])
    return first if gap > 2 * error else "none"


def settings_of(raw: Any) -> dict[str, jax.Array]:
    """A shape in (0, 2) and a scale for each pixel, from numbers without bounds."""
    return {"alpha": 2 * jax.nn.sigmoid(raw["alpha"]), "scale": FLOOR + jax.nn.softplus(raw["scale"])}


def compare(config: Config, images: np.ndarray) -> dict[str, Any]:
    """By loss: the best of its rates by its own loss on validation digits, and the scores of each split."""
    seeds = [config.seed + number for number in range(config.seeds)]
    orders = np.stack([np.random.default_rng(seed).permutation(len(images)) for seed in seeds])
    test, validation, train = np.split(orders, [360, 620], 1)
    widths = (images.shape[1], config.hidden, config.code, config.hidden, images.shape[1])
    networks = [functional(MLP(widths, rngs=nnx.Rngs(seed))) for seed in seeds]
    apply = networks[0][0]
    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for _, params in networks))
    size = min(config.batch_size, train.shape[1])
    optimizer = common.decaying_adam(config.epochs * -(-train.shape[1] // size))
    chosen, numbers = common.grid(config.rates, config.seeds, config.seed)
    times = len(config.rates)

    def learned(params: Any, batch: Batch) -> Any:
        loss = Partial(barron_nll, **settings_of(params["loss"]))
        return loss_sum(loss, apply(params["model"], batch.x), batch.target, where=batch.where)

    found = {}
    for name, loss in LOSSES.items():
        raw = {part: jnp.full((config.seeds, images.shape[1]), value) for part, value in (("alpha", 0.0), ("scale", -2.0))}
        params = start if loss else {"model": start, "loss": raw}
        fitted = fit_many(
            apply if loss else None, jax.tree.map(lambda leaf: jnp.concatenate([leaf] * times), params),
            (images, images), loss=loss, objective=None if loss else learned, optimizer=optimizer,
            optimizer_settings={"learning_rate": chosen}, seeds=numbers, epochs=config.epochs, batch_size=size,
            rows=np.tile(train, (times, 1)), validation_rows=np.tile(validation, (times, 1)),
        )  # fmt: skip
        reached = np.nanmin(fitted.history["validation_loss"], 1).reshape(times, config.seeds).mean(1)
        at = int(np.argmin(reached))
        best = jax.tree.map(lambda leaf: leaf[at * config.seeds :][: config.seeds], fitted.params)
        model = best if loss else best["model"]
        preds = np.asarray(jax.vmap(apply)(model, images[test]))
        pairs = [(WHITE * pred, WHITE * images[rows]) for pred, rows in zip(preds, test, strict=True)]
        found[name] = {
            "rate": config.rates[at],
            "reached": reached,
            "best_epoch": fitted.best_epoch.reshape(times, -1)[at],
            "scores": {metric: [float(of(*pair)) for pair in pairs] for metric, of in METRICS.items()},
            "settings": {} if loss else {key: np.asarray(value) for key, value in settings_of(best["loss"]).items()},
            "pairs": pairs[0],
        }
        print(name, reached, found[name]["best_epoch"])
    return found


def _draw(folder: Path, images: np.ndarray, found: Any) -> None:
    figure, _ = common.figure(1)
    figure.clear()
    shown = 10
    figure.set_size_inches(10, 4.4)
    panels = figure.subplots(len(found) + 1, shown)
    target = found["mse"]["pairs"][1]
    pictures = {"test digit": target} | {f"by {name}": one["pairs"][0] for name, one in found.items()}
    for row, (label, values) in zip(panels, pictures.items(), strict=True):
        for axes, pixels in zip(row, values, strict=False):
            drawn = axes.imshow(pixels.reshape(8, 8), cmap="gray", vmin=0, vmax=WHITE)
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=12)
    figure.colorbar(drawn, ax=panels, label="grey level", shrink=0.8)
    figure.savefig(folder / "figure.png", dpi=140)
