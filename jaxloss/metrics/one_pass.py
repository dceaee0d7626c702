"""One pass over vectors of predictions and targets: sums in blocks that stay in the cache."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.metrics.histogram import BINS, bin_of
from jaxloss.metrics.moments import PRODUCTS, VARIABLES, Moments, center_moments
from jaxloss.metrics.worst import Worst, keep, no_rows
from jaxloss.numerics.sums import Compensated, add, exact, whole

__all__ = ["SUMS", "Entries", "Piece", "centre_of", "one_pass", "piece_of", "spread", "terms_of"]

SUMS = ("count", "nonfinite", "weight", "weight_square", "positive", "negative", "residual", "absolute", "square")
"""N, entries that are not finite, Σw, Σw², Σw over r > 0 and over r < 0, Σwr, Σw|r|, Σwr²."""

LANES, STEP, STEPS = 2**13, 2**15, 64
"""A sum runs in LANES partial sums, a vector that stays in the cache. A step adds STEP entries to them, a block is of
up to STEPS steps, and what a block adds up to is kept as a pair of floats. So no float adds more than a few hundred
terms, and the sum of any 2²¹ entries is right to a few units of 1e-7."""

SAMPLE = 512
"""How many entries of a block tell where its values lie."""


class Entries(NamedTuple):
    """The vectors of a pass, or a slice of them."""

    pred: Any
    target: Any
    weights: Any
    where: Any

    def slice(self, start: Any, length: int) -> Entries:
        """So many entries from a place on."""
        return jax.tree.map(lambda leaf: lax.dynamic_slice(leaf, (start,), (length,)), self)

    def take(self, places: jax.Array) -> Entries:
        """The entries at these places."""
        return jax.tree.map(lambda leaf: leaf[places], self)

    @property
    def finite(self) -> jax.Array:
        """Where residual and weight are finite."""
        finite = jnp.isfinite(self.pred - self.target)
        return finite if self.weights is None else finite & jnp.isfinite(self.weights)

    @property
    def present(self) -> jax.Array:
        """Neither masked nor without a finite residual."""
        return self.finite if self.where is None else self.finite & self.where

    def extent(self, lost: float) -> jax.Array:
        """|r|; `lost` where it is not finite, −inf where an entry is masked or has weight 0."""
        extent = jnp.where(self.finite, jnp.abs(self.pred - self.target), lost)
        for there in (self.where, None if self.weights is None else self.weights != 0):
            extent = extent if there is None else jnp.where(there, extent, -jnp.inf)
        return extent


class Piece(NamedTuple):
    """The statistics of a block, or of many along the first axis."""

    sums: Compensated
    largest: Any
    moments: Moments | None


def one_pass(
    data: Entries, rows: Any, width: int, *, moments: bool, histogram: bool, worst: int
) -> tuple[Piece, Compensated | None, Worst | None]:
    """Statistics of the blocks of a vector, stacked; its histogram; its worst rows.

    rows: ids of the entries; None: their number // width.
    """
    size, dtype = data.target.shape[0], data.target.dtype
    if size == 0:
        data, rows = Entries(jnp.zeros(1, dtype), jnp.zeros(1, dtype), None, jnp.zeros(1, bool)), None
    counts: Any = None
    if histogram:
        counts = jnp.zeros(BINS, jnp.int32) if data.weights is None else exact(jnp.zeros(BINS, dtype))
    state = spread((counts, no_rows(dtype, worst) if worst else None), data.target)

    def visit(state, start, length):
        """Histogram and worst rows with some entries added."""
        counts, kept = state
        part = data.slice(start, length)
        if counts is not None:
            counts = _count(counts, part)
        if kept is not None:
            ids = start + jnp.arange(length, dtype=jnp.int32)
            ids = ids // width if rows is None else lax.dynamic_slice(rows, (start,), (length,))
            kept = keep(kept, part.extent(jnp.inf), ids, part.pred, part.target)
        return counts, kept

    pieces = []
    steps, start = size // STEP, size // STEP * STEP
    if steps:

        def block(state, number):
            first = number * STEPS
            last = jnp.minimum(first + STEPS, steps)
            if histogram or worst:
                state = lax.fori_loop(first, last, lambda step, state: visit(state, step * STEP, STEP), state)
            return state, _block(data, first, last, moments)

        state, stacked = lax.scan(block, state, jnp.arange(-(-steps // STEPS), dtype=jnp.int32))
        pieces.append(stacked)
    if start < size or not steps:
        left = data.target.shape[0] - start
        tail = data.slice(start, left)
        if histogram or worst:
            state = visit(state, start, left)
        centre = centre_of(tail)
        sums, largest = _accumulate(lambda _: [tail], 0, 1, centre, True, moments)
        pieces.append(jax.tree.map(lambda leaf: leaf[None], piece_of(sums, largest, centre, moments)))
    counts, kept = state
    if histogram and data.weights is None:
        counts = whole(counts, dtype)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pieces), counts, kept


def _block(data: Entries, first: Any, last: Any, moments: bool) -> Piece:
    """Steps `first` to `last`, added up lane by lane."""
    length = (last - first) * STEP
    places = first * STEP + jnp.arange(SAMPLE, dtype=jnp.int32) * (length // SAMPLE)
    sample = data.take(places)

    def search() -> Entries:
        """The first entry that is present, where the sample has none."""
        size = min(STEPS * STEP, data.target.shape[0] // STEP * STEP)
        start = jnp.minimum(first * STEP, data.target.shape[0] // STEP * STEP - size)
        inside = data.slice(start, size)
        place = jnp.argmax(inside.present & (start + jnp.arange(size) >= first * STEP))
        return data.take(jnp.full(SAMPLE, start + place))

    centre = centre_of(lax.cond(jnp.any(sample.present), lambda: sample, search))

    def slices(step):
        return [data.slice(step * STEP + part * LANES, LANES) for part in range(STEP // LANES)]

    masked = data.weights is not None or data.where is not None
    sums, largest = _accumulate(slices, first, last, centre, masked, moments)
    if not masked:
        fallback = functools.partial(_accumulate, slices, first, last, centre, True, moments)
        known = jnp.isfinite(sums[SUMS.index("residual")])
        sums, largest = lax.cond(known, lambda: (sums, largest), fallback)
    return piece_of(sums, largest, centre, moments)


def centre_of(sample: Entries) -> dict[str, jax.Array]:
    """A value of each variable from which deviations are small, and exactly 0 if the variable is constant.

    The mean of m of N entries is at most √(N/m) standard deviations from the mean of all, which bounds what is lost.
    """
    present = sample.present
    place = jnp.argmax(present)
    number = jnp.maximum(present.sum(), 1)
    residual = sample.pred - sample.target
    values = dict(zip(VARIABLES, (sample.pred, sample.target, residual, jnp.abs(residual)), strict=True))
    centre = {}
    for name, value in values.items():
        one = jnp.where(present[place], value[place], 0)
        centre[name] = one + jnp.where(present, value - one, 0).sum() / number
    return centre


def _accumulate(slices, first, last, centre, masked, moments):
    """The sums in the order of `terms_of` over all slices of the steps, and max |r|."""

    def step(number, state):
        sums, largest = state
        parts = slices(number)
        terms = [terms_of(part, centre, masked, moments) for part in parts]
        added = [functools.reduce(jnp.add, same) for same in zip(*terms, strict=True)]
        extents = [part.extent(-jnp.inf) if masked else jnp.abs(part.pred - part.target) for part in parts]
        return [a + b for a, b in zip(sums, added, strict=True)], functools.reduce(jnp.maximum, [largest, *extents])

    lanes, dtype = slices(first)[0].target.shape, slices(first)[0].target.dtype
    number = len(jax.eval_shape(lambda: terms_of(slices(first)[0], centre, masked, moments)))
    start = spread(([jnp.zeros(lanes, dtype)] * number, jnp.full(lanes, -jnp.inf, dtype)), slices(first)[0].target)
    if isinstance(last, int):
        sums, largest = step(0, start)
    else:
        sums, largest = lax.fori_loop(first, last, step, start)
    sums = _row_sums(jnp.stack(lax.optimization_barrier(sums)))  # a fused stack branches at every element
    if not masked:  # every entry counts once
        count = jnp.asarray((last - first) * STEP, dtype)
        sums = jnp.concatenate([jnp.stack([count, jnp.zeros_like(count), count, count]), sums])
    return sums, largest.max()


def _row_sums(rows: jax.Array) -> jax.Array:
    """The sum of each row in two stages, so that rounding errors stay small."""
    number, size = rows.shape
    whole = size // 256 * 256
    main = rows[:, :whole].reshape(number, -1, 256).sum(2).sum(1)
    return main + rows[:, whole:].sum(1) if size > whole else main


def terms_of(part: Entries, centre: dict[str, jax.Array], masked: bool, moments: bool) -> list[jax.Array]:
    """What is summed: SUMS, less the first four where every entry counts once; then moments about the centre."""
    dtype = part.target.dtype
    present = part.present
    pred, target, residual = part.pred, part.target, part.pred - part.target
    if masked:
        pred = jnp.where(present, pred, centre["pred"])
        target = jnp.where(present, target, centre["target"])
        residual = jnp.where(present, residual, centre["residual"])
    absolute = jnp.abs(residual)
    terms = [(residual > 0).astype(dtype), (residual < 0).astype(dtype), residual, absolute, residual * residual]
    if moments:
        values = dict(zip(VARIABLES, (pred, target, residual, absolute), strict=True))
        gaps = {name: value - centre[name] for name, value in values.items()}
        terms += [gaps[name] for name in VARIABLES]
        terms += [gaps[x] * gaps[y] for x, y in PRODUCTS]
    if masked:
        weights = jnp.where(present, 1 if part.weights is None else part.weights, 0).astype(dtype)
        lost = ~part.finite if part.where is None else ~part.finite & part.where
        counts = [present.astype(dtype), lost.astype(dtype), weights, weights * weights]
        terms = counts + [term * weights for term in terms]
    return terms


def piece_of(sums: jax.Array, largest: jax.Array, centre: dict[str, jax.Array], moments: bool) -> Piece:
    """From sums about a centre to moments about the mean."""
    weight = sums[SUMS.index("weight")]
    about = center_moments(sums[len(SUMS) :], weight, centre) if moments else None
    return Piece(exact(sums[: len(SUMS)]), largest, about)


def spread(start: Any, like: jax.Array) -> Any:
    """The start of a loop, made to depend on the data: under `shard_map` it must differ between shards as they do."""
    nothing = jnp.isnan(like[0]).astype(jnp.int32) * 0
    return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), start)


def _count(counts: Any, part: Entries) -> Any:
    """The histogram with some entries added: integers, or weights as pairs."""
    places = bin_of(part.pred - part.target)
    if part.weights is None:
        return counts.at[places].add(part.present.astype(jnp.int32))
    weights = jnp.where(part.present, part.weights, 0)
    return add(counts, exact(jnp.zeros_like(counts.high).at[places].add(weights)))
