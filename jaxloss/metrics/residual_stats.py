"""Statistics of residuals in one pass over any stream, that merge exactly however the stream was split.

Every sum is a pair of floats, an unevaluated high + low, so that 10⁸ rows in float32 lose nothing: counts are exact to
2⁴⁶, and weights do not stall at 2²⁴. Moments are sums of powers of deviations from the mean, merged by the mean's shift
(Chan, Golub and LeVeque 1983; Pébay, SAND2008-6212), never Σy² − nȳ²; an offset of 10⁶ costs no digits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.contract import ShapeError, prepare
from jaxloss.metrics.histogram import BINS, bin_of
from jaxloss.metrics.summary import summarize

__all__ = ["Compensated", "Moments", "ResidualStats", "Worst"]

SUMS = ("count", "nonfinite", "weight", "weight_square", "positive", "negative", "residual", "absolute", "square")
"""N, entries that are not finite, Σw, Σw², Σw over r > 0 and over r < 0, Σwr, Σw|r|, Σwr²."""

VARIABLES = ("pred", "target", "residual", "absolute")
"""What the means are of; `absolute` is |r|."""

PRODUCTS = (
    ("pred", "pred"),
    ("target", "target"),
    ("residual", "residual"),
    ("absolute", "absolute"),
    ("pred", "target"),
    ("pred", "residual"),
    ("pred", "absolute"),
)
"""Pairs with a sum of products of deviations."""

THIRDS = (("target",) * 3, ("residual",) * 3, ("pred", "residual", "residual"))
"""Triples with such a sum; the last tells whether the spread of the residuals grows with the prediction."""

FOURTHS = ("target", "residual")
"""Variables with a sum of fourth powers of deviations."""

LANES, ROWS = 1024, 64
"""A row of LANES entries is summed in plain floats; ROWS of them make a block, which stays in the cache."""


class Compensated(NamedTuple):
    """A sum as the unevaluated high + low of two floats; low is at most half a unit in the last place of high."""

    high: Any
    low: Any

    @property
    def value(self) -> Any:
        """high + low: in float64 on the host, in the state's type when traced."""
        if isinstance(self.high, jax.core.Tracer):
            return self.high + self.low
        return np.asarray(self.high, np.float64) + np.asarray(self.low, np.float64)


class Moments(NamedTuple):
    """Weighted means, and sums of products of deviations from them, in the order of the tables above."""

    means: Compensated
    products: Compensated
    thirds: Compensated
    fourths: Compensated


class Worst(NamedTuple):
    """The entries of largest |r|, largest first; those that are not finite (size inf) before all. Row −1: no entry."""

    size: Any
    row: Any
    pred: Any
    target: Any


class ResidualStats(NamedTuple):
    """Statistics of the residuals r = pred − target; a pytree of arrays whose shapes depend on no data.

    Made by `of`, joined by `merge`, `sum`, `all_merge` or `combine`, read by `summary`. Every array begins with the
    axes of the outputs (none when pooled). The parts that cost more are None where `of` was told to leave them out.

    >>> from jaxloss.metrics import ResidualStats
    >>> first = ResidualStats.of(jnp.array([1.0, 2.0]), jnp.zeros(2))
    >>> second = ResidualStats.of(jnp.array([6.0]), jnp.zeros(1))
    >>> summary = first.merge(second).summary()
    >>> summary["n"], summary["mae"], summary["bias"], summary["max_error"]
    (3, 3.0, 3.0, 6.0)
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
        table, sums = {
            2: (PRODUCTS, self._moments.products),
            3: (THIRDS, self._moments.thirds),
            4: (tuple((name,) * 4 for name in FOURTHS), self._moments.fourths),
        }[len(names)]
        order = {tuple(sorted(names)): place for place, names in enumerate(table)}
        return sums.value[..., order[tuple(sorted(names))]]

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


def _two_sum(left: Any, right: Any) -> Compensated:
    """left + right and its rounding error (Knuth)."""
    high = left + right
    part = high - left
    return Compensated(high, (left - (high - part)) + (right - part))


def _add(left: Compensated, right: Compensated) -> Compensated:
    high, error = _two_sum(left.high, right.high)
    low, rest = _two_sum(left.low, right.low)
    high, low = _quick_two_sum(high, error + low)
    high, low = _quick_two_sum(high, low + rest)
    return Compensated(high, jnp.where(jnp.isfinite(high), low, 0))  # inf − inf


def _quick_two_sum(large: Any, small: Any) -> tuple[Any, Any]:
    high = large + small
    return high, small - (high - large)


def _total(pairs: Compensated) -> Compensated:
    """The sum along the first axis."""
    zero = jnp.zeros((), pairs.high.dtype)

    def add(left: Any, right: Any) -> tuple[Any, Any]:
        high, low = _add(Compensated(*left), Compensated(*right))
        return high, low

    return Compensated(*lax.reduce(tuple(pairs), (zero, zero), add, (0,)))


def _exact(value: jax.Array) -> Compensated:
    return Compensated(value, jnp.zeros_like(value))


@functools.partial(jax.jit, static_argnames=("per_output", "moments", "histogram", "worst"))
def _of(pred, target, weights, where, rows, *, per_output, **parts):
    shape = target.shape
    pred = jnp.asarray(pred).astype(target.dtype)
    weights, where = (None if x is None else jnp.broadcast_to(x, shape) for x in (weights, where))
    if not per_output:
        width = target.size // max(shape[0], 1) if shape else 1
        if rows is not None:
            rows = jnp.broadcast_to(jnp.asarray(rows).reshape(shape[:1] + (1,) * (len(shape) - 1)), shape).ravel()
        flat = (None if x is None else jnp.ravel(x) for x in (pred, target, weights, where))
        return _pass(*flat, rows, max(width, 1), **parts)
    columns = [None if x is None else jnp.reshape(x, (shape[0], -1)).T for x in (pred, target, weights, where)]
    one = functools.partial(_pass, rows=None if rows is None else jnp.asarray(rows), width=1, **parts)
    stats = jax.vmap(one, [None if x is None else 0 for x in columns])(*columns)
    return jax.tree.map(lambda leaf: leaf.reshape(shape[1:] + leaf.shape[1:]), stats)


def _pass(pred, target, weights, where, rows, width, *, moments, histogram, worst):
    """One pass over vectors, block by block; the tail is a block of its own."""
    size, block = target.shape[0], LANES * ROWS
    data = (pred, target, weights, where, rows)
    state = (jnp.zeros(BINS, jnp.int32 if weights is None else target.dtype) if histogram else None, None)
    if histogram and weights is not None:
        state = (_exact(state[0]), None)
    state = (state[0], _no_rows(target.dtype, worst) if worst else None)

    def visit(state, start, data):
        pred, target, weights, where, rows = (None if x is None else x.reshape(-1) for x in data)
        residual = pred - target
        finite = jnp.isfinite(residual) if weights is None else jnp.isfinite(residual) & jnp.isfinite(weights)
        counts, kept = state
        if histogram:
            counts = _count(counts, residual, weights, finite if where is None else finite & where)
        if worst:
            if rows is None:
                rows = (start + jnp.arange(residual.size, dtype=jnp.int32)) // width
            extent = jnp.where(finite, jnp.abs(residual), jnp.inf)
            for keep in (where, None if weights is None else weights != 0):
                extent = extent if keep is None else jnp.where(keep, extent, -jnp.inf)
            kept = _keep(kept, extent, rows, pred, target)
        return (counts, kept), _rows(*data[:4], moments)

    pieces = []
    whole = size // block
    if whole:

        def body(state, number):
            start = number * block
            cut = [None if x is None else lax.dynamic_slice(x, (start,), (block,)) for x in data]
            return visit(state, start, [None if x is None else x.reshape(ROWS, LANES) for x in cut])

        state, stacked = lax.scan(body, state, jnp.arange(whole, dtype=jnp.int32))
        pieces.append(jax.tree.map(lambda leaf: leaf.reshape((-1, *leaf.shape[2:])), stacked))
    start = whole * block
    tail = size - start
    if tail or not whole:
        lanes = min(max(tail, 1), LANES)
        missing = -tail % lanes if tail else 1
        cut = [None if x is None else x[start:] for x in data]
        if missing:
            cut[3] = jnp.ones(tail, bool) if where is None else cut[3]
            cut = [None if x is None else jnp.pad(x, (0, missing)) for x in cut]
        state, piece = visit(state, start, [None if x is None else x.reshape(-1, lanes) for x in cut])
        pieces.append(piece)
    stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pieces)
    counts, kept = state
    if histogram and weights is None:
        counts = _whole(counts, target.dtype)
    return _combine(stacked)._replace(histogram=counts, worst=kept)


def _whole(counts: jax.Array, dtype: Any) -> Compensated:
    """Integers as pairs."""
    high = counts.astype(dtype)
    return Compensated(high, (counts - high.astype(counts.dtype)).astype(dtype))


def _count(counts, residual, weights, present):
    """The histogram with a block added."""
    places = bin_of(residual)
    if weights is None:
        return counts.at[places].add(present.astype(jnp.int32))
    return _add(counts, _exact(jnp.zeros_like(counts.high).at[places].add(jnp.where(present, weights, 0))))


def _no_rows(dtype: Any, number: int) -> Worst:
    nothing = jnp.full(number, jnp.nan, dtype)
    return Worst(jnp.full(number, -jnp.inf, dtype), jnp.full(number, -1, jnp.int32), nothing, nothing)


def _keep(kept: Worst, extent, rows, pred, target) -> Worst:
    """The worst of those kept and a block; a block with none of them costs one maximum."""
    number = kept.size.shape[-1]

    def search(kept: Worst) -> Worst:
        largest, places = lax.top_k(extent, min(number, extent.size))
        row = jnp.where(largest == -jnp.inf, -1, rows[places]).astype(kept.row.dtype)
        block = Worst(largest, row, pred[places], target[places])
        return _worst(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), kept, block), number)

    return lax.cond(extent.max() >= kept.size[-1], search, lambda kept: kept, kept)


def _worst(entries: Worst, number: int) -> Worst:
    """The first `number` by size, then by row, along the last axis."""
    size, row, pred, target = lax.sort((-entries.size, entries.row, entries.pred, entries.target), num_keys=2)
    return jax.tree.map(lambda leaf: leaf[..., :number], Worst(-size, row, pred, target))


def _rows(pred, target, weights, where, moments) -> ResidualStats:
    """Sums and moments along the last axis: of a few thousand entries at most, so that plain sums are accurate."""
    if weights is not None or where is not None:
        return _masked_rows(pred, target, weights, where, moments)
    return lax.cond(
        jnp.isfinite((pred - target).sum()),
        lambda: _present_rows(pred, target, None, pred[..., :1], target[..., :1], target.shape[-1], 0.0, moments),
        lambda: _masked_rows(pred, target, None, None, moments),
    )


def _masked_rows(pred, target, weights, where, moments) -> ResidualStats:
    """Absent entries become repetitions of a present one, with weight 0."""
    finite = jnp.isfinite(pred - target)
    if weights is not None:
        finite = finite & jnp.isfinite(weights)
    present = finite if where is None else finite & where
    nonfinite = (~finite if where is None else ~finite & where).sum(-1)
    first = jnp.argmax(present, -1, keepdims=True)
    some = jnp.any(present, -1, keepdims=True)

    def fill(values):
        one = jnp.where(some, jnp.take_along_axis(values, first, -1), 0)
        return jnp.where(present, values, one), one

    (pred, pred_one), (target, target_one) = fill(pred), fill(target)
    weights = jnp.where(present, 1 if weights is None else weights, 0).astype(target.dtype)
    return _present_rows(pred, target, weights, pred_one, target_one, present.sum(-1), nonfinite, moments)


def _present_rows(pred, target, weights, pred_one, target_one, count, nonfinite, moments) -> ResidualStats:
    residual = pred - target
    shape, dtype = target.shape[:-1], target.dtype

    def total(values):
        return (values if weights is None else values * weights).sum(-1)

    weight = jnp.full(shape, count, dtype) if weights is None else weights.sum(-1)
    extent = jnp.abs(residual)
    sums = [
        jnp.broadcast_to(count, shape).astype(dtype),
        jnp.broadcast_to(nonfinite, shape).astype(dtype),
        weight,
        weight if weights is None else jnp.square(weights).sum(-1),
        total((residual > 0).astype(dtype)),
        total((residual < 0).astype(dtype)),
        total(residual),
        total(extent),
        total(jnp.square(residual)),
    ]
    if weights is not None:
        extent = jnp.where(weights != 0, extent, -jnp.inf)
    stats = ResidualStats(_exact(jnp.stack(sums, -1)), extent.max(-1), None, None, None)
    if not moments:
        return stats
    # Deviations from one of the entries first: exactly 0 in a constant row, and small beside any offset.
    residual_one = pred_one - target_one
    ones = pred_one, target_one, residual_one, jnp.abs(residual_one)
    deviations, means = {}, []
    for name, values, one in zip(VARIABLES, (pred, target, residual, jnp.abs(residual)), ones, strict=True):
        shift = total(values - one) / jnp.where(weight == 0, 1, weight)
        deviations[name] = (values - one) - shift[..., None]
        means.append(_two_sum(one[..., 0], shift))

    def product(*names):
        return total(functools.reduce(jnp.multiply, [deviations[name] for name in names]))

    return stats._replace(
        moments=Moments(
            jax.tree.map(lambda *leaves: jnp.stack(leaves, -1), *means),
            _exact(jnp.stack([product(*names) for names in PRODUCTS], -1)),
            _exact(jnp.stack([product(*names) for names in THIRDS], -1)),
            _exact(jnp.stack([total(jnp.square(jnp.square(deviations[name]))) for name in FOURTHS], -1)),
        )
    )


@jax.jit
def _merge(left: ResidualStats, right: ResidualStats) -> ResidualStats:
    return _combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), left, right))


@jax.jit
def _combine(stats: ResidualStats) -> ResidualStats:
    moments, histogram, worst = stats.moments, stats.histogram, stats.worst
    if moments is not None:
        weight = stats.sums.high[..., SUMS.index("weight")] + stats.sums.low[..., SUMS.index("weight")]
        moments = _combine_moments(moments, weight)
    if worst is not None:
        joined = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -2).reshape((*leaf.shape[1:-1], -1)), worst)
        worst = _worst(joined, worst.size.shape[-1])
    return ResidualStats(
        _total(stats.sums),
        stats.largest.max(0, initial=-jnp.inf),
        moments,
        None if histogram is None else _total(histogram),
        worst,
    )


def _combine_moments(moments: Moments, weight: jax.Array) -> Moments:
    """Moments within the groups, plus those of the groups' means; the groups are along the first axis."""
    weight = weight[..., None]
    heaviest = jnp.argmax(weight, 0, keepdims=True)  # an empty group has no mean
    origin = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, heaviest, 0), moments.means)
    gap = (moments.means.high - origin.high) + (moments.means.low - origin.low)
    gap = jnp.where(weight == 0, 0, gap)
    whole = _total(_exact(weight)).high
    shift = _total(_exact(weight * gap)).high / jnp.where(whole == 0, 1, whole)
    gap = gap - shift[None]
    means = _add(jax.tree.map(lambda leaf: leaf[0], origin), _exact(shift))

    def of(table, name, sums):
        return sums.high[..., table.index(name)]

    def stacked(values: Sequence[jax.Array]) -> Compensated:
        return _exact(jnp.stack(values, -1))

    weight = weight[..., 0]
    gaps = {name: gap[..., place] for place, name in enumerate(VARIABLES)}
    between = stacked([weight * gaps[x] * gaps[y] for x, y in PRODUCTS])

    def second(x, y):
        return of(PRODUCTS, (x, y), moments.products)

    def third(x, y, z):
        mixed = gaps[x] * second(y, z) + gaps[y] * second(x, z) + gaps[z] * second(x, y)
        return mixed + weight * gaps[x] * gaps[y] * gaps[z]

    def fourth(x):
        square = gaps[x] * gaps[x]
        own = 4 * gaps[x] * of(THIRDS, (x, x, x), moments.thirds) + 6 * square * second(x, x)
        return own + weight * square * square

    return Moments(
        means,
        _total(_add(moments.products, between)),
        _total(_add(moments.thirds, stacked([third(*names) for names in THIRDS]))),
        _total(_add(moments.fourths, stacked([fourth(name) for name in FOURTHS]))),
    )
