"""Denoising where nobody has the clean wave: which loss lives with impulses in its targets?

    python -m experiments signal

Two recorders hear the same wave, each with noise and impulses of its own (simulated, `data.Recorder`). A network sees
31 samples of one recording and estimates the wave in the middle, learning from the other recording: no clean wave is
needed, where the loss's best constant for wave + noise + impulse is the wave. Squared error's is the mean, which
impulses that go one way shift; the others' are near the median. The network adds to a running median of 7 samples.
Units are those of the noise, as the difference of the recordings tells it: Huber's δ is 1.345 of it, log-cosh bends at
about 1. The rates are chosen on the first recorder, by each loss on validation waves that are as spoilt as the training
waves, and used on the second, with other waves, noise and impulses. Two controls share the first's waves:
impulses that go both ways, and clean targets. All are tested against clean waves.

Answer: over eight seeds the robust losses raise the signal-to-noise ratio by 18.7 to 19.0 dB, squared error by 12.0 ±
0.7 (second recorder: 15.9 to 16.0 and 10.2 ± 0.3), which is less than the best running median's 16.3 (14.8): it learns
the impulses' mean too, and lifts the wave by 22 % of its RMS. Impulses that go both ways leave the mean where it is,
and cost squared error 1.6 dB by their spread alone. With clean targets there is nothing to choose, 20.3 to 20.4 dB,
though the recordings hold the same impulses: it is outliers in the target that squared error cannot live with, not
those in the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from experiments import common, data, sweeps
from experiments.models import Denoiser
from experiments.sweeps import Estimate
from jaxloss import diagnose, huber, log_cosh, mae, mse
from jaxloss.metrics import ResidualStats
from jaxloss.train import functional

UPWARDS = data.Recorder(periods=(20, 80), noise=0.2, share=0.05, size=2.0, signs=(1,))
SETTINGS = {
    "upwards": (UPWARDS, "second"),
    "second": (data.Recorder(periods=(30, 120), noise=0.3, share=0.08, size=1.5, signs=(1,)), "second"),
    "both ways": (UPWARDS._replace(signs=(-1, 1)), "second"),
    "clean targets": (UPWARDS, "clean"),
}
"""The recorder and the target. The rates are chosen on the first, and used on the others; "second" hears other
waves, the last two the first's."""
WINDOW = 31
"""Samples that the network sees around the one it estimates."""
MEDIANS = (3, 5, 7, 9, 11)
"""Widths of the running median to choose from."""
PRIOR = 7
"""Width of that which the network starts from."""
BEND = 5.0
"""Noises: what the network sees is bent down beyond this, and what it puts out is in units of it."""
ROBUST = {"huber": Partial(huber, delta=1.345), "log_cosh": log_cosh, "mae": mae}
"""Their settings are in units of the noise, in which the targets are."""
TINY = {"waves": 40, "seeds": 6, "hidden": 32, "epochs": 24, "rates": (1e-2,)}
"""Settings under which a run is short, and every claim holds."""


@dataclass(frozen=True)
class Config(common.Config):
    waves: int = 40
    """Training waves of each seed; half as many for validation and as many for the test."""
    samples: int = 200
    """Of a wave."""
    seeds: int = 8
    """Data sets and initial weights, each its own."""
    hidden: int = 64
    epochs: int = 30
    batch_size: int = 100
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Learning rates (Adam, decaying to 0) to choose from, for each loss by its own validation loss."""
    seed: int = 0


class Waves(NamedTuple):
    """What a setting gives to learn from and to be tested on; the first axis of all is that of the seeds."""

    recordings: data.Recordings
    """Of shape (seeds, waves, samples), in units of the noise as it is estimated."""
    target: np.ndarray
    """What is learned from: the second recording, or the clean wave."""
    noise: float
    """The unit: robust scale of what the two recordings of the training waves differ by, over √2."""


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, "hidden", "epochs", "batch_size", "rates", seeds=2, waves=2, samples=2 * WINDOW)
    total, rows = 2 * config.waves, config.waves * (config.samples - WINDOW + 1)
    if config.batch_size > rows:
        raise common.UserError(f"--batch-size {config.batch_size}: the training waves have {rows} windows")
    train, validation, test = np.split(np.arange(total), [config.waves, config.waves + config.waves // 2])
    settings = {name: record(config, *setting, total, train) for name, setting in SETTINGS.items()}
    models = [
        Denoiser((WINDOW, config.hidden, config.hidden, 1), BEND, rngs=nnx.Rngs(config.seed + seed))
        for seed in range(config.seeds)
    ]
    estimate, starts = functional(models[0])[0], [functional(model)[1] for model in models]
    preds: dict[str, dict[str, np.ndarray]] = {name: {} for name in settings}
    rates: dict[str, float] = {}
    tuned, *checked = settings
    for loss_name, loss in {"mse": mse, **ROBUST}.items():
        for names in ([tuned], checked) if len(config.rates) > 1 else ([tuned, *checked],):
            chosen = [settings[name] for name in names]
            x, y = (np.concatenate(parts) for parts in zip(*map(windows_of, chosen), strict=True))
            sweep = sweeps.fit_seeds(
                estimate, starts * len(names), (x.reshape(-1, x.shape[-1]), y.reshape(-1, 1)),
                (places(x, train), places(x, validation)), loss=loss,
                rates=(rates[loss_name],) if names is checked else config.rates,
                epochs=config.epochs, batch_size=config.batch_size,
            )  # fmt: skip
            rates[loss_name] = sweep.rate
            found = np.asarray(sweeps.predict_seeds(estimate, sweep.params, x[:, test])[..., 0])
            preds |= {
                name: preds[name] | {loss_name: part}
                for name, part in zip(names, np.split(found, len(names)), strict=True)
            }
    scored = {}
    for name, waves in settings.items():
        preds[name]["median"] = running_median(waves, validation)[:, test]
        scored[name] = {way: scores(pred, waves, test) for way, pred in preds[name].items()}
    claims = {claim: bool(holds) for claim, holds in judged(scored).items()}
    _report(scored, rates)
    common.print_claims(claims)
    verdict = verdict_of(scored)
    print(f"\n{verdict}")
    _draw(folder, settings[tuned], test, preds[tuned], scored)
    return {"settings": jax.tree.map(Estimate.of, scored), "rates": rates, "claims": claims, "verdict": verdict}


def record(config: Config, recorder: data.Recorder, target: str, total: int, train: np.ndarray) -> Waves:
    """Settings with the same recorder have the same recordings; another one hears other waves."""
    first = config.seed + 1000 * (recorder.periods != UPWARDS.periods)
    sets = [recorder.record(total, config.samples, first + seed) for seed in range(config.seeds)]
    recordings = data.Recordings(*map(np.stack, zip(*sets, strict=True)))
    gap = (recordings.first - recordings.second)[:, train].ravel()
    noise = diagnose(gap, np.zeros_like(gap)).figures["robust_scale"] / np.sqrt(2)
    recordings = data.Recordings(*(part / noise for part in recordings))
    return Waves(recordings, getattr(recordings, target), noise)


def windows(waves: np.ndarray) -> np.ndarray:
    """Of shape (…, samples − WINDOW + 1, WINDOW)."""
    return np.lib.stride_tricks.sliding_window_view(waves, WINDOW, axis=-1)


def middle(waves: np.ndarray, width: int = 1) -> np.ndarray:
    """The samples in the middle of each window."""
    return windows(waves)[..., (WINDOW - width) // 2 : (WINDOW + width) // 2]


def windows_of(waves: Waves) -> tuple[np.ndarray, np.ndarray]:
    """Windows of the first recording, with the running median as a last column; and the target of each."""
    first = waves.recordings.first
    prior = np.median(middle(first, PRIOR), axis=-1, keepdims=True)
    x = np.concatenate([windows(first), prior], axis=-1)
    return x.astype(np.float32), middle(waves.target).astype(np.float32)


def places(x: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """The rows of these waves, when all seeds' windows are put in one column."""
    numbered = np.arange(np.prod(x.shape[:3])).reshape(x.shape[:3])
    return numbered[:, waves].reshape(len(x), -1)


def running_median(waves: Waves, validation: np.ndarray) -> np.ndarray:
    """That of the width with the lowest absolute error against the target on validation waves."""
    target = middle(waves.target)[..., 0]
    found = [np.median(middle(waves.recordings.first, width), axis=-1) for width in MEDIANS]
    return min(found, key=lambda pred: np.abs(pred - target)[:, validation].mean())


def scores(pred: np.ndarray, waves: Waves, test: np.ndarray) -> dict[str, np.ndarray]:
    """Of every seed against the clean waves: decibels, and the mean error in per cent of the waves' RMS."""
    clean, heard = (middle(part[:, test])[..., 0] for part in (waves.recordings.clean, waves.recordings.first))
    power = np.mean(clean**2, axis=(1, 2))

    def errors(estimate: np.ndarray) -> list[dict[str, Any]]:
        return [ResidualStats.of(*pair).summary() for pair in zip(estimate, clean, strict=True)]

    before, after = (np.array([one["mse"] for one in errors(estimate)]) for estimate in (heard, pred))
    return {
        "gain": 10 * np.log10(before / after),
        "snr": 10 * np.log10(power / after),
        "bias": 100 * np.array([one["bias"] for one in errors(pred)]) / np.sqrt(power),
    }


def judged(scored: dict[str, Any]) -> dict[str, bool]:
    """Differences are paired by seed."""

    def better(name: str, way: str, other: str = "mse") -> Estimate:
        return Estimate.of(scored[name][way]["gain"] - scored[name][other]["gain"])

    def bias(name: str, way: str) -> float:
        return float(scored[name][way]["bias"].mean())

    claims = {}
    for name in ("upwards", "second"):
        claims |= {
            f"{name}: every robust loss gains 2 dB or more over squared error, beyond two standard errors": all(
                better(name, way).mean - 2 * better(name, way).error > 2 for way in ROBUST
            ),
            f"{name}: squared error learns the impulses' mean, more than three times what the others learn of it": (
                bias(name, "mse") > 3 * max(abs(bias(name, way)) for way in ROBUST)
            ),
            f"{name}: learning from recordings alone, they beat the running median": all(
                better(name, way, "median").beyond_chance for way in ROBUST
            ),
        }
    return claims | {
        "both ways: the mean is right, and the robust losses gain less, but still gain": all(
            better("both ways", way).beyond_chance and better("both ways", way).mean < better("upwards", way).mean
            for way in ROBUST
        ),
        "clean targets: squared error is within 1 dB of the others": all(
            abs(better("clean targets", way).mean) < 1 for way in ROBUST
        ),
        "and all are better than any that learned from recordings": (
            min(scored["clean targets"][way]["gain"].mean() for way in ("mse", *ROBUST))
            > max(scored["upwards"][way]["gain"].mean() for way in ("mse", *ROBUST))
        ),
    }


def verdict_of(scored: dict[str, Any]) -> str:
    def least(name: str) -> float:
        return min(np.mean(scored[name][way]["gain"] - scored[name]["mse"]["gain"]) for way in ROBUST)

    return (
        f"With impulses upwards in the targets every robust loss gains at least {least('upwards'):.1f} dB over squared "
        f"error ({least('second'):.1f} on the second recorder)."
    )


def _report(scored: dict[str, Any], rates: dict[str, float]) -> None:
    columns = ("trained by", *scored, "mean error, %")
    table = [
        (
            way,
            *(Estimate.of(ways[way]["gain"]) for ways in scored.values()),
            Estimate.of(scored["upwards"][way]["bias"]),
        )
        for way in scored["upwards"]
    ]
    title = "Gain in signal-to-noise ratio, dB, on test waves; and the mean error, upwards, in % of the wave"
    common.print_table(f"\n{title}", columns, table)
    sweeps.print_rates(rates)


def _draw(folder: Path, waves: Waves, test: np.ndarray, preds: dict[str, np.ndarray], scored: dict[str, Any]) -> None:
    figure, (left, right) = common.figure(2, height=4.2)
    clean, heard = (
        waves.noise * middle(part[0, test[0]])[..., 0] for part in (waves.recordings.clean, waves.recordings.first)
    )
    colors = {"mse": "#D55E00", "huber": "#0072B2", "log_cosh": "#56B4E9", "mae": "#009E73", "median": "gray"}
    left.plot(heard, color="gray", alpha=0.5, linewidth=0.8, label="recording")
    left.plot(clean, color="black", linewidth=1.5, label="clean")
    for way, style in (("mse", "-"), ("huber", "--")):
        left.plot(waves.noise * preds[way][0, 0], style, color=colors[way], linewidth=1.5, label=way)
    top = max(2.5, 1.2 * float(np.abs(clean).max()))
    left.set(
        xlabel="sample", ylabel="wave (impulses go beyond)", ylim=(-top, 1.6 * top), xlim=(0, min(len(clean), 170)),
        title="impulses in the targets lift squared error",
    )  # fmt: skip
    left.legend(frameon=False, ncols=4, fontsize=8, loc="upper center")
    places = np.arange(len(scored))[::-1]
    for number, way in enumerate(colors):
        gains = [Estimate.of(ways[way]["gain"]) for ways in scored.values()]
        right.errorbar(
            [gain.mean for gain in gains], places + 0.15 * (2 - number), xerr=[2 * gain.error for gain in gains],
            fmt="os^Dx"[number], color=colors[way], label=way, markersize=5,
        )  # fmt: skip
    right.set_yticks(places, list(scored))
    right.set(xlabel="signal-to-noise gain, dB (± 2 se)", title="right is better")
    right.legend(frameon=False, fontsize=8, loc="lower left")
    figure.savefig(folder / "figure.png", dpi=140)
