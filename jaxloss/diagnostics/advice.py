"""What follows from the verdicts on one output."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from jaxloss.diagnostics.verdicts import FAR, Verdict

__all__ = ["advise", "rows_named"]

HUBER, TUKEY = 1.345, 4.685
"""Settings that cost 5 % of efficiency on normal errors of standard deviation 1 (Holland and Welsch 1977)."""


def advise(
    figures: dict[str, float], verdicts: dict[str, Verdict], far: tuple[dict[str, Any], ...], lost: tuple[int, ...]
) -> tuple[str, ...]:
    """Sentences, the most pressing first; none over nothing and none for a perfect fit."""
    lines = []
    if figures["nonfinite"]:
        lines.append(f"Mend or mask what is not finite{rows_named(lost, ': row')}: until then every loss is NaN.")
    if not 0 < figures["mse"] < math.inf:
        return tuple(lines)
    holds = {name for name, verdict in verdicts.items() if verdict.holds}
    if "outliers" in holds:
        lines += [_inspect(far, figures)] if far else []
        lines.append(
            f"Compare with MAE{_robust(figures, redescending=True)}; diagnose again after each for the next setting."
        )
    elif "heavy_tails" in holds and not holds & {"spread", "skew"}:  # of which they may come
        lines.append(f"Compare with MAE{_robust(figures)}, or with the nll of a StudentT or Laplace distribution.")
    again = "If {} without the outliers: " if "outliers" in holds else ""
    if "spread" in holds:
        log = "log the target if it is positive, or " if figures["growth"] > 0 else ""
        tails = " first; the heavy tails may come of it" if "heavy_tails" in holds and not again else ""
        lines.append(f"{again.format('the spread still changes')}{log}predict the spread too (nll of a Normal){tails}.")
    if "skew" in holds:
        side, log = ("above", ", or log a positive target") if figures["octile_skew"] < 0 else ("below", "")
        lines.append(
            f"{again.format('they are still skewed')}squared error fits the mean, which rows far {side} the prediction "
            f"pull: compare with MAE for the median, with quantile for any other level{log}."
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
    return tuple(line[0].upper() + line[1:] for line in lines)


def rows_named(rows: Iterable[int], start: str) -> str:
    """The start, in the plural if need be, and the ids; nothing for no rows."""
    ids = [str(row) for row in dict.fromkeys(rows)]
    return f"{start}{'s' * (len(ids) > 1)} {', '.join(ids)}" if ids else ""


def _inspect(far: tuple[dict[str, Any], ...], figures: dict[str, float]) -> str:
    signs = {entry["residual"] > 0 for entry in far}
    side = "" if len(signs) > 1 or len(far) == 1 else f", all with targets far {'below' if True in signs else 'above'}"
    rows = rows_named((entry["row"] for entry in far), "row")
    first = far[0]
    return (
        f"Look at {rows}{side} (row {first['row']}: target {first['target']:.4g}, prediction {first['pred']:.4g}; "
        f"{100 * figures['far_rows']:.2g}% of the rows are beyond {FAR:g} robust scales): mend or mask what is wrong."
    )


def _robust(figures: dict[str, float], redescending: bool = False) -> str:
    """Huber, and Tukey, with their settings in the target's units."""
    scale = figures["robust_scale"]
    if scale == 0:  # at least half of the residuals are 0
        return ""
    told = f", with huber at delta={HUBER * scale:.3g} ({HUBER} × robust scale)"
    return told + (
        f", and with tukey at scale={TUKEY * scale:.3g} ({TUKEY} ×) started from that fit" if redescending else ""
    )
