"""Pictures of predictions that are distributions or intervals."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from jaxloss.contract import OPEN_UNIT, ShapeError, check_settings, prepare
from jaxloss.likelihood.calibration import coverage as coverage_of
from jaxloss.likelihood.calibration import pit
from jaxloss.likelihood.distribution import Distribution
from jaxloss.likelihood.interval import Interval
from jaxloss.plots.canvas import (
    BLACK,
    BLUE,
    GRAY,
    ORANGE,
    SKY,
    annotate,
    in_unit,
    leave_empty,
    new_axes,
    set_title,
    write_in_corner,
)
from jaxloss.plots.entries import not_finite, present_entries

__all__ = ["intervals", "pit_histogram", "reliability"]

LEVELS = tuple(round(0.02 * step - 0.01, 2) for step in range(1, 51))
"""0.01, 0.03, …, 0.99: the levels of a reliability curve."""

INTERVALS = 150
"""The most intervals that one picture shows: more could not be told apart."""


def reliability(
    dist: Distribution, target: Any, *, weights: Any = None, where: Any = None, axes: Axes | None = None
) -> Axes:
    """The share of targets in the central interval of each level, against the level; see `jaxloss.coverage`.

    Right distributions are on the diagonal, within the band in 95 % of samples at each level. Below it the predicted
    intervals are too narrow, above it too wide.

    >>> axes = reliability(Normal(jnp.zeros(3), jnp.ones(3)), jnp.array([-1.0, 0.2, 0.5]))
    >>> axes.get_xlabel()
    'level of the interval'
    """
    shape = prepare("reliability", dist, target, weights, where)[2]
    each, missing = _drawn("reliability", shape, weights, where, pit(dist, target), target)
    axes = new_axes(axes)
    set_title(axes, "Coverage of central intervals")
    axes.set(xlabel="level of the interval", ylabel="share of targets inside")
    if not each.any():
        leave_empty(axes)
    else:
        levels = np.array(LEVELS)
        shares = np.asarray(coverage_of(dist, target, levels, weights=each, where=each > 0), np.float64)
        error = 1.96 * np.sqrt(levels * (1 - levels) * _inverse_size(each))
        axes.fill_between(levels, levels - error, levels + error, color=GRAY, alpha=0.25, linewidth=0)
        axes.plot((0, 1), (0, 1), color=GRAY, linewidth=1)
        axes.plot(levels, shares, color=BLUE, linewidth=2)
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
        worst = int(np.argmax(np.abs(shares - levels)))
        write_in_corner(
            axes, f"widest gap: the {100 * levels[worst]:.0f} % interval\nholds {100 * shares[worst]:.1f} %"
        )
        write_in_corner(axes, "below the line: too narrow", right=True, top=False, color=GRAY)
    return annotate(axes, [missing])


def pit_histogram(
    dist: Distribution,
    target: Any,
    *,
    weights: Any = None,
    where: Any = None,
    bins: int = 20,
    seed: int = 0,
    axes: Axes | None = None,
) -> Axes:
    """Histogram of the probability integral transform F(target); right distributions make it flat.

    A hump means predicted distributions too wide, a bowl too narrow, a slope a bias. The band holds 95 % of bars by
    chance. Of counts the transform is randomised, by `seed` (`jaxloss.pit`).

    >>> axes = pit_histogram(Normal(jnp.zeros(3), jnp.ones(3)), jnp.array([-1.0, 0.2, 0.5]), bins=2)
    >>> axes.get_xlabel()
    'F(target)'
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"pit_histogram: bins must be a whole number of at least 1, got {bins!r}")
    shape = prepare("pit_histogram", dist, target, weights, where)[2]
    values = np.asarray(pit(dist, target, key=jax.random.key(seed) if dist.discrete else None), np.float64)
    each, missing = _drawn("pit_histogram", shape, weights, where, values, target)
    axes = new_axes(axes)
    set_title(axes, "Probability integral transform")
    axes.set(xlabel="F(target)", ylabel="density")
    if not each.any():
        leave_empty(axes)
    else:
        counts, edges = np.histogram(values[each > 0], bins, (0, 1), weights=each[each > 0])
        error = 1.96 * np.sqrt((bins - 1) * _inverse_size(each))
        axes.stairs(counts / each.sum() * bins, edges, fill=True, color=SKY, zorder=1)
        axes.axhspan(max(1 - error, 0), 1 + error, color=BLACK, alpha=0.15, linewidth=0, zorder=2)
        axes.axhline(1, color=BLACK, linewidth=1, zorder=2)
        axes.set(xlim=(0, 1), ylim=(0, None))
    return annotate(axes, [f"randomised, seed {seed}" * dist.discrete, missing])


def intervals(
    pred: Distribution | Interval,
    target: Any,
    x: Any = None,
    *,
    coverage: float = 0.9,
    weights: Any = None,
    where: Any = None,
    unit: str | None = None,
    seed: int = 0,
    axes: Axes | None = None,
) -> Axes:
    """Each entry's prediction interval as a bar and its target as a dot, orange if outside, along x.

    pred: an `Interval`, or a distribution, whose central interval of the given coverage is drawn.
    x: where to draw each, of the target's shape: a feature, a time, or the prediction itself; its number if not given.

    Of more than 150 a sample by `seed` is drawn; the share inside is that of all, by weight.

    >>> axes = intervals(Normal(jnp.zeros(3), jnp.ones(3)), jnp.array([-2.0, 0.2, 0.5]), coverage=0.9)
    >>> axes.get_title(loc="left")
    '66.7 % of targets are in their 90 % interval'
    """
    check_settings("intervals", {"coverage": coverage}, {"coverage": None}, {"coverage": OPEN_UNIT})
    if not isinstance(pred, Distribution | Interval):
        raise TypeError(f"intervals: pred must be a distribution or an Interval, got {type(pred).__name__}")
    shape = prepare("intervals", pred, target, weights, where)[2]
    if x is not None and np.shape(x) != shape:
        raise ShapeError(f"intervals: x has shape {np.shape(x)} and target has shape {shape}; they must be equal")
    numbered = x is None
    x = np.arange(np.size(target)).reshape(shape) if numbered else x
    tail = (1 - coverage) / 2
    ends = (pred.lower, pred.upper) if isinstance(pred, Interval) else map(pred.quantile, (tail, 1 - tail))
    lower, upper, x, target = (np.asarray(values, np.float64) for values in (*ends, x, target))
    each, missing = _drawn("intervals", shape, weights, where, lower, upper, x, target)
    axes = new_axes(axes)
    set_title(axes, "Prediction intervals")
    axes.set(xlabel="row" if numbered else "x", ylabel=in_unit("target", unit))
    if not each.any():
        leave_empty(axes)
        return annotate(axes, [missing])
    lower, upper, x, target, weight = (values[each > 0] for values in (lower, upper, x, target, each))
    inside = (target >= lower) & (target <= upper)
    rows, note = np.arange(target.size), ""
    if target.size > INTERVALS:
        rows = np.sort(np.random.default_rng(seed).choice(target.size, INTERVALS, replace=False))
        note = f"drawn: {INTERVALS} of {target.size:,} intervals, seed {seed}"
    if numbered:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.vlines(x[rows], lower[rows], upper[rows], color=BLUE, alpha=0.35, linewidth=2)
    for held, color, size in ((True, BLUE, 9), (False, ORANGE, 20)):
        part = rows[inside[rows] == held]
        axes.scatter(x[part], target[part], s=size, color=color, linewidths=0, zorder=3)
    kind = "interval" if isinstance(pred, Interval) else f"{100 * coverage:.4g} % interval"
    share = 100 * np.average(inside, weights=weight)
    set_title(axes, f"{share:.1f} % of targets are in their {kind}")
    return annotate(axes, [note, missing])


def _drawn(name: str, shape: Any, weights: Any, where: Any, *values: Any) -> tuple[np.ndarray, str]:
    """The weight of every entry, 0 for those not drawn, and the note about what is not finite."""
    present, each = present_entries(name, shape, weights, where)
    finite = np.all([np.isfinite(np.asarray(value, np.float64)) for value in (*values, each)], axis=0)
    return np.where(present & finite, each, 0.0), not_finite(int((present & ~finite).sum()))


def _inverse_size(weights: np.ndarray) -> float:
    """1/n, with Kish's effective number for n."""
    return float(np.square(weights).sum() / weights.sum() ** 2)
