"""What follows from the verdicts on one output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxloss.diagnostics.verdicts import Verdict

__all__ = ["advise", "rows_named"]

HUBER, TUKEY = 1.345, 4.685
"""Settings that cost 5 % of efficiency on normal errors of standard deviation 1 (Holland and Welsch 1977)."""

FAR = 5.0
"""Residuals of so many robust scales are named: of normal ones, one in two million."""


def advise(
    figures: dict[str, float], verdicts: dict[str, Verdict], worst: tuple[dict[str, Any], ...], lost: tuple[int, ...]
) -> tuple[str, ...]:
    """Sentences, the most pressing first; none over nothing and none for a perfect fit."""
    lines = []
    if figures["nonfinite"]:
        lines.append(f"Mend or mask what is not finite{rows_named(lost, ': row')}: until then every loss is NaN.")
    if not figures["mse"] > 0:
        return tuple(lines)
    holds = {name for name, verdict in verdicts.items() if verdict.holds}
    if "outliers" in holds:
        far = [entry for entry in worst if abs(entry["residual"]) > FAR * figures["robust_scale"]]
        lines += [_inspect(far)] if far else []
        lines.append(f"Compare with MAE{_robust(figures, redescending=True)}, which outliers pull less or not at all.")
    elif "heavy_tails" in holds and not holds & {"spread", "skew"}:  # of which they may come
        lines.append(f"Compare with MAE{_robust(figures)}, or with the nll of a StudentT or Laplace distribution.")
    if "spread" in holds:
        lines.append(_even(figures, holds))
    if "skew" in holds:
        far = "far above" if figures["octile_skew"] < 0 else "far below"
        lines.append(
            f"Squared error fits the mean, which rows {far} the prediction pull: compare with MAE for the median or "
            f"quantile for any other level{', or log the target if it is positive' if far == 'far above' else ''}."
        )
    if "bias" in holds:
        side = "high" if figures["bias"] > 0 else "low"
        lines.append(
            f"Predictions are too {side} by {abs(figures['bias']):.3g} on average: give the model an intercept, "
            "train it to convergence, and check that the rows are like those it was trained on."
            + (" A fit of the median does this to skewed errors." if "skew" in holds else "")
        )
    if not holds:
        unknown = [name.replace("_", " ") for name, verdict in verdicts.items() if verdict.holds is None]
        reason = f"; there is too little to tell about {', '.join(unknown)}" if unknown else ""
        lines.append(f"Keep MSE: nothing in the residuals speaks against it{reason}.")
    return tuple(lines)


def rows_named(rows: Iterable[int], start: str) -> str:
    """The start, in the plural if need be, and the ids; nothing for no rows."""
    ids = [str(row) for row in dict.fromkeys(rows)]
    return f"{start}{'s' * (len(ids) > 1)} {', '.join(ids)}" if ids else ""


def _inspect(far: list[dict[str, Any]]) -> str:
    signs = {entry["residual"] > 0 for entry in far}
    side = "" if len(signs) > 1 or len(far) == 1 else f", all with targets far {'below' if True in signs else 'above'}"
    rows = rows_named((entry["row"] for entry in far), "row")
    first = far[0]
    return (
        f"Look at {rows}{side} (row {first['row']}: target {first['target']:.4g}, prediction {first['pred']:.4g}): "
        "mend or mask what is wrong."
    )


def _robust(figures: dict[str, float], redescending: bool = False) -> str:
    """Huber, and Tukey, with their settings in the target's units."""
    scale = figures["robust_scale"]
    if scale == 0:  # at least half of the residuals are 0
        return ""
    told = f", with huber at delta={HUBER * scale:.3g}"
    return told + (f", and with tukey at scale={TUKEY * scale:.3g} started from that fit" if redescending else "")


def _even(figures: dict[str, float], holds: set[str]) -> str:
    tails = " first: tails and outliers may come of it" if {"heavy_tails", "outliers"} & holds else ""
    log = "Log the target if it is positive, or predict" if figures["growth"] > 0 else "Predict"
    return f"{log} the spread too (nll of a Normal){tails}."
