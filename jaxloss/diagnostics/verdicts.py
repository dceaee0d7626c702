"""Five questions put to the residuals of one output, each answered by one figure against one threshold.

A threshold is the larger of a practical one, below which an effect is not worth a change of loss however many rows
prove it, and a statistical one, a multiple of 1/√n with n the effective number of rows, which residuals without the
effect pass once in some hundred samples or less. Where the threshold is past an effect that would be plain to see, and
the figure is not, there are too few rows to tell. `python -m experiments calibrate` measures false alarms and power.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxloss.metrics import histogram

__all__ = ["FAR", "NORMAL_SCALE", "VERDICTS", "Verdict", "judge"]

VERDICTS = ("bias", "skew", "outliers", "heavy_tails", "spread")
"""The questions, in the order in which they are reported."""

NORMAL_SCALE = 0.674489750196
"""The median of |r| for normal residuals of standard deviation 1."""
NORMAL_TAILS = math.sqrt(math.pi / 2)
"""RMSE/MAE of normal residuals."""
TOP = 0.01
"""The share of the rows whose part of the squared error tells of outliers; for normal errors it is 8 %."""
FAR = 5.0
"""Beyond so many robust scales a residual is far out: of normal ones, one in two million."""


class Verdict(NamedTuple):
    """The answer to one question."""

    holds: bool | None
    """None where it cannot be told."""
    words: str
    """The answer, e.g. "skewed"."""
    figure: float
    """Compared by its size with the threshold; NaN where there is nothing to compute it from."""
    threshold: float
    reason: str
    """Figure and threshold, in a sentence."""


def judge(figures: dict[str, float], weights: np.ndarray) -> dict[str, Verdict]:
    """The verdicts on one output, by the names in VERDICTS.

    figures: those of a summary, of one output, and what `jaxloss.diagnostics.diagnosis` adds to them.
    weights: its histogram.
    """
    if not 0 < figures["mse"] < math.inf:
        if math.isnan(figures["mse"]):
            reason = "there are no finite residuals"
        elif figures["max_error"] == 0:
            reason = "every residual is 0"
        else:
            reason = "the squared residuals are past the range of float32, rescale the target"
        return {name: Verdict(None, "nothing to tell", math.nan, math.nan, reason) for name in VERDICTS}
    root = math.sqrt(figures["effective_n"])
    around = 0.5 + 1.5 / root * np.array([-1, 1])  # three standard errors of the share of rows below the median
    below, above = (float(value) for value in histogram.quantile(weights, np.clip(around, 0, 1)))
    outliers = _outliers(figures, weights)
    return {
        "bias": _bias(figures, root, outliers, below, above),
        "skew": _skew(figures, root, above - below),
        "outliers": outliers,
        "heavy_tails": _heavy_tails(figures, root),
        "spread": _spread(figures, root),
    }


def _verdict(figure: float, threshold: float, clear: float, yes: str, no: str, reason: str) -> Verdict:
    """Compare; past `clear`, a threshold would sooner miss a plain effect than find it."""
    if abs(figure) >= threshold:
        return Verdict(True, yes, figure, threshold, reason)
    if threshold > clear or math.isnan(figure):
        return Verdict(None, "too few rows to tell", figure, threshold, reason)
    return Verdict(False, no, figure, threshold, reason)


def _bias(figures: dict[str, float], root: float, outliers: Verdict, below: float, above: float) -> Verdict:
    """The mean residual beside the RMSE. Where outliers dominate the mean is theirs: the median must be off as well."""
    bias, scale = figures["bias"], 0.1 * figures["robust_scale"]
    figure, threshold = bias / figures["rmse"], max(0.1, 3 / root)
    reason = f"the bias, {bias:+.3g}, is {_percent(figure)} of the RMSE (biased from {_percent(threshold)})"
    found = _verdict(figure, threshold, 0.2, f"biased: too {'high' if bias > 0 else 'low'}", "not biased", reason)
    if found.holds and outliers.holds:
        agrees = min(below, figures["median"] - scale) > 0 if bias > 0 else max(above, figures["median"] + scale) < 0
        if not agrees:
            reason += f", but that is the outliers': the median is {figures['median']:+.3g}"
            return found._replace(holds=False, words="not biased", reason=reason)
    return found


def _skew(figures: dict[str, float], root: float, uncertain: float) -> Verdict:
    """Octile skew, which neither outliers nor bias move. The median is uncertain where there are few rows near it."""
    width = figures["octile_high"] - figures["octile_low"]
    figure = figures["octile_skew"]
    threshold = max(0.1, 3.3 / root, min(uncertain / width, 99) if width > 0 else math.inf)
    reason = (
        f"octile skew {figure:+.2f} (skewed from ±{threshold:.2f}); "
        f"{_percent(0.5 + figures['sign_imbalance'] / 2)} are positive"
    )
    side = "predictions far too high" if figure > 0 else "predictions far too low"
    return _verdict(figure, threshold, 0.2, f"skewed towards {side}", "symmetric", reason)


def _outliers(figures: dict[str, float], weights: np.ndarray) -> Verdict:
    """The part of the squared error in the top 1 % of the rows, or in those that are far out, if they are more."""
    share = max(TOP, figures["far_rows"])
    figure, threshold = float(histogram.top_share(weights, share)), 0.3 + 5 / figures["effective_n"]
    if share == TOP:
        who = "the largest 1% of the rows carry"
    else:
        who = f"the {_percent(share)} of the rows beyond {FAR:g} robust scales carry"
    reason = f"{who} {_percent(figure)} of the squared error (dominated from {_percent(threshold)})"
    return _verdict(figure, threshold, 0.9, "dominated by outliers", "not dominated by outliers", reason)


def _heavy_tails(figures: dict[str, float], root: float) -> Verdict:
    """RMSE/MAE."""
    figure, threshold = figures["rmse_over_mae"], max(1.33, NORMAL_TAILS + 1.2 / root)
    reason = f"RMSE/MAE {figure:.3g} (heavy from {threshold:.3g}; normal errors 1.25, Laplace 1.41)"
    return _verdict(figure, threshold, 1.36, "heavy tails", "tails not heavy", reason)


def _spread(figures: dict[str, float], root: float) -> Verdict:
    """How much of itself the mean |r| grows by for a standard deviation of the prediction.

    A trend of r changes |r| as well, never by more than itself, and by sign_imbalance times itself where the noise is
    even: that is taken off, and nothing is told where the trend could be all there is.
    """
    if figures["pred_sd"] == 0:
        return Verdict(None, "cannot tell", math.nan, math.nan, "all predictions are the same")
    figure = figures["growth"] - figures["sign_imbalance"] * figures["trend"]
    threshold = max(0.1, 3 / root * figures["absolute_sd"] / figures["mae"])
    reason = (
        f"per sd of the prediction |residual| changes by {_percent(figure, '+')} of its mean "
        f"(called from {_percent(threshold)})"
    )
    yes = f"spread {'grows' if figure > 0 else 'shrinks'} with the prediction"
    found = _verdict(figure, threshold, 0.2, yes, "even spread", reason)
    if found.holds and abs(figures["growth"]) <= abs(figures["trend"]):
        return found._replace(
            holds=None, words="cannot tell", reason=f"{reason}, no more than the residual itself does"
        )
    return found


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.{1 if abs(value) < 0.0995 else 0}f}%"
