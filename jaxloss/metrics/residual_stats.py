"""Statistics of residuals in one pass over any stream, that merge exactly however the stream was split.

Every sum is a pair of floats, an unevaluated high + low, so that 10⁸ rows in float32 lose nothing: counts are exact to
2⁴⁶, and weights do not stall at 2²⁴. Moments are sums of products of deviations from the mean, merged by the mean's
shift (Chan, Golub and LeVeque 1983), never Σy² − nȳ²; an offset of 10⁶ costs no digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.contract import ShapeError, as_arrays, prepare
from jaxloss.metrics import histogram as bins
from jaxloss.metrics import worst as worst_rows
from jaxloss.metrics.moments import PRODUCTS, VARIABLES, Moments, combine_moments
from jaxloss.metrics.one_pass import SUMS, Entries, Piece, one_pass
from jaxloss.metrics.wide_pass import wide_pass
from jaxloss.metrics.worst import Worst
from jaxloss.numerics.shards import gather_shards
from jaxloss.numerics.stages import stage
from jaxloss.numerics.sums import Compensated, total

__all__ = ["ResidualStats"]

QUANTILES = (0.01, 0.05, 0.125, 0.25, 0.5, 0.75, 0.875, 0.95, 0.99)
"""Levels of the quantiles of the residual in a summary; the eighths are those of octile skew."""

TOP = 0.01
"""The share of the weight whose part of the squared error is reported."""


class ResidualStats(NamedTuple):
    """Statistics of the residuals r = pred − target; a pytree of arrays whose shapes depend on no data.

    Made by `of`, joined by `merge`, `sum`, `all_merge` or `combine`, read by `summary`. Every array begins with the
    axes of the outputs (none when pooled). The parts that cost more are None where `of` was told to leave them out.

    >>> from jaxloss.metrics import ResidualStats
    >>> first = ResidualStats.of(jnp.array([1.0, 2.0]), jnp.array([0.0, 2.0]))
    >>> second = ResidualStats.of(jnp.array([6.0]), jnp.array([4.0]))
    >>> summary = first.merge(second).summary()
    >>> summary["n"], summary["mae"], summary["max_error"], round(summary["r2"], 6)
    (3, 1.0, 2.0, 0.375)
    """

    sums: Compensated
    """The sums named in SUMS, along the last axis."""
    largest: Any
    """max |r|; −inf over nothing."""
    moments: Moments | None
    histogram: Compensated | None
    """Weight in each bin of r (`jaxloss.metrics.histogram`)."""
    worst: Worst | None

    @classmethod
    def of(
        cls,
        pred: Any,
        target: Any,
        *,
        weights: Any = None,
        where: Any = None,
        rows: Any = None,
        per_output: bool = False,
        moments: bool = True,
        histogram: bool = True,
        worst: int = 8,
    ) -> ResidualStats:
        """The statistics of arrays of shape (rows, …).

        rows: integer ids of the rows, for the list of the worst; default 0, 1, ….
        per_output: statistics for each entry of the trailing axes, instead of one for all entries pooled.
        moments, histogram, worst: parts to leave out with False and 0, for speed; `worst` is how many rows to keep.

        An entry that is not masked but has a prediction, target or weight that is not finite, or a residual that
        overflows, is counted as `nonfinite`, listed first among the worst rows, and enters no other statistic.
        In float32, residuals from 1e-18 to 1e18 have squares.
        """
        pred, target, weights, where, rows = as_arrays(pred, target, weights, where, rows)
        target, weights, shape = prepare("ResidualStats.of", pred, target, weights, where)
        if per_output and not shape:
            raise ShapeError("ResidualStats.of: per_output needs an axis of rows, got target of shape ()")
        if rows is not None:
            if not jnp.issubdtype(jnp.result_type(rows), jnp.integer):
                raise TypeError(f"ResidualStats.of: rows has dtype {jnp.result_type(rows)}; ids are integers")
            if jnp.shape(rows) != shape[:1]:
                raise ShapeError(
                    f"ResidualStats.of: rows has shape {jnp.shape(rows)}, but there are {shape[:1]} rows: "
                    "pass one id per entry of the first axis"
                )
        parts = {"moments": bool(moments), "histogram": bool(histogram), "worst": int(worst)}
        return _of(pred, target, weights, where, rows, bool(per_output), tuple(parts.items()))

    def merge(self, other: ResidualStats) -> ResidualStats:
        """The statistics of both data sets together."""
        left, right = (jax.tree.map(jnp.shape, stats) for stats in (self, other))
        if left != right:
            raise ShapeError(
                "ResidualStats.merge: the two have different outputs or parts: make both with the same settings of "
                f"`of`: {left} and {right}"
            )
        return _merge(self, other)

    def __add__(self, other: ResidualStats) -> ResidualStats:  # type: ignore[override]
        return self.merge(other) if isinstance(other, ResidualStats) else NotImplemented

    def __radd__(self, other: Any) -> ResidualStats:
        """So that `sum(parts)`, which starts at 0, works."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def combine(self) -> ResidualStats:
        """Join the statistics stacked along the first axis, as `vmap` and `scan` return them."""
        return _combine(self)

    def all_merge(self, axis_name: Any) -> ResidualStats:
        """Join the statistics of all shards of a mesh axis, inside `shard_map` or `vmap`: the same on each of them."""
        return _combine(gather_shards(self, axis_name))

    def total(self, name: str) -> Any:
        """One of the sums in SUMS."""
        return self.sums.value[..., SUMS.index(name)]

    def mean(self, name: str) -> Any:
        """The weighted mean of one of VARIABLES."""
        return self._moments.means.value[..., VARIABLES.index(name)]

    def moment(self, first: str, second: str) -> Any:
        """Sum of products of deviations from the mean of two variables, in any order, if it is in PRODUCTS."""
        pairs = [set(pair) for pair in PRODUCTS]
        if {first, second} not in pairs:
            known = ", ".join("·".join(pair) for pair in PRODUCTS)
            raise ValueError(f"ResidualStats: the moment of {first}·{second} is not kept; these are: {known}")
        return self._moments.products.value[..., pairs.index({first, second})]

    @property
    def _moments(self) -> Moments:
        if self.moments is None:
            raise ValueError("these statistics were made with moments=False")
        return self.moments

    def summary(self, *, finite_only: bool = False) -> dict[str, Any]:
        """The metrics the state determines, as Python numbers, or float64 arrays of the outputs' shape.

        While there are entries that are not finite every metric is NaN, as `rmse(pred, target)` is; with `finite_only`
        they describe the finite ones, and `nonfinite` tells how many there are beside. NaN too over nothing.
        """
        count, nonfinite, weight = self.total("count"), self.total("nonfinite"), self.total("weight")
        known = weight > 0 if finite_only else (weight > 0) & (nonfinite == 0)
        result = {"n": _plain(count.astype(np.int64)), "weight": _plain(weight)}
        result |= {"nonfinite": _plain(nonfinite.astype(np.int64))}
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            figures = _errors(self, weight)
            if self.moments is not None:
                figures |= _moments(self, weight)
            if self.histogram is not None:
                figures |= _shape(self.histogram.value)
            expand = {"quantiles": known[..., None]}
            result |= {name: _plain(np.where(expand.get(name, known), x, np.nan)) for name, x in figures.items()}
            if self.histogram is not None:
                result["quantile_levels"] = np.array(QUANTILES)
            if self.worst is not None:
                worst = {f"worst_{name}": np.asarray(values) for name, values in self.worst._asdict().items()}
                worst["worst_residual"] = worst["worst_pred"] - worst["worst_target"]
                del worst["worst_size"]
                result |= worst
        return result


@stage(5, 6, light=True)
def _of(pred, target, weights, where, rows, per_output, settings):
    shape, parts = target.shape, dict(settings)
    pred = jnp.asarray(pred).astype(target.dtype)
    weights, where = (None if x is None else jnp.broadcast_to(x, shape) for x in (weights, where))
    if not per_output:
        width = target.size // max(shape[0], 1) if shape else 1
        if rows is not None:
            rows = jnp.broadcast_to(jnp.asarray(rows).reshape(shape[:1] + (1,) * (len(shape) - 1)), shape).ravel()
        flat = Entries(*(None if x is None else jnp.ravel(x) for x in (pred, target, weights, where)))
        return _of_vector(flat, rows, max(width, 1), **parts)
    arrays = (pred, target, weights, where)
    columns = Entries(*(None if x is None else jnp.reshape(x, (shape[0], math.prod(shape[1:]))).T for x in arrays))
    rows = None if rows is None else jnp.asarray(rows)

    stats = jax.vmap(lambda column: _of_vector(column, rows, 1, **parts))(columns)
    return jax.tree.map(lambda leaf: leaf.reshape(shape[1:] + leaf.shape[1:]), stats)


def _of_vector(data: Entries, rows: Any, width: int, **parts: Any) -> ResidualStats:
    def by(one_way: Callable) -> Callable:
        return lambda data, rows: _joined(*one_way(data, rows, width, **parts))

    return lax.platform_dependent(data, rows, cpu=by(one_pass), default=by(wide_pass))


def _joined(pieces: Piece, histogram: Compensated | None, worst: Worst | None) -> ResidualStats:
    stacked = ResidualStats(pieces.sums, pieces.largest, pieces.moments, None, None)
    alone = pieces.largest.shape[0] == 1
    joined = jax.tree.map(lambda leaf: leaf[0], stacked) if alone else _combine(stacked)
    return joined._replace(histogram=histogram, worst=worst)


@jax.jit
def _merge(left: ResidualStats, right: ResidualStats) -> ResidualStats:
    return _combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), left, right))


@jax.jit
def _combine(stats: ResidualStats) -> ResidualStats:
    moments, histogram, worst = stats.moments, stats.histogram, stats.worst
    if moments is not None:
        weight = stats.sums.high[..., SUMS.index("weight")] + stats.sums.low[..., SUMS.index("weight")]
        moments = combine_moments(moments, weight)
    if worst is not None:
        joined = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2).reshape((*leaf.shape[1:-1], -1)), worst)
        worst = worst_rows.first(joined, worst.size.shape[-1])
    return ResidualStats(
        total(stats.sums),
        stats.largest.max(0, initial=-jnp.inf),
        moments,
        None if histogram is None else total(histogram),
        worst,
    )


def _plain(value: np.ndarray) -> Any:
    """A Python number for a pooled statistic."""
    return value.item() if np.ndim(value) == 0 else value


def _errors(stats: ResidualStats, weight: np.ndarray) -> dict[str, Any]:
    mse, mae = stats.total("square") / weight, stats.total("absolute") / weight
    rmse = np.sqrt(mse)
    positive, negative = stats.total("positive"), stats.total("negative")
    return {
        "effective_n": weight * weight / stats.total("weight_square"),
        "mse": mse,
        "rmse": rmse,
        "mae": mae,
        "bias": stats.total("residual") / weight,
        "max_error": np.asarray(stats.largest, np.float64),
        "rmse_over_mae": rmse / mae,
        "sign_imbalance": (positive - negative) / weight,
    }


def _moments(stats: ResidualStats, weight: np.ndarray) -> dict[str, Any]:
    residual, target, pred, absolute = (stats.moment(name, name) for name in ("residual", "target", "pred", "absolute"))
    return {
        "bias": stats.mean("residual"),
        "r2": _against(stats.total("square"), target),
        "explained_variance": _against(residual, target),
        "pearson": _correlation(stats.moment("pred", "target"), pred, target),
        "residual_sd": np.sqrt(residual / weight),
        "target_mean": stats.mean("target"),
        "target_sd": np.sqrt(target / weight),
        "pred_mean": stats.mean("pred"),
        "pred_sd": np.sqrt(pred / weight),
        "residual_by_pred": _correlation(stats.moment("pred", "residual"), pred, residual),
        "absolute_by_pred": _correlation(stats.moment("pred", "absolute"), pred, absolute),
    }


def _shape(weights: np.ndarray) -> dict[str, Any]:
    quantiles = bins.quantile(weights, QUANTILES)
    low, median, high = (quantiles[..., QUANTILES.index(level)] for level in (0.125, 0.5, 0.875))
    return {
        "median_absolute_error": bins.quantile(weights, [0.5], absolute=True)[..., 0],
        "octile_skew": ((high - median) - (median - low)) / (high - low),
        "top_share": bins.top_share(weights, TOP),
        "quantiles": quantiles,
    }


def _against(error: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """1 − error/spread; over a spread of 0 it is 1 for no error, else 0."""
    return np.where(spread == 0, np.where(error == 0, 1.0, 0.0), 1 - error / spread)


def _correlation(product: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.clip(product / (np.sqrt(left) * np.sqrt(right)), -1, 1)
