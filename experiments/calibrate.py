"""How often does `diagnose` say what is not so, and how often does it miss what is?

    python -m experiments calibrate

Residuals are drawn many times over: clean ones (normal, of one size; with even predictions, with weights that vary,
with predictions of a long tail), and faulty ones (a bias, skew, outliers, heavy tails, spread that grows with the
prediction). The table holds the share of samples in which each verdict holds.

Answer: on clean residuals each verdict is wrong in at most 0.4 % of the samples of 20, 100 or 1,000 rows, and any of
them in at most 1.0 %; in none of 2000 samples of 10,000 rows (200 of 100,000, 20 of 1,000,000), where the practical
thresholds are nine standard errors away. From 1,000 rows on a bias of 0.2 sd, skew, 1 % outliers of 20 sd, Laplace
errors and a spread that doubles are each found in at least 99.9 %; of 100 rows in 15 % (bias), 24 % (spread), 26 to
79 % (skew) and 65 % (outliers, Laplace). From 1,000 rows on no fault is taken for another in more than 1.3 %, but that
skewed residuals and outliers have heavy tails. A bias of 0.005 sd is not called in a million rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import common
from jaxloss import Diagnosis
from jaxloss.diagnostics.verdicts import VERDICTS
from jaxloss.metrics import ResidualStats

ENTRIES = 2**21
"""At most so many residuals at once."""


class Sample(NamedTuple):
    """Predictions and residuals of many data sets, one to a column; weights or None."""

    pred: np.ndarray
    residual: np.ndarray
    weights: np.ndarray | None = None


Draw = Callable[[np.random.Generator, tuple[int, int]], Sample]


def even(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Predictions uniform on [10, 20]."""
    return 10 + 10 * rng.random(shape, np.float32)


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def with_outliers(rng: np.random.Generator, residual: np.ndarray, share: float, size: float) -> np.ndarray:
    """The residuals with a share of them replaced by ±size."""
    signs = np.where(rng.random(residual.shape, np.float32) < 0.5, -1, 1)
    return np.where(rng.random(residual.shape, np.float32) < share, size * signs, residual)


CLEAN: dict[str, Draw] = {
    "normal": lambda rng, shape: Sample(even(rng, shape), normal(rng, shape)),
    "normal, weights vary": lambda rng, shape: Sample(
        even(rng, shape), normal(rng, shape), rng.standard_exponential(shape, np.float32)
    ),
    "normal, long-tailed predictions": lambda rng, shape: Sample(np.exp(normal(rng, shape)), normal(rng, shape)),
}
"""Nothing is wrong with these."""


def growing(rng: np.random.Generator, shape: tuple[int, int]) -> Sample:
    pred = even(rng, shape)
    return Sample(pred, pred / 10 * normal(rng, shape))


FAULTY: dict[str, tuple[str, Draw]] = {
    "bias of 0.2 sd": ("bias", lambda rng, shape: Sample(even(rng, shape), normal(rng, shape) + np.float32(0.2))),
    "exponential": (
        "skew",
        lambda rng, shape: Sample(even(rng, shape), rng.standard_exponential(shape, np.float32) - 1),
    ),
    "lognormal, σ = 0.5": (
        "skew",
        lambda rng, shape: Sample(even(rng, shape), np.float32(np.exp(0.125)) - np.exp(0.5 * normal(rng, shape))),
    ),
    "1 % outliers of 20 sd": (
        "outliers",
        lambda rng, shape: Sample(even(rng, shape), with_outliers(rng, normal(rng, shape), 0.01, 20)),
    ),
    "Laplace": (
        "heavy_tails",
        lambda rng, shape: Sample(even(rng, shape), rng.laplace(size=shape).astype(np.float32)),
    ),
    "spread doubles": ("spread", growing),
}
"""The verdict that must hold, and how the data are drawn."""


TINY = {"sizes": (2000,), "repeats": 50}


@dataclass(frozen=True)
class Config(common.Config):
    sizes: tuple[int, ...] = (20, 100, 1000, 10_000, 100_000, 1_000_000)
    """Rows in a sample."""
    repeats: int = 2000
    """Samples at most of each kind; fewer of many rows, so that they have `budget` rows together."""
    budget: int = 20_000_000
    seed: int = 0


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, "sizes")
    rng = np.random.default_rng(config.seed)
    kinds = {name: (None, draw) for name, draw in CLEAN.items()} | FAULTY
    table: list[dict[str, Any]] = []
    for rows in config.sizes:
        repeats = max(20, min(config.repeats, config.budget // rows))
        for name, (fault, draw) in kinds.items():
            table.append({"rows": rows, "kind": name, "fault": fault, **rates(draw, rng, rows, repeats)})
    negligible = rates(
        lambda rng, shape: Sample(even(rng, shape), normal(rng, shape) + np.float32(0.005)), rng, max(config.sizes), 20
    )
    common.print_table(
        "share of samples in which a verdict holds, in percent",
        ("residuals", "rows", "samples", *(name.replace("_", " ") for name in VERDICTS), "any"),
        [
            (
                entry["kind"],
                f"{entry['rows']:,}",
                entry["repeats"],
                *(f"{100 * entry[v]:.3g}" for v in (*VERDICTS, "any")),
            )
            for entry in sorted(table, key=lambda entry: list(kinds).index(entry["kind"]))
        ],
    )
    print(f"a bias of 0.005 sd in {max(config.sizes):,} rows is called in {negligible['bias']:.1%}")
    clean = [entry for entry in table if entry["fault"] is None]
    many = [entry for entry in table if entry["fault"] and entry["rows"] >= 1000]
    claims = {f"false alarms of at most 1 %: {v}": max(e[v] for e in clean) <= 0.01 for v in VERDICTS}
    for name, (fault, _) in FAULTY.items():
        found = [entry[fault] for entry in many if entry["kind"] == name]
        claims[f"found in at least 99 % from 1,000 rows on: {name}"] = min(found, default=1.0) >= 0.99
    claims["a negligible bias is not called"] = negligible["bias"] == 0
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    _draw(folder, table, list(kinds), config.sizes)
    return {"rates": table, "claims": claims}


def rates(draw: Draw, rng: np.random.Generator, rows: int, repeats: int) -> dict[str, Any]:
    """The share of samples in which each verdict holds, and any; and in which it cannot be told."""
    columns = max(1, min(repeats, ENTRIES // rows, 100))
    verdicts = []
    while len(verdicts) < repeats:
        sample = draw(rng, (rows, columns))
        target = sample.pred - sample.residual
        stats = ResidualStats.of(sample.pred, target, weights=sample.weights, per_output=True)
        verdicts += [output.verdicts for output in Diagnosis.of(stats).outputs]
    holds = np.array([[found[name].holds is True for name in VERDICTS] for found in verdicts])
    unknown = np.array([[found[name].holds is None for name in VERDICTS] for found in verdicts])
    return {
        "repeats": len(verdicts),
        **dict(zip(VERDICTS, holds.mean(0).tolist(), strict=True)),
        "any": float(holds.any(1).mean()),
        "unknown": dict(zip(VERDICTS, unknown.mean(0).tolist(), strict=True)),
    }


def _draw(folder: Path, table: list[dict[str, Any]], kinds: list[str], sizes: tuple[int, ...]) -> None:
    figure, (left, right) = common.figure(2, height=4.2)
    for number, verdict in enumerate((*VERDICTS, "any")):
        worst = [max(e[verdict] for e in table if e["rows"] == rows and e["fault"] is None) for rows in sizes]
        style = {"color": "black", "linestyle": ":"} if verdict == "any" else {"color": f"C{number}"}
        left.plot(sizes, 100 * np.array(worst), marker=".", label=verdict.replace("_", " "), **style)
    left.axhline(1, color="gray", linestyle="--", linewidth=1)
    left.set(xscale="log", xlabel="rows", ylabel="worst of the clean kinds, %", title="false alarms")
    left.legend(frameon=False, fontsize=8)
    rows = min(sizes, key=lambda rows: abs(np.log(rows / 10_000)))
    matrix = [[100 * entry[v] for v in VERDICTS] for kind in kinds for entry in table
              if entry["kind"] == kind and entry["rows"] == rows]  # fmt: skip
    right.imshow(matrix, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    right.grid(False)
    for (row, column), value in np.ndenumerate(matrix):
        right.text(column, row, f"{value:.3g}", ha="center", va="center", color="white" if value > 50 else "black")
    right.set_xticks(range(len(VERDICTS)), [name.replace("_", " ") for name in VERDICTS], rotation=20)
    right.set_yticks(range(len(kinds)), kinds, fontsize=8)
    right.set_title(f"verdict holds, % of samples of {rows:,} rows", fontsize=10)
    figure.savefig(folder / "figure.png", dpi=140)
