"""Statistics of residuals in one pass over any stream, that merge exactly however the stream was split.

Every sum is a pair of floats, an unevaluated high + low, so that 10⁸ rows in float32 lose nothing: counts are exact to
2⁴⁶, and weights do not stall at 2²⁴. Moments are sums of powers of deviations from the mean, merged by the mean's shift
(Chan, Golub and LeVeque 1983; Pébay, SAND2008-6212), never Σy² − nȳ²; an offset of 10⁶ costs no digits.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.contract import ShapeError, prepare
from jaxloss.metrics import moments as moment_sums
from jaxloss.metrics import worst as worst_rows
from jaxloss.metrics.moments import VARIABLES, Moments
from jaxloss.metrics.one_pass import SUMS, Entries, Piece, one_pass
from jaxloss.metrics.summary import summarize
from jaxloss.metrics.worst import Worst
from jaxloss.numerics.sums import Compensated, total

__all__ = ["ResidualStats"]


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
        In float32, residuals from 1e-9 to 1e9 have fourth moments, and from 1e-18 to 1e18 squares.
        """
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
        return _of(pred, target, weights, where, rows, per_output=bool(per_output), **parts)

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
        here, number = lax.axis_index(axis_name), lax.axis_size(axis_name)

        def spread(leaf: jax.Array) -> jax.Array:
            mine = (jnp.arange(number) == here).reshape((number,) + (1,) * leaf.ndim)
            return jnp.where(mine, leaf[None], jnp.zeros_like(leaf[None]))

        return _combine(lax.psum(jax.tree.map(spread, self), axis_name))

    def total(self, name: str) -> Any:
        """One of the sums in SUMS."""
        return self.sums.value[..., SUMS.index(name)]

    def mean(self, name: str) -> Any:
        """The weighted mean of one of VARIABLES."""
        return self._moments.means.value[..., VARIABLES.index(name)]

    def moment(self, *names: str) -> Any:
        """Sum of products of deviations from the mean of two, three or four variables, as far as it is kept."""
        return moment_sums.moment(self._moments, *names)

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
        return summarize(self, finite_only)


@functools.partial(jax.jit, static_argnames=("per_output", "moments", "histogram", "worst"))
def _of(pred, target, weights, where, rows, *, per_output, **parts):
    shape = target.shape
    pred = jnp.asarray(pred).astype(target.dtype)
    weights, where = (None if x is None else jnp.broadcast_to(x, shape) for x in (weights, where))
    if not per_output:
        width = target.size // max(shape[0], 1) if shape else 1
        if rows is not None:
            rows = jnp.broadcast_to(jnp.asarray(rows).reshape(shape[:1] + (1,) * (len(shape) - 1)), shape).ravel()
        flat = Entries(*(None if x is None else jnp.ravel(x) for x in (pred, target, weights, where)))
        return _joined(*one_pass(flat, rows, max(width, 1), **parts))
    arrays = (pred, target, weights, where)
    columns = Entries(*(None if x is None else jnp.reshape(x, (shape[0], math.prod(shape[1:]))).T for x in arrays))
    rows = None if rows is None else jnp.asarray(rows)

    def one(column):
        return _joined(*one_pass(column, rows, 1, **parts))

    stats = jax.vmap(one)(columns)
    return jax.tree.map(lambda leaf: leaf.reshape(shape[1:] + leaf.shape[1:]), stats)


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
        moments = moment_sums.combine(moments, weight)
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
