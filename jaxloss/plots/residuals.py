"""Pictures of the residuals pred − target.

Each is written once, as a function that draws entries and returns its notes, which the panel puts below all; `picture`
makes of it the function of predictions and targets.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from jaxloss.plots.canvas import BLUE, GRAY, ORANGE, add_legend, in_unit, leave_empty, set_title
from jaxloss.plots.entries import Entries, bin_edges, lorenz, quantiles, ranked, running_quantiles
from jaxloss.plots.picture import picture

__all__ = [
    "actual_against_predicted",
    "draw_actual",
    "draw_histogram",
    "draw_qq",
    "draw_residuals",
    "draw_share",
    "residual_histogram",
    "residual_qq",
    "residuals_against_prediction",
    "squared_error_share",
]

BAND = (0.1, 0.5, 0.9)
"""Levels of the running band's ends and of its median."""

TOP = 0.01
"""The share of the entries whose part of the squared error is told, as in `ResidualStats.summary`."""

NORMAL = NormalDist()


def draw_residuals(axes: Axes, entries: Entries, *, unit: str | None = None, seed: int = 0) -> list[str]:
    """Residual against prediction, with the running median and the band that holds the middle 80 %.

    A median off 0 shows where predictions are too high or too low; a band that widens, noise that grows. Of more than
    20,000 points a sample by `seed` is drawn, and the 20 largest errors. The area of a point grows with its weight.

    >>> axes = residuals_against_prediction(jnp.array([1.0, 2.0]), jnp.array([1.5, 1.5]), unit="kg")
    >>> axes.get_ylabel()
    'predicted − actual (kg)'
    """
    set_title(axes, "Residuals against prediction")
    axes.set(xlabel=in_unit("predicted", unit), ylabel=in_unit("predicted − actual", unit))
    if not entries.size:
        return _nothing(axes, entries)
    rows, note = entries.sample(seed)
    _scatter(axes, entries.pred[rows], entries.residual[rows], entries, rows)
    axes.axhline(0, color=GRAY, linewidth=0.8)
    centres, band = running_quantiles(entries, BAND)
    if len(centres) > 1:
        axes.plot(centres, band[:, 1], color=ORANGE, linewidth=2, label="running median")
        axes.plot(centres, band[:, ::2], "--", color=ORANGE, linewidth=1.2, label=("middle 80 %", "_"))
        add_legend(axes)
    return [note, _weighted(entries), entries.left_out]


residuals_against_prediction = picture("residuals_against_prediction", draw_residuals)


def draw_actual(axes: Axes, entries: Entries, *, unit: str | None = None, seed: int = 0) -> list[str]:
    """Target against prediction; a perfect prediction is on the diagonal. Points as `residuals_against_prediction`.

    Predictions are across: at each of them the mean target should be on the diagonal; not so at each target.

    >>> axes = actual_against_predicted(jnp.array([1.0, 2.0]), jnp.array([1.5, 1.5]))
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('predicted', 'actual')
    """
    set_title(axes, "Actual against predicted")
    axes.set(xlabel=in_unit("predicted", unit), ylabel=in_unit("actual", unit))
    if not entries.size:
        return _nothing(axes, entries)
    rows, note = entries.sample(seed)
    _scatter(axes, entries.pred[rows], entries.target[rows], entries, rows)
    low, high = max(entries.pred.min(), entries.target.min()), min(entries.pred.max(), entries.target.max())
    if low >= high:
        low, high = entries.pred.min(), entries.pred.max()
    axes.axline((low, low), slope=1, color=GRAY, linewidth=1)
    return [note, _weighted(entries), entries.left_out]


actual_against_predicted = picture("actual_against_predicted", draw_actual)


def draw_histogram(axes: Axes, entries: Entries, *, unit: str | None = None) -> list[str]:
    """Histogram of the residuals (by weight), and the normal density with their mean and standard deviation.

    A peak above the normal with longer tails means outliers; a lean, skewed errors. The axis ends 6 robust standard
    deviations from the median; what lies beyond is counted in a note.

    >>> axes = residual_histogram(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.5, 1.5, 2.0]))
    >>> axes.get_xlabel()
    'predicted − actual'
    """
    set_title(axes, "Distribution of residuals")
    axes.set(xlabel=in_unit("predicted − actual", unit), ylabel="density", yticks=[])
    if not entries.size:
        return _nothing(axes, entries)
    residual, weights = entries.residual, entries.weights
    edges = bin_edges(entries)
    inside = (residual >= edges[0]) & (residual <= edges[-1])
    counts, _ = np.histogram(residual, edges, weights=weights)
    axes.stairs(counts / weights.sum() / np.diff(edges), edges, fill=True, color=BLUE, alpha=0.55, label="residuals")
    mean = entries.mean(residual)
    spread = np.sqrt(entries.mean(np.square(residual - mean)))
    if spread > 0:
        grid = np.linspace(edges[0], edges[-1], 201)
        normal = NormalDist(mean, spread)
        label = "normal of same\nmean and sd"
        axes.plot(grid, [normal.pdf(value) for value in grid], color=ORANGE, linewidth=1.8, label=label)
        add_legend(axes)
    axes.axvline(0, color=GRAY, linewidth=0.8)
    beyond = int(entries.size - inside.sum())
    told = f"{beyond:,} of {entries.size:,} residuals are beyond the histogram's ends" if beyond else ""
    return [told, entries.left_out]


residual_histogram = picture("residual_histogram", draw_histogram)


def draw_qq(axes: Axes, entries: Entries, *, unit: str | None = None) -> list[str]:
    """Sorted residuals against normal quantiles at (i − ½)/n, by weight; normal residuals lie on the line.

    The line goes through the quartiles, which outliers do not move; the band holds 95 % of normal samples at each point
    (from the order statistic's standard error, as in Fox 2016, §12.1). Ends outside it are heavy tails, a bow is skew.
    Of many entries those at 500 quantiles are drawn, and the 50 at each end.

    >>> axes = residual_qq(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.5, 1.5, 2.0]))
    >>> axes.get_xlabel()
    'normal quantile (sd)'
    """
    set_title(axes, "Q–Q: are residuals normal?")
    axes.set(xlabel="normal quantile (sd)", ylabel=in_unit("predicted − actual", unit))
    if not entries.size:
        return _nothing(axes, entries)
    levels, values = ranked(entries)
    shown = _thinned(levels)
    normal = np.array([NORMAL.inv_cdf(level) for level in levels[shown]])
    quarter, three = quantiles(entries.residual, (0.25, 0.75), entries.weights)
    spread = (three - quarter) / (2 * NORMAL.inv_cdf(0.75))
    if spread > 0:
        line = (quarter + three) / 2 + spread * normal
        density = np.array([NORMAL.pdf(value) for value in normal])
        error = spread * np.sqrt(levels[shown] * (1 - levels[shown]) / entries.effective) / density
        axes.fill_between(normal, line - 1.96 * error, line + 1.96 * error, color=GRAY, alpha=0.25, linewidth=0)
        axes.plot(normal, line, color=GRAY, linewidth=1)
    axes.plot(normal, values[shown], "o", color=BLUE, markersize=3.5, markeredgewidth=0)
    return [entries.left_out]


residual_qq = picture("residual_qq", draw_qq)


def _thinned(levels: np.ndarray, ends: int = 50, between: int = 500) -> np.ndarray:
    """All indices, or of many those at both ends and evenly along the normal quantiles."""
    if len(levels) <= between + 2 * ends:
        return np.arange(len(levels))
    first, last = NORMAL.inv_cdf(levels[0]), NORMAL.inv_cdf(levels[-1])
    wanted = [NORMAL.cdf(value) for value in np.linspace(first, last, between)]
    middle = np.clip(np.searchsorted(levels, wanted), 0, len(levels) - 1)
    return np.unique(np.concatenate([np.arange(ends), middle, np.arange(len(levels) - ends, len(levels))]))


def draw_share(axes: Axes, entries: Entries) -> list[str]:
    """The share of the squared error that the worst entries carry (a Lorenz curve, from the largest error down).

    Normal errors follow the grey curve: of them the worst 1 % carry 8.5 %. Far above it, a few rows decide what squared
    error learns: look at them, or take a robust loss.

    >>> axes = squared_error_share(jnp.array([1.0, 2.0]), jnp.array([1.5, 1.5]))
    >>> axes.get_xscale()
    'log'
    """
    set_title(axes, "Share of squared error")
    axes.set(xlabel="worst entries, share of all", ylabel="share of squared error")
    if not entries.size:
        return _nothing(axes, entries)
    worst, carried = lorenz(entries)
    if carried[-1] == 0:
        leave_empty(axes, "every error is 0")
        return [entries.left_out]
    top = max(TOP, worst[1])
    first = max(min(top / 10, worst[1]), top / 100)
    grid = np.geomspace(first, 1, 200)
    share = np.interp(top, worst, carried)
    axes.plot(grid, [_normal_share(value) for value in grid], color=GRAY, linewidth=1.2, label="normal errors")
    axes.plot(grid, np.interp(grid, worst, carried), color=BLUE, linewidth=2, label="these errors")
    axes.plot(top, share, "o", color=ORANGE, markersize=7)
    set_title(axes, f"The worst {100 * top:.3g} % carry {100 * share:.3g} %")
    axes.set(xscale="log", xlim=(first, 1), ylim=(0, 1.02))
    percent = FuncFormatter(lambda value, _: f"{100 * value:.3g} %")
    axes.xaxis.set_major_formatter(percent)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(percent)
    add_legend(axes)
    return [entries.left_out]


squared_error_share = picture("squared_error_share", draw_share)


def _normal_share(top: float) -> float:
    """What the worst entries carry when errors are normal about 0: p + 2zφ(z), with z their least size."""
    z = -NORMAL.inv_cdf(top / 2) if top < 1 else 0.0
    return top + 2 * z * NORMAL.pdf(z)


def _scatter(axes: Axes, x: np.ndarray, y: np.ndarray, entries: Entries, rows: np.ndarray) -> None:
    """Points that stay legible whether they are 20 or 20,000; their area grows with the weight."""
    alpha = float(np.clip(15 / np.sqrt(len(rows)), 0.15, 0.7))
    area: Any = float(np.clip(600 / np.sqrt(len(rows)), 5, 30))
    if entries.weighted:
        area = np.clip(area * entries.weights[rows] / entries.weights.mean(), 0.5, 12 * area)
    axes.scatter(x, y, s=area, color=BLUE, alpha=alpha, linewidths=0, rasterized=True)


def _weighted(entries: Entries) -> str:
    return "area of a point: its weight" if entries.weighted else ""


def _nothing(axes: Axes, entries: Entries) -> list[str]:
    leave_empty(axes)
    return [entries.left_out or "no entries"]
