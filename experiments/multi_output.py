"""Does one network learn age and income together, in years and dollars, standardised, and weighted by inverse variance?

    python -m experiments multi_output

Six features of simulated people (`data.people`), a network with two outputs, squared error summed over them, Adam, full
batch. Every variant has the same weights at the start and the same number of steps, and the learning rate that gives it
the best mean R² of the two outputs on validation rows.

Answer: not in years and dollars. There income is 99.9999 % of the loss and of the hidden layers' gradient; over the
seeds 0 to 4 income is learned (R² 0.70 to 0.91 on test rows), age is predicted worse than by its mean (−1.2 to −0.3),
and no rate learns both. Standardised, both are learned: R² 0.77 to 0.80 and 0.87 to 0.91; at seed 0 an RMSE of 3.8
years (3 of them noise) and 6,300 dollars, against 8.8 and 7,100.

Weights of 1/variance are standardising as far as the loss goes: the same value, and the same gradient of the hidden
layers, at the same prediction. In training they are not: an output layer in dollars must reach weights of 10⁴, and its
gradient is that in standard units over the scale. So weighted fits learn age (0.76 to 0.83), but income less well (0.67
to 0.79) and at few of the rates. With `Standardizer.inverse` as the last layer they are the standardised fits, step by
step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import common, data, sweeps
from experiments.models import MLP
from jaxloss import Standardizer, composite, loss_sum, mse
from jaxloss.metrics import ResidualStats, r2
from jaxloss.train import Batch, functional, supervised

NAMES = ("age", "income")
UNITS = ("years", "dollars")
RATES = 10.0 ** np.arange(-4, 2.1, 0.5)
TOGETHER = 20
"""Steps over which two variants that are the same but for rounding are compared."""


class Variant(NamedTuple):
    """A way to train the two outputs."""

    apply: Callable
    """From parameters and features to the two outputs, by name."""
    loss: Callable
    target: dict[str, np.ndarray]
    units: Standardizer | None
    """From the outputs to years and dollars; None if they are that."""


TINY = {"rows": 350, "steps": 250, "hidden": 16}


@dataclass(frozen=True)
class Config(common.Config):
    rows: int = 1000
    """Training rows; as many again for validation, and twice as many for the test."""
    hidden: int = 32
    steps: int = 500
    seed: int = 0
    """Of the data and of the initial weights."""


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, rows=20, steps=TOGETHER)
    x, y = (part.astype(np.float32) for part in data.people(4 * config.rows, config.seed))
    (x, *held_x), (y, *held_y) = (np.split(part, [config.rows, 2 * config.rows]) for part in (x, y))
    units = Standardizer.fit(y.astype(np.float64))
    apply, params = functional(MLP((x.shape[1], config.hidden, config.hidden, 2), rngs=nnx.Rngs(config.seed)))

    def plain(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        return heads(apply(params, x))

    def in_units(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        return heads(units.inverse(apply(params, x)))

    squared = dict.fromkeys(NAMES, mse)
    weighted = composite(squared, dict(zip(NAMES, (1 / units.scale**2).tolist(), strict=True)))
    raw, scaled = heads(y), heads(units.transform(y).astype(np.float32))
    variants = {
        "raw": Variant(plain, composite(squared), raw, None),
        "weighted": Variant(plain, weighted, raw, None),
        "weighted, scaled output": Variant(in_units, weighted, raw, None),
        "standardised": Variant(plain, composite(squared), scaled, units),
    }
    shares = {name: shares_of(variant, params, x) for name, variant in variants.items()}
    fits = {name: trained(variant, params, (x, y), held_x, held_y, config) for name, variant in variants.items()}
    _print(config, shares, fits)
    _draw(folder, config, fits)
    scores = {name: fit["test"] for name, fit in fits.items()}
    learned = {name: np.nanmax(np.min(fit["validation_r2"], axis=1)) for name, fit in fits.items()}  # the worse output
    same = [fits[name]["losses"][:TOGETHER] for name in ("weighted, scaled output", "standardised")]
    layers = output_layer(params, units, variants, x)
    claims = {
        "raw: more than 99.99 % of the loss and of the layers' gradient is income's": (
            min(shares["raw"]["loss"], shares["raw"]["gradient"]) > 0.9999
        ),
        "standardised: each output has 2 % or more of both": all(
            0.02 < share < 0.98 for share in shares["standardised"].values()
        ),
        "raw: income is learned, and age not better than by its mean": (
            scores["raw"]["r2"][1] > 0.5 and scores["raw"]["r2"][0] < 0.1
        ),
        "raw: no rate learns both": learned["raw"] < 0.5 * learned["standardised"],
        "standardised: both are learned": min(scores["standardised"]["r2"]) > 0.5,
        "weighted, with an output layer in years and dollars: age is learned, and income not as well": (
            scores["weighted"]["r2"][0] > 0.5 and scores["weighted"]["r2"][1] < scores["standardised"]["r2"][1]
        ),
        "inverse variances are standardising: the same loss at the same prediction": layers["loss"] < 1e-5,
        "and the same gradient of the hidden layers": layers["hidden"] < 1e-3,
        "but an output layer in years and dollars has the gradient over the scale": layers["output"] < 1e-3,
        "with the output in standard units the training is the same, step by step": np.allclose(*same, rtol=1e-3),
    }
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    for fit in fits.values():
        del fit["losses"]
    return {
        "shares": shares,
        "fits": fits,
        "differences": layers,
        "claims": {name: bool(holds) for name, holds in claims.items()},
    }


def heads(array: Any) -> dict[str, Any]:
    """The columns by name, as a composite loss wants them."""
    return {name: array[:, [column]] for column, name in enumerate(NAMES)}


def shares_of(variant: Variant, params: Any, x: np.ndarray) -> dict[str, float]:
    """Income's share of the loss, and of the squared gradient of the hidden layers, before training."""

    def parts(params: Any) -> dict[str, jax.Array]:
        return loss_sum(variant.loss, variant.apply(params, x), variant.target).each

    losses, gradients = jax.jit(parts)(params), jax.jit(jax.jacrev(parts))(params)
    squares = {name: sum(float(jnp.sum(leaf**2)) for leaf in hidden(gradients[name])) for name in NAMES}
    return {
        "loss": float(losses["income"] / sum(losses.values())),
        "gradient": squares["income"] / sum(squares.values()),
    }


def hidden(params: Any) -> list[jax.Array]:
    """The arrays of all layers but the last."""
    layers = params["layers"]
    return jax.tree.leaves([layers[index] for index in sorted(layers)[:-1]])


def trained(variant: Variant, params: Any, train: Any, held_x: Any, held_y: Any, config: Config) -> dict[str, Any]:
    """The fit at the variant's best rate: R² on validation rows at every rate, and scores on test rows."""
    objective = supervised(variant.apply, variant.loss)
    batch = Batch(jnp.asarray(train[0]), jax.tree.map(jnp.asarray, variant.target))
    found, losses = sweeps.train_at_rates(objective, params, batch, optax.adam, RATES, config.steps)

    def predict(params: Any, x: np.ndarray) -> jax.Array:
        seen = jnp.concatenate([variant.apply(params, x)[name] for name in NAMES], 1)
        return seen if variant.units is None else variant.units.inverse(seen)

    preds = jax.jit(jax.vmap(predict, (0, None)))(found, held_x[0])
    validation = np.array([r2(pred, held_y[0], axis=0) for pred in preds])
    best = int(np.argmax(np.nan_to_num(validation.mean(1), nan=-np.inf)))
    chosen = predict(jax.tree.map(lambda leaf: leaf[best], found), held_x[1])
    test = ResidualStats.of(chosen, held_y[1], per_output=True, histogram=False, worst=0).summary()
    return {
        "rate": float(RATES[best]),
        "validation_r2": validation.tolist(),
        "test": {name: test[name].tolist() for name in ("r2", "rmse")},
        "losses": losses[best],
    }


def output_layer(params: Any, units: Standardizer, variants: dict[str, Variant], x: np.ndarray) -> dict[str, float]:
    """How far the weighted loss with the output layer put in years and dollars is from the standardised one.

    That layer is W·s and b·s + m. Relative differences of the loss, of the hidden layers' gradient, and of the output
    layer's gradient times s.
    """
    scale, mean = (jnp.asarray(part, jnp.float32) for part in (units.scale, units.mean))
    last = max(params["layers"])

    def with_last(params: Any, layer: Any) -> Any:
        changed = jax.tree.map(lambda leaf: leaf, params)
        changed["layers"][last] = layer
        return changed

    old = params["layers"][last]
    moved = with_last(params, {"kernel": old["kernel"] * scale[None], "bias": old["bias"] * scale + mean})

    def value_and_grad(variant: Variant, params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return variant.loss(variant.apply(params, x), variant.target)

        return jax.jit(jax.value_and_grad(loss))(params)

    value, gradient = value_and_grad(variants["standardised"], params)
    moved_value, moved_gradient = value_and_grad(variants["weighted"], moved)

    def difference(left: list[Any], right: list[Any]) -> float:
        pairs = list(zip(left, right, strict=True))
        return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)

    ours, theirs = (tree["layers"][last] for tree in (gradient, moved_gradient))
    return {
        "loss": abs(float(moved_value / value) - 1),
        "hidden": difference(hidden(moved_gradient), hidden(gradient)),
        "output": difference([theirs["kernel"] * scale[None], theirs["bias"] * scale], [ours["kernel"], ours["bias"]]),
    }


def _print(config: Config, shares: Any, fits: Any) -> None:
    rows = [(name, *(f"{share:.7%}".replace("%", " %") for share in shares[name].values())) for name in shares]
    common.print_table("Income's share before training", ("", "of the loss", "of the layers' gradient"), rows)
    rows = [(name, f"{fit['rate']:.1e}", *fit["test"]["r2"], *fit["test"]["rmse"]) for name, fit in fits.items()]
    columns = ("", "best rate", "R² age", "R² income", "RMSE age, years", "RMSE income, dollars")
    common.print_table(f"\nAfter {config.steps} steps, {2 * config.rows} test rows", columns, rows)


def _draw(folder: Path, config: Config, fits: Any) -> None:
    figure, panels = common.figure(2)
    styles = {"raw": ("#D55E00", "o-"), "weighted": ("#009E73", "s-"), "standardised": ("#0072B2", "^-")}
    for column, (axes, name, unit) in enumerate(zip(panels, NAMES, UNITS, strict=True)):
        for variant, (color, style) in styles.items():
            scores = np.array(fits[variant]["validation_r2"])[:, column]
            axes.plot(RATES, np.maximum(scores, -0.5), style, color=color, markersize=4, label=variant)
            chosen = list(RATES).index(fits[variant]["rate"])
            axes.plot(RATES[chosen], max(scores[chosen], -0.5), "o", color=color, markersize=11, fillstyle="none")
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.set(xscale="log", xlabel="learning rate", ylim=(-0.55, 1), title=f"{name} (in {unit} when raw)")
    panels[0].set_ylabel(f"R², validation, after {config.steps} steps")
    panels[0].legend(frameon=False, fontsize=9, loc="upper right")
    figure.supxlabel("circles: the rate chosen; what is below −0.5 is drawn there", fontsize=9, color="gray")
    figure.savefig(folder / "figure.png", dpi=140)
