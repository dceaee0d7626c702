"""The entries to be drawn, checked as a loss checks them, on the host, in float64; and what is drawn of them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from jaxloss.contract import as_arrays, prepare

__all__ = [
    "Entries",
    "bin_edges",
    "entries_of",
    "lorenz",
    "not_finite",
    "present_entries",
    "quantiles",
    "ranked",
    "running_quantiles",
]

Array = np.ndarray

POINTS = 20_000
"""The most points that a scatter shows, beside the worst."""

WORST = 20
"""How many of the largest errors a scatter shows in any case."""


@dataclass(frozen=True)
class Entries:
    """Flat arrays of what is neither masked, nor of weight 0, nor not finite."""

    pred: Array
    target: Array
    residual: Array
    weights: Array
    nonfinite: int
    """How many entries were left out because they are not finite."""

    @property
    def size(self) -> int:
        """How many entries there are to draw."""
        return self.residual.size

    def mean(self, values: Array) -> float:
        """The weighted mean."""
        return float(np.average(values, weights=self.weights))

    @property
    def effective(self) -> float:
        """Kish's effective number of entries, (Σw)²/Σw²."""
        return float(self.weights.sum() ** 2 / np.square(self.weights).sum())

    @property
    def weighted(self) -> bool:
        """Whether some entry has another weight than 1."""
        return bool(np.any(self.weights != 1))

    def ascending(self, key: Array) -> tuple[Array, Array]:
        """The residuals in the order of the key, and their weights."""
        order = np.argsort(key, kind="stable")
        return self.residual[order], self.weights[order]

    def sample(self, seed: int) -> tuple[Array, str]:
        """Which entries a scatter shows, in order, and the note about it: a seeded sample and the worst of all."""
        if self.size <= POINTS:
            return np.arange(self.size), ""
        drawn = np.random.default_rng(seed).choice(self.size, POINTS, replace=False)
        worst = np.argpartition(-np.abs(self.residual), WORST)[:WORST]
        note = f"points: {POINTS:,} of {self.size:,} entries, seed {seed}, and the {WORST} largest errors"
        return np.union1d(drawn, worst), note

    @property
    def left_out(self) -> str:
        """The note about entries that are not finite."""
        return not_finite(self.nonfinite)


def entries_of(name: str, pred: Any, target: Any, weights: Any, where: Any) -> Entries:
    """All entries, pooled."""
    if not jax.tree_util.all_leaves([pred]):
        raise TypeError(f"{name}: pred must be one array, got {type(pred).__name__}: pass its .mean")
    pred, target, weights, where = as_arrays(pred, target, weights, where)
    _, _, shape = prepare(name, pred, target, weights, where)
    pred, target = np.asarray(pred, np.float64), np.asarray(target, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        residual = pred - target
    finite = np.isfinite(residual) & np.isfinite(pred) & np.isfinite(target)
    present, weights = present_entries(name, shape, weights, where)
    finite &= np.isfinite(weights)
    drawn = present & finite
    lost = int((present & ~finite).sum())
    return Entries(pred[drawn], target[drawn], residual[drawn], weights[drawn], lost)


def not_finite(number: int) -> str:
    """The note about so many entries that are not finite; none about none."""
    return f"{number:,} {'entry is' if number == 1 else 'entries are'} not finite: not drawn" if number else ""


def present_entries(name: str, shape: tuple[int, ...], weights: Any, where: Any) -> tuple[Array, Array]:
    """Which entries are neither masked nor of weight 0, and every entry's weight."""
    each = np.broadcast_to(np.asarray(1.0 if weights is None else weights, np.float64), shape)
    present = np.broadcast_to(np.asarray(True if where is None else where), shape) & (each != 0)
    if np.any(each[present] < 0):
        raise ValueError(f"{name}: weights must be at least 0 to be drawn, got {each[present].min():g}")
    return present, each


def quantiles(values: Array, levels: Any, weights: Array) -> Array:
    """The least values with the given shares of the weight at or below them."""
    unequal = None if np.all(weights == weights[:1]) else weights  # with weights NumPy sorts, which takes longer
    return np.quantile(values, levels, weights=unequal, method="inverted_cdf")


def running_quantiles(entries: Entries, levels: tuple[float, ...]) -> tuple[Array, Array]:
    """Quantiles of the residual in groups along the prediction: the groups' medians, and an array (groups, levels).

    Groups have equal weight, of 25 entries or more, but towards either end of the prediction half that of the group
    before, down to 25 entries. Equal predictions are in one group. Of fewer than 50 entries there are no groups.
    """
    number = min(entries.size // 25, round(1.2 * entries.size ** (1 / 3)), 100)
    if number < 2:
        return np.empty(0), np.empty((0, len(levels)))
    shares = np.arange(1, number) / number
    tails = 0.5 ** np.arange(1, 1 + max(0, int(np.log2(entries.size / number / 25)))) / number
    edges = np.unique(quantiles(entries.pred, np.sort([*tails, *shares, *(1 - tails)]), entries.weights))
    order = np.argsort(entries.pred, kind="stable")
    cuts = np.searchsorted(entries.pred[order], edges, side="right")
    centres, bands = [], []
    for group in np.split(order, cuts):
        if group.size:
            weights = entries.weights[group]
            centres.append(quantiles(entries.pred[group], 0.5, weights))
            bands.append(quantiles(entries.residual[group], levels, weights))
    return np.array(centres), np.array(bands)


def bin_edges(entries: Entries) -> Array:
    """The ends of bins by Freedman and Diaconis, 8 to 80 of them, within 6 robust standard deviations of the median."""
    residual, weights = entries.residual, entries.weights
    low, high = residual.min(), residual.max()
    quarter, median, three = quantiles(residual, (0.25, 0.5, 0.75), weights)
    spread = (three - quarter) / (2 * NormalDist().inv_cdf(0.75))
    if spread > 0:
        low, high = max(low, median - 6 * spread), min(high, median + 6 * spread)
    if low == high:
        width = max(abs(low), 1.0)
        return np.linspace(low - width, high + width, 10)
    width = 2 * (three - quarter) / entries.effective ** (1 / 3)
    number = int(np.clip(np.ceil((high - low) / width), 8, 80)) if width > 0 else 30
    return np.linspace(low, high, number + 1)


def ranked(entries: Entries) -> tuple[Array, Array]:
    """The share of the weight below the middle of each residual, and the residuals, ascending."""
    residual, weights = entries.ascending(entries.residual)
    return (np.cumsum(weights) - weights / 2) / weights.sum(), residual


def lorenz(entries: Entries) -> tuple[Array, Array]:
    """Share of the weight and of the squared error in the worst 0, 1, 2, … entries."""
    residual, weights = entries.ascending(-np.abs(entries.residual))
    size = max(np.abs(residual).max(), np.finfo(float).tiny)  # squares of small numbers do not vanish
    squares = weights * np.square(residual / size)
    within, carried = (np.concatenate([[0], np.cumsum(values)]) for values in (weights, squares))
    return within / within[-1], carried / (carried[-1] or 1)
