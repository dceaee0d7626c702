"""What changes when the prediction is a distribution: constant noise, noise that grows with x, and heavy-tailed noise?

    python -m experiments noise

(a) A line through noise of constant size, by squared error and by the Gaussian likelihood with fixed variance. (b) A
curve whose noise grows with x: networks with one hidden size and one budget, trained by squared error, nll, β-NLL, CRPS
and quantiles, and judged on rows that none has seen. (c) A line through Student-t noise of 2 degrees of freedom, by the
Normal and the StudentT likelihood.

Answer: (a) the same line, to 1e-5: squared error is the Gaussian likelihood of constant noise. (b) All predict the
centre about equally well (RMSE 0.51 to 0.52), but squared error with one spread for all rows has NLL 0.75 against 0.45
and CRPS 0.275 against 0.256, and its 90 % band covers every quiet row (x < 1) and 74 % of the loud ones (x > 3); nll,
β-NLL, CRPS and quantiles find the spread. (c) StudentT has NLL 0.73 against Normal's 1.26, and 91 % of the rows in its
90 % interval against 98 %; the slopes are 2.97 and 3.04.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import common
from experiments.models import MLP
from jaxloss import Normal, StudentT, beta_nll, coverage, crps, mse, nll, ordered, quantile, rmse
from jaxloss.train import fit, functional

LEVELS = np.array([0.025, *np.arange(0.05, 0.96, 0.05), 0.975], np.float32)
LINE = (3.0, 2.0)


TINY = {"rows": 400, "hidden": 16, "epochs": 40, "learning_rate": 0.01}


@dataclass(frozen=True)
class Config(common.Config):
    rows: int = 2000
    """Training rows; as many again for validation, and five times as many for the test."""
    hidden: int = 32
    learning_rate: float = 3e-3
    batch_size: int = 100
    epochs: int = 300
    """At most; fewer when the validation loss stops improving."""
    patience: int = 30
    df: float = 2.0
    """Degrees of freedom of the heavy-tailed noise."""
    seed: int = 0


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, rows=20)
    lines = constant_noise(config)
    heads, drawn = growing_noise(config)
    tails = heavy_tails(config)
    _draw(folder, *drawn)
    worst = max((head for head in heads if heads[head]["nll"] is not None), key=lambda head: heads[head]["nll"])
    claims = {
        "squared error and fixed-variance likelihood give the same line": lines["difference"] < 1e-5,
        "squared error has the worst NLL under growing noise": worst == "mse",
        "StudentT has the lower NLL under heavy tails": tails["StudentT"]["nll"] < tails["Normal"]["nll"],
    }
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return {"constant": lines, "growing": heads, "heavy": tails, "claims": claims}


def line(params: Any, x: jax.Array) -> jax.Array:
    return params["slope"] * x + params["intercept"]


def start(**more: float) -> dict[str, jax.Array]:
    return {name: jnp.full((1, 1), value) for name, value in {"slope": 0.0, "intercept": 0.0, **more}.items()}


def constant_noise(config: Config) -> dict[str, Any]:
    """(a) The two lines, from full-batch gradient descent, and their largest difference."""
    rng, scale = np.random.default_rng(config.seed), 0.2
    x = rng.uniform(-1, 1, (config.rows, 1)).astype(np.float32)
    y = (LINE[0] * x + LINE[1] + scale * rng.normal(size=x.shape)).astype(np.float32)

    def fixed(params: Any, x: jax.Array) -> Normal:
        loc = line(params, x)
        return Normal(loc, jnp.full_like(loc, scale))

    def fitted(apply: Callable, loss: Callable, rate: float) -> np.ndarray:
        params = fit(apply, start(), (x, y), loss=loss, optimizer=optax.sgd(rate), epochs=400).params
        return np.array([params["slope"].item(), params["intercept"].item()])

    found = {"mse": fitted(line, mse, 0.5), "nll, fixed variance": fitted(fixed, nll, 0.6 * scale**2)}
    common.print_table(
        "(a) y = 3x + 2 + noise of constant size",
        ("trained by", "slope", "intercept"),
        [(k, *v) for k, v in found.items()],
    )
    difference = float(np.max(np.abs(np.subtract(*found.values()))))
    print(f"largest difference {difference:.2g}\n")
    return {name: value.tolist() for name, value in found.items()} | {"difference": difference}


def curve(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """x uniform on [0, 4] and y = sin(2x) + (0.05 + 0.2·x)·N(0, 1)."""
    x = rng.uniform(0, 4, (rows, 1))
    y = np.sin(2 * x) + (0.05 + 0.2 * x) * rng.normal(size=x.shape)
    return x.astype(np.float32), y.astype(np.float32)


def growing_noise(config: Config) -> tuple[dict[str, dict[str, Any]], Any]:
    """(b) Scores of each head on test rows, and what the figure needs."""
    rng = np.random.default_rng(config.seed)
    train, validation, test = (curve(rng, config.rows * times) for times in (1, 1, 5))
    x, y = (jnp.asarray(part) for part in test)
    grid = jnp.linspace(0, 4, 200)[:, None]

    def trained(outputs: int, head: Callable, loss: Callable, repeat: int = 1) -> Callable:
        apply, params = functional(MLP((1, config.hidden, config.hidden, outputs), rngs=nnx.Rngs(config.seed)))

        def predict(params: Any, x: jax.Array) -> Any:
            return head(apply(params, x / 2 - 1))

        data, held_out = ((x, np.repeat(y, repeat, 1)) for x, y in (train, validation))
        found = fit(
            predict, params, data, loss=loss, optimizer=optax.adam(config.learning_rate), epochs=config.epochs,
            batch_size=config.batch_size, validation=held_out, patience=config.patience, seed=config.seed,
        )  # fmt: skip
        return functools.partial(predict, found.params)

    def normal(raw: jax.Array) -> Normal:
        return Normal.from_raw(raw[:, None, :])

    centre = trained(1, lambda raw: raw, mse)
    spread = float(rmse(centre(train[0]), train[1]))
    heads: dict[str, Callable] = {"mse": lambda x: Normal(centre(x), jnp.full(x.shape, spread))}
    for name, loss in (("nll", nll), ("β-NLL", beta_nll), ("CRPS", crps)):
        heads[name] = trained(2, normal, loss)
    scores = {name: scores_of(head(x), x, y) for name, head in heads.items()}
    at_levels = jax.tree_util.Partial(quantile, level=LEVELS)
    quantiles = trained(len(LEVELS), ordered, at_levels, repeat=len(LEVELS))
    scores["quantiles"] = scores_of_quantiles(quantiles(x), x, y)
    known = Normal(jnp.sin(2 * x), 0.05 + 0.2 * x)
    rows = [(name, *entry.values()) for name, entry in (scores | {"(the truth)": scores_of(known, x, y)}).items()]
    shown = [tuple("" if cell is None else cell for cell in row) for row in rows]
    columns = ("trained by", "NLL", "CRPS", "RMSE", "90 % covers", "x < 1", "x > 3")
    common.print_table(f"\n(b) noise that grows with x, {len(y)} test rows", columns, shown)
    bands = {
        name: (head(grid).quantile(0.05), head(grid).mean, head(grid).quantile(0.95)) for name, head in heads.items()
    }
    low, middle, high = (int(np.argmin(np.abs(LEVELS - level))) for level in (0.05, 0.5, 0.95))
    bands["quantiles"] = tuple(quantiles(grid)[:, [column]] for column in (low, middle, high))
    return scores, (np.asarray(grid), bands, test)


def scores_of(dist: Normal, x: jax.Array, y: jax.Array) -> dict[str, Any]:
    covered = [float(coverage(dist, y, 0.9, where=where)) for where in (x > -1, x < 1, x > 3)]
    entry = {"nll": float(nll(dist, y)), "crps": float(crps(dist, y)), "rmse": float(rmse(dist.mean, y))}
    return entry | dict(zip(("covered", "covered_quiet", "covered_loud"), covered, strict=True))


def scores_of_quantiles(pred: jax.Array, x: jax.Array, y: jax.Array) -> dict[str, Any]:
    """No density, so no NLL; the CRPS is twice the integral of the pinball loss over the levels."""
    pinball = quantile(pred, jnp.repeat(y, len(LEVELS), 1), level=jnp.asarray(LEVELS), axis=0)
    levels = np.concatenate([[0], LEVELS, [1]])
    integral = np.trapezoid(np.concatenate([[0], pinball, [0]]), levels)
    low, middle, high = (int(np.argmin(np.abs(LEVELS - level))) for level in (0.05, 0.5, 0.95))
    inside = np.asarray((y[:, 0] >= pred[:, low]) & (y[:, 0] <= pred[:, high]))
    loud, quiet = np.asarray(x[:, 0]) > 3, np.asarray(x[:, 0]) < 1
    return {
        "nll": None,
        "crps": float(2 * integral),
        "rmse": float(rmse(pred[:, [middle]], y)),
        "covered": float(inside.mean()),
        "covered_quiet": float(inside[quiet].mean()),
        "covered_loud": float(inside[loud].mean()),
    }


def heavy_tails(config: Config) -> dict[str, dict[str, float]]:
    """(c) The line by either likelihood: its slope, and scores on test rows."""
    rng = np.random.default_rng(config.seed + 1)

    def drawn(rows: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.uniform(-1, 1, (rows, 1))
        y = LINE[0] * x + LINE[1] + 0.3 * rng.standard_t(config.df, size=x.shape)
        return x.astype(np.float32), y.astype(np.float32)

    train, (x, y) = drawn(config.rows), drawn(5 * config.rows)

    def with_normal(params: Any, x: jax.Array) -> Normal:
        return Normal(line(params, x), jnp.broadcast_to(jnp.exp(params["log_scale"]), x.shape))

    def with_student(params: Any, x: jax.Array) -> StudentT:
        df, scale = (jnp.broadcast_to(jnp.exp(params[name]), x.shape) for name in ("log_df", "log_scale"))
        return StudentT(df, line(params, x), scale)

    found = {}
    for name, apply, params in (
        ("Normal", with_normal, start(log_scale=0.0)),
        ("StudentT", with_student, start(log_scale=0.0, log_df=1.5)),
    ):
        params = fit(apply, params, train, loss=nll, optimizer=optax.adam(0.03), epochs=1500).params
        dist = apply(params, x)
        found[name] = {
            "slope": params["slope"].item(),
            "scale": float(jnp.exp(params["log_scale"]).item()),
            "df": float(jnp.exp(params["log_df"]).item()) if "log_df" in params else np.inf,
            "nll": float(nll(dist, y)),
            "covered": float(coverage(dist, y, 0.9)),
        }
    rows = [(name, *entry.values()) for name, entry in found.items()]
    columns = ("likelihood", "slope", "scale", "df", "NLL", "90 % covers")
    common.print_table(f"\n(c) slope 3, noise 0.3·Student-t with {config.df:g} degrees of freedom", columns, rows)
    return found


def _draw(folder: Path, grid: np.ndarray, bands: dict[str, Any], test: Any) -> None:
    figure, panels = common.figure(len(bands))
    figure.set_size_inches(2.9 * len(bands), 3.4)
    for axes, (name, (low, centre, high)) in zip(panels, bands.items(), strict=True):
        axes.plot(test[0][:600, 0], test[1][:600, 0], ".", markersize=2, color="gray", alpha=0.5)
        axes.fill_between(grid[:, 0], np.asarray(low)[:, 0], np.asarray(high)[:, 0], alpha=0.3, label="90 % band")
        axes.plot(grid[:, 0], np.asarray(centre)[:, 0], color="C1", linewidth=1.5, label="centre")
        truth, spread = np.sin(2 * grid[:, 0]), 1.645 * (0.05 + 0.2 * grid[:, 0])
        axes.plot(grid[:, 0], truth - spread, "k--", grid[:, 0], truth + spread, "k--", linewidth=0.7)
        axes.set(title=name, xlabel="x", ylim=(-3, 3))
    panels[0].set_ylabel("y")
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(folder / "figure.png", dpi=140)
