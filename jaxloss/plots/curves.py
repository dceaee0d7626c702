"""Curves of losses: value, slope and weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jaxloss.contract import POSITIVE, check_settings, loss_name, require_function, unbound
from jaxloss.lift import irls_weight, slope, traits
from jaxloss.plots.canvas import AMBER, BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, add_legend, new_axes, set_title

__all__ = ["loss_curves"]

COLORS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, BLACK)
DASHES = ("-", "--", ":", "-.")

KINDS = {"value": "Loss", "slope": "Slope: the pull of a row", "irls_weight": "Weight of a row: slope / residual"}


def loss_curves(
    losses: Any, kind: str = "value", *, target: float = 0.0, reach: float = 4.0, axes: Axes | None = None
) -> Axes:
    """Value, slope or irls_weight of losses against the residual, from −reach to reach around the target.

    losses: a loss, several, or a mapping from labels to losses; settings bound with `Partial`.
    kind: "value" (ρ), "slope" (ψ) or "irls_weight" (ψ(r)/r; losses of the residual only).
    target: what the prediction is compared with; for deviances take one above 0. Outside the domain of a loss, and
        where a weight is infinite, nothing is drawn.

    >>> axes = loss_curves([mse, huber], "slope")
    >>> [line.get_label() for line in axes.get_lines()[:2]]
    ['mse', 'huber']
    """
    if kind not in KINDS:
        raise ValueError(f"loss_curves: kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    check_settings("loss_curves", {"reach": reach}, {"reach": None}, {"reach": POSITIVE})
    if isinstance(losses, Mapping):
        named: dict[str, Any] = dict(losses)
    elif callable(losses) or not isinstance(losses, Iterable):
        named = {_label(losses): losses}
    else:
        listed = list(losses)
        named = {_label(loss): loss for loss in listed}
        if len(named) < len(listed):
            raise ValueError("loss_curves: two losses have one name and settings: pass a mapping from labels to losses")
    axes = new_axes(axes)
    drawn = []
    pred = np.linspace(target - reach, target + reach, 801, dtype=np.float32)
    against = np.full_like(pred, target)
    for number, (label, loss) in enumerate(named.items()):
        require_function(loss)
        values = np.array(_values(loss, kind, pred, against), np.float64)
        inside = traits(loss).pred.holds(pred.astype(np.float64)) & np.isfinite(values)
        color, dashes = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
        drawn.append(np.where(inside, values, np.nan))
        axes.plot(pred - against, drawn[-1], color=color, linestyle=dashes, linewidth=1.6, label=label)
    _keep_poles_out(axes, drawn)
    if kind != "irls_weight":
        axes.axhline(0, color=GRAY, linewidth=0.6, zorder=0)
    axes.axvline(0, color=GRAY, linewidth=0.6, zorder=0)
    axes.set(xlabel="predicted − actual" if target == 0 else f"predicted − actual, for an actual of {target:g}")
    if 1 < len(named) <= 8:
        add_legend(axes)
    alone = f" of {next(iter(named))}" if len(named) == 1 else ""
    set_title(axes, KINDS[kind] + alone)
    return axes


def _keep_poles_out(axes: Axes, curves: list[np.ndarray]) -> None:
    """End the axis where 95 % of the highest curve is, if the rest shoots up to a pole, as weights do at a kink."""
    sizes = [np.abs(curve[~np.isnan(curve)]) for curve in curves]
    usual = max((np.quantile(size, 0.95) for size in sizes if size.size), default=0)
    if usual > 0 and max(size.max() for size in sizes if size.size) > 5 * usual:
        axes.set_ylim(-usual if any(np.nanmin(curve) < 0 for curve in curves) else 0, usual)


def _values(loss: Any, kind: str, pred: Any, target: Any) -> Any:
    if kind == "value":
        return loss(pred, target, reduction="none")
    return {"slope": slope, "irls_weight": irls_weight}[kind](loss)(pred, target)


def _label(loss: Any) -> str:
    """The loss with the settings bound to it."""
    settings = [f"{name}={value:g}" for name, value in unbound(loss)[1].items() if np.ndim(value) == 0]
    return loss_name(loss) + (f"({', '.join(settings)})" if settings else "")
