"""One figure of the residuals' main pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxloss.contract import ShapeError, as_arrays, prepare
from jaxloss.plots import residuals
from jaxloss.plots.canvas import BLACK, GRAY, new_axes
from jaxloss.plots.entries import Entries, entries_of

__all__ = ["residual_panel"]

OUTPUTS = 6
"""The most outputs that one figure shows."""


def residual_panel(
    pred: Any,
    target: Any,
    *,
    weights: Any = None,
    where: Any = None,
    names: Sequence[str] | None = None,
    unit: str | Sequence[str] | None = None,
    seed: int = 0,
    title: str = "",
) -> Figure:
    """How good a fit is and what its errors are like, in one figure.

    Of one output (a target of shape (rows,) or (rows, 1)): actual against predicted, residuals against prediction, the
    figures, the histogram, Q–Q, and the share of squared error. Of several, along the last axis, a row of four to each.

    names, unit: of the outputs, one each. seed: of the sample of points drawn where there are more than 20,000.

    >>> figure = residual_panel(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.5, 1.5, 3.0]), unit="kg")
    >>> len(figure.axes)
    6
    """
    pred, target, weights, where = as_arrays(pred, target, weights, where)
    _, _, shape = prepare("residual_panel", pred, target, weights, where)
    number = shape[-1] if len(shape) > 1 else 1
    if number > OUTPUTS:
        raise ShapeError(
            f"residual_panel: target has shape {shape}, and {number} outputs do not fit one figure: choose up to "
            f"{OUTPUTS} of the last axis, or pass pred.ravel() and target.ravel() to pool them"
        )
    units = [unit] * number if unit is None or isinstance(unit, str) else _one_each("unit", unit, number)
    named = [f"output {index}" for index in range(number)] if names is None else _one_each("names", names, number)
    if number < 2:
        entries = entries_of("residual_panel", pred, target, weights, where)
        return _single(entries, units[0] if units else None, seed, title or "".join(named if names else []))
    parts = [[_output(part, index, shape) for part in (pred, target, weights, where)] for index in range(number)]
    return _several([entries_of("residual_panel", *part) for part in parts], units, named, seed, title)


def _one_each(what: str, values: Any, number: int) -> list[str]:
    if isinstance(values, str) or len(values) != number:
        raise ValueError(f"residual_panel: {what} needs one entry to each of {number} outputs, got {values!r}")
    return [str(value) for value in values]


def _output(part: Any, index: int, shape: tuple[int, ...]) -> Any:
    """One output of an array, a weight or a mask."""
    if part is None or np.ndim(part) == 0:
        return part
    return part[..., index if np.shape(part)[-1] == shape[-1] else 0]


def _single(entries: Entries, unit: str | None, seed: int, title: str) -> Figure:
    figure = Figure(figsize=(12.6, 7.6), layout="constrained")
    (actual, against, table), (histogram, qq, share) = (map(new_axes, row) for row in figure.subplots(2, 3))
    notes = residuals.draw_actual(actual, entries, unit=unit, seed=seed)
    notes += residuals.draw_residuals(against, entries, unit=unit, seed=seed)
    notes += residuals.draw_histogram(histogram, entries, unit=unit)
    notes += residuals.draw_qq(qq, entries, unit=unit)
    notes += residuals.draw_share(share, entries)
    _table(table, entries, unit)
    return _caption(figure, title, notes)


def _several(outputs: list[Entries], units: list[Any], names: list[str], seed: int, title: str) -> Figure:
    figure = Figure(figsize=(14.5, 3.3 * len(outputs)), layout="constrained")
    told: list[list[str]] = []
    for row, entries, unit, name in zip(figure.subplots(len(outputs), 4), outputs, units, names, strict=True):
        actual, against, qq, share = map(new_axes, row)
        notes = residuals.draw_actual(actual, entries, unit=unit, seed=seed)
        notes += residuals.draw_residuals(against, entries, unit=unit, seed=seed)
        notes += residuals.draw_qq(qq, entries, unit=unit)
        notes += residuals.draw_share(share, entries)
        told.append(notes)
        actual.set_title(f"{name}: actual against predicted".replace("$", r"\$"), loc="left", fontsize=11)
    common = [note for note in told[0] if all(note in notes for notes in told)]
    own = [f"{name}: {note}" for name, notes in zip(names, told) for note in notes if note and note not in common]
    return _caption(figure, title, common + own)


def _caption(figure: Figure, title: str, notes: list[str]) -> Figure:
    """The title above, and each different note once below."""
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=14)
    told = [note for note in dict.fromkeys(notes) if note]
    if told:
        figure.supxlabel("\n".join(told), fontsize=9, color=GRAY)
    return figure


def _table(axes: Axes, entries: Entries, unit: str | None) -> None:
    """The figures that say how large the errors are."""
    axes.set_axis_off()
    if not entries.size:
        return
    residual, target = entries.residual, entries.target
    spread = entries.mean(np.square(target - entries.mean(target)))
    square = entries.mean(np.square(residual))
    after = f" {unit}" if unit else ""
    rows = [
        ("entries", f"{entries.size:,}"),
        ("RMSE", f"{np.sqrt(square):.4g}{after}"),
        ("MAE", f"{entries.mean(np.abs(residual)):.4g}{after}"),
        ("bias", f"{entries.mean(residual):.3g}{after}"),
        ("largest error", f"{np.abs(residual).max():.4g}{after}"),
        ("sd of actual", f"{np.sqrt(spread):.4g}{after}"),
        ("R²", f"{1 - square / spread:.4f}" if spread > 0 else "actual is constant"),
    ]
    for number, (label, value) in enumerate(rows):
        height, value = 0.86 - 0.12 * number, value.replace("$", r"\$").replace("-", "−")
        axes.text(0.46, height, label, ha="right", color=GRAY, fontsize=12, transform=axes.transAxes)
        axes.text(0.52, height, value, color=BLACK, fontsize=12, transform=axes.transAxes)
