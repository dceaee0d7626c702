"""Where is the object, when one label in ten is wrong? A small CNN trained by squared error and by robust losses.

    python -m experiments coordinates

Simulated frames of 32 × 32 pixels: a round object, a square that passes, noise (`data.frames`). The labels are those of
a tracker, which is lost in 10 % of the frames, all of them with the square partly in front of the object; it then says
that the object is in the top left corner. The same network is trained by mse, by Huber's loss (δ = 1 pixel), by Tukey's
(from Huber's network, with its scale from the residuals of that one) and by Barron's likelihood, whose shape and scale
are learned. Validation labels are as bad as the others: the learning rate is chosen by the median distance from them.
The test asks for the true centre, in all frames. Then all is done again on other frames (a smaller object, more noise,
a lost tracker says anything), with the rates found before.

Answer: squared error misses the centre by 2.5 ± 0.1 pixels (mean ± standard error, 3 seeds), Huber's loss by 0.81 ±
0.02, Tukey's by 0.45 ± 0.02, the learned one by 0.49 ± 0.03: a fifth. It learned α = 0.08, the shape of Cauchy's loss,
and a scale of 0.25 pixels. On the other frames squared error misses by 1.7 ± 0.2 pixels, Huber's loss by 0.86 ± 0.06,
Tukey's by 0.73 ± 0.05, the learned one by 0.66 ± 0.05: labels that are anywhere pull less than labels that are all in
one corner. With every seed, on both, the learned one has less than half of squared error's distance.
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
from flax import nnx
from jax.tree_util import Partial

from experiments import common, data, sweeps
from experiments.models import Locator
from experiments.sweeps import Estimate
from jaxloss import barron_nll, huber, loss_sum, mse, tukey
from jaxloss.plots.canvas import BLUE, GREEN, ORANGE, PURPLE, SKY
from jaxloss.train import Batch, fit_many, functional

MIDDLE, UNIT = 15.5, 16.0
"""Of a frame, in pixels, and half its size: the network's units."""
TUNED = {"radius": 2.5, "noise": 0.1, "lost": "corner"}
OTHER = {"radius": 2.0, "noise": 0.15, "lost": "anywhere"}
COLORS = {"mse": ORANGE, "huber": GREEN, "tukey": PURPLE, "barron": BLUE}
MARKS = COLORS | {"mse": "#FF8C2B", "barron": SKY, "huber": "#33CC99"}
"""Lighter, to be seen on a dark frame."""
TINY = {"frames": 480, "epochs": 12, "batch_size": 32, "seeds": 2, "rates": (0.03,)}


@dataclass(frozen=True)
class Config(common.Config):
    frames: int = 1500
    """Training frames of each seed; half as many for validation, and 1000 for the test."""
    occluded: float = 0.1
    """Share of the frames in which the tracker is lost, so that the label is wrong."""
    channels: int = 12
    epochs: int = 20
    """Tukey's loss starts from Huber's network, has as many again and rates a third of these."""
    batch_size: int = 60
    rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    """Learning rates (Adam, rising over a tenth of the steps, then decaying to 0) to choose from."""
    delta: float = 1.0
    """Huber's, in pixels."""
    seeds: int = 3
    """Training sets, networks and orders: seed, seed + 1, …"""
    seed: int = 0


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, "channels", "batch_size", "epochs", "rates", "delta", "seeds", frames=20)
    if not 0 <= config.occluded <= 0.2:
        raise common.UserError(f"--occluded {config.occluded}: between 0 and 0.2 (a fifth of the frames can be)")
    tried = dict.fromkeys(COLORS, config.rates) | {"tukey": tuple(rate / 3 for rate in config.rates)}
    tuned = compare(config, TUNED, tried)
    other = compare(config, OTHER, {name: (found["rate"],) for name, found in tuned.items()})
    rows = [
        (
            name,
            f"{found['rate']:g}",
            *(Estimate.of(found[part]) for part in ("pixels", "median", "occluded")),
            Estimate.of(other[name]["pixels"]),
        )
        for name, found in tuned.items()
    ]
    common.print_table(
        f"Distance of the prediction from the true centre, in pixels: mean ± standard error over {config.seeds} seeds",
        ("trained by", "rate", "mean", "median", "mean, occluded", "mean, other setting"),
        rows,
    )
    learned = tuned["barron"]["settings"]
    print(f"barron learned alpha {np.mean(learned['alpha']):.2g} and scale {np.mean(learned['scale']):.2g} pixels")
    means = {
        name: {loss: float(np.mean(one["pixels"])) for loss, one in found.items()}
        for name, found in {"tuned": tuned, "other": other}.items()
    }
    best = min(means["tuned"], key=means["tuned"].__getitem__)
    found = means["tuned"]
    claims = {
        "the best robust loss halves squared error's mean distance": found[best] < 0.5 * found["mse"],
        "on the other frames Tukey's is nearer than squared error with every seed": bool(
            np.all(np.array(other["tukey"]["pixels"]) < np.array(other["mse"]["pixels"]))
        ),
    }
    common.print_claims(claims)
    answer = (
        f"With {100 * config.occluded:.3g} % bad labels {best} misses the centre by {means['tuned'][best]:.2f} pixels "
        f"on average, mse by {means['tuned']['mse']:.2f}."
    )
    print(answer)
    _draw(folder, tuned, other, best)
    kept = ("rate", "pixels", "median", "occluded", "settings")
    each = {
        setting: {loss: {name: one[name] for name in kept} for loss, one in found.items()}
        for setting, found in {"tuned": tuned, "other": other}.items()
    }
    return {"each": each, "means": means, "best": best, "answer": answer, "claims": claims}


def settings_of(raw: Any) -> dict[str, jax.Array]:
    """Barron's shape in (0, 2) and scale, from numbers without bounds."""
    return {"alpha": 2 * jax.nn.sigmoid(raw["alpha"]), "scale": 1e-3 + jax.nn.softplus(raw["scale"])}


def learned(apply: Callable, params: Any, batch: Batch) -> Any:
    """The objective whose parameters are those of the network and those of Barron's loss."""
    loss = Partial(barron_nll, **settings_of(params["loss"]))
    return loss_sum(loss, apply(params["model"], batch.x), batch.target, where=batch.where)


@functools.partial(jax.jit, static_argnames=("apply", "each"))
def _predictions(apply: Callable, params: Any, image: jax.Array, each: bool) -> jax.Array:
    return MIDDLE + UNIT * jax.vmap(apply, (0, 0 if each else None))(params, image)


def predictions(apply: Callable, params: Any, image: np.ndarray, each: bool = False) -> np.ndarray:
    """Of several networks, in pixels: of the same images, or of each one's own."""
    return np.asarray(_predictions(apply, params, image, each))


def compare(config: Config, setting: dict[str, Any], rates: dict[str, tuple[float, ...]]) -> dict[str, Any]:
    """By loss: the best of its rates, by the median distance from the validation labels, and errors of each seed."""
    seeds, count = config.seeds, config.frames

    def drawn(number: int, part: int) -> data.Frames:
        return data.frames(number, 10 * config.seed + part, occluded=config.occluded, **setting)

    train, validation, test = drawn(seeds * count, 0), drawn(max(count // 2, 10), 1), drawn(1000, 2)
    steps = config.epochs * -(-count // min(config.batch_size, count))
    optimizer = sweeps.decaying_adam(steps, warmup=-(-steps // 10))  # without it a network dies now and then
    networks = [functional(Locator(32, config.channels, rngs=nnx.Rngs(config.seed + k))) for k in range(seeds)]
    apply = networks[0][0]
    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for _, params in networks))

    def scaled(frames: data.Frames) -> tuple[np.ndarray, np.ndarray]:
        return frames.image, (frames.label - MIDDLE) / UNIT

    def distances(params: Any, frames: data.Frames, target: np.ndarray) -> np.ndarray:
        return np.linalg.norm(predictions(apply, params, frames.image) - target[None], axis=-1)

    def best(name: str, start: Any, loss: Callable | None, loss_settings: Any = None) -> dict[str, Any]:
        chosen, numbers = sweeps.grid(rates[name], seeds, config.seed)
        places = np.arange(count)[None] + count * (numbers - config.seed)[:, None]
        repeated = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * len(rates[name])), start)
        every = {key: np.tile(values, len(rates[name])) for key, values in (loss_settings or {}).items()}
        fitted = fit_many(
            apply if loss else Partial(learned, Partial(apply)), repeated, scaled(train), loss=loss,
            optimizer=optimizer, settings={"optimizer": {"learning_rate": chosen}, "loss": every}, rows=places,
            seeds=numbers, epochs=config.epochs, batch_size=min(config.batch_size, count),
            validation=scaled(validation),
        ).params  # fmt: skip
        model = fitted if loss else fitted["model"]
        medians = np.median(distances(model, validation, validation.label), 1).reshape(-1, seeds).mean(1)
        at = int(np.argmin(medians))
        fitted, model = (jax.tree.map(lambda leaf: leaf[at * seeds :][:seeds], tree) for tree in (fitted, model))
        errors = distances(model, test, test.centre)
        return {
            "rate": float(rates[name][at]),
            "params": model,
            "pixels": errors.mean(1).tolist(),
            "median": np.median(errors, 1).tolist(),
            "occluded": errors[:, test.occluded].mean(1).tolist() if test.occluded.any() else [],
            "settings": {key: np.asarray(value).tolist() for key, value in settings_of(fitted["loss"]).items()}
            if loss is None
            else {},
            "preds": predictions(apply, model, test.image),
            "test": test,
        }

    found = {"mse": best("mse", start, mse)}
    found["huber"] = best("huber", start, Partial(huber, delta=config.delta / UNIT))
    own = train.image.reshape(seeds, count, *train.image.shape[1:])
    residuals = predictions(apply, found["huber"]["params"], own, each=True) - train.label.reshape(seeds, count, 2)
    scales = 4.685 / 0.6745 * np.median(np.abs(residuals).reshape(seeds, -1), 1) / UNIT
    found["tukey"] = best("tukey", found["huber"]["params"], tukey, {"scale": scales.astype(np.float32)})
    zeros = {name: jnp.zeros(seeds) for name in ("alpha", "scale")}
    found["barron"] = best("barron", {"model": start, "loss": zeros}, None)
    found["tukey"]["settings"] = {"scale": (UNIT * scales).tolist()}
    found["barron"]["settings"]["scale"] = [UNIT * scale for scale in found["barron"]["settings"]["scale"]]
    return found


def _draw(folder: Path, tuned: Any, other: Any, best: str) -> None:
    figure, (*panels, right) = common.figure(4, height=4.3)
    figure.set_size_inches(14, 4.3)
    test = tuned["mse"]["test"]
    shown = np.flatnonzero(test.occluded)[:2].tolist() + np.flatnonzero(~test.occluded)[:1].tolist()
    for axes, number in zip(panels, shown, strict=False):
        axes.imshow(test.image[number, :, :, 0], cmap="gray")
        marks = {"true centre": (test.centre[number], "o", "white"), "label": (test.label[number], "x", "#FF6666")}
        for name, marker in (("mse", "^"), (best, "s")):
            marks[f"by {name}"] = (tuned[name]["preds"][0, number], marker, MARKS[name])
        for name, ((row, column), marker, color) in marks.items():
            size = 16 if name == "true centre" else 10
            axes.plot(
                column, row, marker, color=color, markersize=size, fillstyle="none", markeredgewidth=2.5, label=name
            )
        axes.grid(False)
        axes.set(xlabel="column, pixels", title="tracker lost" if test.occluded[number] else "tracker right")
    panels[0].set_ylabel("row, pixels")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=4, facecolor="#777777", labelcolor="white")
    for found, marker, fill, shift, label in (
        (tuned, "o", "full", -0.12, "these frames"),
        (other, "s", "none", 0.12, "other frames, same rates"),
    ):
        for number, name in enumerate(COLORS):
            pixels = found[name]["pixels"]
            told = label if number == 0 else None
            style = {"color": COLORS[name], "fillstyle": fill, "markersize": 7, "label": told}
            right.plot([number + shift] * len(pixels), pixels, marker, **style)
    right.set_xticks(range(len(COLORS)), list(COLORS))
    right.set(
        yscale="log", xlim=(-0.5, len(COLORS) - 0.5), ylim=(0.25, 16), ylabel="mean distance from the centre, pixels"
    )
    right.set_yticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
    right.set_title("test frames, one mark a seed", fontsize=11)
    right.legend(frameon=False, fontsize=9, loc="upper right")
    figure.savefig(folder / "figure.png", dpi=140)
