"""Residuals in words: figures in the target's units, verdicts, and the advice that follows from them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxloss.contract import shown
from jaxloss.diagnostics.advice import advise, rows_named
from jaxloss.diagnostics.balance import Balance
from jaxloss.diagnostics.verdicts import FAR, NORMAL_SCALE, Verdict, judge
from jaxloss.metrics import ResidualStats, histogram

__all__ = ["Diagnosis", "Output", "diagnose"]

WIDTH = 99
"""The width of what is printed, in columns."""
FULL = 4
"""Up to so many outputs are printed in full, more of them as a table."""


class Output(NamedTuple):
    """What is found for one output."""

    name: str
    figures: dict[str, float]
    """n, nonfinite, effective_n, rmse, mae, mse, bias, r2, robust_scale and more; NaN over nothing."""
    verdicts: dict[str, Verdict]
    """By the names in `jaxloss.diagnostics.verdicts.VERDICTS`."""
    worst: tuple[dict[str, float], ...]
    """row, pred, target and residual of the entries with the largest finite residuals, largest first."""
    far: tuple[dict[str, float], ...]
    """Those of them that are far out: beyond 5 robust scales."""
    lost: tuple[int, ...]
    """Rows with an entry that is not finite, as far as `ResidualStats` keeps their ids."""
    advice: tuple[str, ...]


class Diagnosis(NamedTuple):
    """What the residuals say; `print` it, or read its parts. Made by `diagnose`, or from statistics by `of`."""

    outputs: tuple[Output, ...]
    balance: Balance | None
    """None for one output."""

    @classmethod
    def of(cls, stats: ResidualStats, *, names: Sequence[str] | None = None) -> Diagnosis:
        """The diagnosis of statistics gathered over any stream: nothing else is looked at.

        stats: with moments and histogram; with `per_output` each output is diagnosed by itself.
        names: one for each output, in row-major order.

        >>> from jaxloss.metrics import ResidualStats
        >>> random = np.random.default_rng(0)
        >>> parts = (ResidualStats.of(random.normal(size=1000), np.zeros(1000)) for _ in range(3))
        >>> diagnosis = Diagnosis.of(sum(parts), names=["price"])
        >>> diagnosis.outputs[0].figures["n"], diagnosis.advice
        (3000.0, ('Keep MSE: nothing in the residuals speaks against it.',))
        """
        if not isinstance(stats, ResidualStats):
            raise TypeError(f"Diagnosis.of: needs a ResidualStats, got {shown(stats)}: use diagnose(pred, target)")
        if stats.moments is None or stats.histogram is None:
            raise ValueError("Diagnosis.of: needs moments and histogram, which ResidualStats.of was told to leave out")
        try:
            stats = jax.tree.map(np.asarray, stats)
        except jax.errors.TracerArrayConversionError:
            raise TypeError("diagnose: reads its numbers, so call it outside jit, vmap and grad") from None
        shape = np.shape(stats.largest)
        labels = _labels(names, shape)
        outputs = tuple(_output(name, *_figures(stats, place)) for name, place in zip(labels, np.ndindex(shape)))
        return cls(outputs, Balance.of(labels, [output.figures for output in outputs]) if len(outputs) > 1 else None)

    @property
    def figures(self) -> dict[str, float]:
        """The figures, where there is one output."""
        return self._only.figures

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdicts, where there is one output."""
        return self._only.verdicts

    @property
    def _only(self) -> Output:
        if len(self.outputs) != 1:
            raise ValueError(f"this diagnosis is of {len(self.outputs)} outputs: read .outputs")
        return self.outputs[0]

    @property
    def advice(self) -> tuple[str, ...]:
        """What to try next, about the balance of the outputs first."""
        if self.balance is None:
            return self._only.advice
        told: dict[str, list[str]] = {}
        for output in self.outputs:
            for line in output.advice:
                told.setdefault(line, []).append(output.name)
        each = (
            f"{'All outputs' if len(names) == len(self.outputs) else ', '.join(names)}: {line}"
            for line, names in told.items()
        )
        return (*self.balance.advice, *each)

    def as_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, strings and numbers, for JSON; a number that is not finite is None."""
        outputs = [
            output._asdict() | {"verdicts": {name: verdict._asdict() for name, verdict in output.verdicts.items()}}
            for output in self.outputs
        ]
        balance = None if self.balance is None else self.balance._asdict()
        return _plain({"outputs": outputs, "balance": balance, "advice": self.advice})

    def __str__(self) -> str:
        blocks = [_block(output) for output in self.outputs[:FULL]] if len(self.outputs) <= FULL else [_table(self)]
        if self.balance is not None:
            blocks.append(_shares(self.balance))
        if self.advice:
            blocks.append("\n".join(["Advice", *(_wrapped(line, "  - ") for line in self.advice)]))
        return "\n\n".join(blocks)

    __repr__ = __str__  # all figures of all outputs are no use at a prompt


def diagnose(
    pred: Any, target: Any, *, weights: Any = None, where: Any = None, names: Sequence[str] | None = None
) -> Diagnosis:
    """Look at the residuals r = pred − target: how large, how distributed, and which loss to try next.

    pred, target: of one shape (rows, …); each entry of the trailing axes is an output, diagnosed by itself.
    weights, where: as every loss takes them. Rows that are not finite enter no figure, and are counted and reported.
    names: one for each output, in row-major order.

    The verdicts and their thresholds are those of `jaxloss.diagnostics.verdicts`. They describe the residuals of the
    rows given, best ones the model was not trained on, and take rows to be independent. Data that do not fit in
    memory: `Diagnosis.of(stats)`. Raises `ShapeError` as every loss does, and `ValueError` for a wrong number of names.

    >>> random = np.random.default_rng(0)
    >>> pred = random.uniform(10, 20, 2000)
    >>> diagnosis = diagnose(pred, pred * np.exp(0.2 * random.normal(size=2000)))
    >>> diagnosis.verdicts["spread"].holds, diagnosis.verdicts["spread"].words
    (True, 'spread grows with the prediction')
    """
    shape = np.shape(target)
    if 0 in shape[1:]:
        raise ValueError(f"diagnose: target has shape {shape}, which holds no output")
    _labels(names, shape[1:])  # refuses a wrong name before anything is computed
    stats = ResidualStats.of(pred, target, weights=weights, where=where, per_output=len(shape) > 0)
    return Diagnosis.of(stats, names=names)


def _labels(names: Sequence[str] | None, shape: tuple[int, ...]) -> list[str]:
    number = math.prod(shape)
    if names is None:
        if number == 1:
            return [""]
        return [f"output {', '.join(map(str, place))}" for place in np.ndindex(shape)]
    if isinstance(names, str):
        raise TypeError(f"diagnose: names must be a list with a name for each output, got {names!r}")
    if len(names) != number:
        raise ValueError(
            f"diagnose: names has {len(names)} entries for {number} outputs of shape {shape}: give each one"
        )
    if len(set(names)) < number:
        raise ValueError(f"diagnose: names must differ, got {shown(names)}")
    return [str(name) for name in names]


def _figures(stats: ResidualStats, place: tuple[int, ...]) -> tuple[dict[str, float], np.ndarray, dict[str, Any]]:
    """Figures, histogram and worst rows of one output."""
    one = jax.tree.map(lambda leaf: leaf[place], stats)
    summary = one.summary(finite_only=True)
    worst = {name: summary.pop(f"worst_{name}", np.zeros(0)) for name in ("row", "pred", "target", "residual")}
    levels = summary.pop("quantile_levels").tolist()
    quantiles = dict(zip(levels, summary.pop("quantiles")))
    figures = {name: float(value) for name, value in summary.items()}
    weight = figures["weight"]
    unit = weight * figures["pred_sd"] * figures["mae"]
    with np.errstate(invalid="ignore", divide="ignore"):
        growth, trend = (float(np.divide(one.moment("pred", name), unit)) for name in ("absolute", "residual"))
        spread = float(np.sqrt(np.divide(one.moment("absolute", "absolute"), weight)))
    figures |= {"growth": growth, "trend": trend, "absolute_sd": spread}
    figures |= {"octile_low": quantiles[0.125], "median": quantiles[0.5], "octile_high": quantiles[0.875]}
    scale = figures["median_absolute_error"] / NORMAL_SCALE
    figures["robust_scale"] = 0.0 if scale < np.finfo(np.float32).tiny else scale  # the histogram's bin of 0
    figures["far_rows"] = _far(one.histogram.value, figures["robust_scale"])
    return {name: float(value) for name, value in figures.items()}, one.histogram.value, worst


def _far(weights: np.ndarray, scale: float) -> float:
    """The share of the rows beyond FAR robust scales; 0 if the scale is 0: then half of the residuals or more are 0."""
    bounds = histogram.edges()
    far = weights[np.abs(bounds[1:] + bounds[:-1]) > 2 * FAR * scale].sum()
    return float(far / weights.sum()) if scale > 0 else 0.0


def _output(name: str, figures: dict[str, float], weights: np.ndarray, worst: dict[str, Any]) -> Output:
    entries = [dict(zip(worst, entry)) for entry in zip(*(values.tolist() for values in worst.values()))]
    entries = [entry for entry in entries if entry["row"] >= 0]
    finite = tuple(entry for entry in entries if math.isfinite(entry["residual"]))
    lost = tuple(entry["row"] for entry in entries if not math.isfinite(entry["residual"]))
    verdicts = judge(figures, weights)
    far = tuple(entry for entry in finite if abs(entry["residual"]) > FAR * figures["robust_scale"] > 0)
    return Output(name, figures, verdicts, finite, far, lost, advise(figures, verdicts, far, lost))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _block(output: Output) -> str:
    figures = output.figures
    rows = f"{figures['n']:,.0f} rows"
    if figures["effective_n"] < 0.995 * figures["n"]:
        rows += f" that weigh as {figures['effective_n']:,.0f} equal ones"
    lines = [_wrapped(f"Residuals{f' of {output.name}' if output.name else ''} (pred − target): {rows}", "")]
    if figures["nonfinite"]:
        where = rows_named(output.lost, ", row")
        lines.append(_wrapped(f"beside them, not finite and in no figure: {figures['nonfinite']:,.0f}{where}", "  "))
    main = {"RMSE": "rmse", "MAE": "mae", "MSE": "mse", "bias": "bias", "R²": "r2", "robust scale": "robust_scale"}
    lines.append(_wrapped("   ".join(f"{label} {figures[name]:.4g}" for label, name in main.items()), "  "))
    if not 0 < figures["mse"] < math.inf:
        reason = next(iter(output.verdicts.values())).reason
        return "\n".join([*lines, f"  {reason[0].upper()}{reason[1:]}: nothing to judge."])
    lines += [_entry(name, verdict) for name, verdict in output.verdicts.items()]
    worst = ", ".join(f"row {entry['row']} ({entry['residual']:+.3g})" for entry in output.worst[:4])
    return "\n".join([*lines, _wrapped(f"largest residuals: {worst}", "  ")] if worst else lines)


def _entry(name: str, verdict: Verdict) -> str:
    words = verdict.words if verdict.holds is not None else f"{name.replace('_', ' ')}: {verdict.words}"
    mark = {True: "!", False: " ", None: "?"}[verdict.holds]
    return _wrapped(f"{words}: {verdict.reason}", f"  {mark} ")


def _table(diagnosis: Diagnosis) -> str:
    """One line for each output: the figures, and which verdicts hold."""
    long = min(max(len(output.name) for output in diagnosis.outputs), 24)
    columns = ("n", "rmse", "mae", "bias", "r2")
    lines = [f"{'':{long}}" + "".join(f"{name.upper():>11}" for name in columns) + "  found"]
    for output in diagnosis.outputs:
        found = [name.replace("_", " ") for name, verdict in output.verdicts.items() if verdict.holds]
        numbers = "".join(f"{output.figures[name]:11.4g}" for name in columns)
        lines.append(f"{output.name[:long]:{long}}{numbers}  {', '.join(found) or '–'}"[:WIDTH])
    return "\n".join(lines)


def _shares(balance: Balance) -> str:
    order = np.argsort(-np.nan_to_num(balance.shares), kind="stable")[:FULL]
    told = (
        f"{balance.names[place]} {balance.shares[place]:.1%} ({balance.standardized_shares[place]:.1%})"
        for place in order
    )
    return _wrapped(f"Share of the squared error (with standardised targets): {', '.join(told)}", "")


def _wrapped(text: str, start: str) -> str:
    """The text in WIDTH columns; what does not fit on the first line is set in by two more."""
    rest = " " * (len(start) + 2)
    return textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=rest, break_on_hyphens=False)
