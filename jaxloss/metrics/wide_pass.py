"""The statistics of `jaxloss.metrics.one_pass` as few wide operations, for processors with thousands of lanes.

What one_pass adds up slice after slice, to stay in a CPU's cache, is here one reduction over all blocks at once: a GPU
is fast where there is much to do at the same time, and waits where one step follows another.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.metrics import one_pass as lanes
from jaxloss.metrics.histogram import BINS, bin_of
from jaxloss.metrics.one_pass import Entries, Piece, centre_of, piece_of, spread, terms_of
from jaxloss.metrics.worst import Worst, first
from jaxloss.numerics.sums import Compensated, exact, total, whole

__all__ = ["wide_pass"]

CHUNK = 2**12
"""The worst rows are looked for in the chunks with the largest residuals, each of so many entries."""

COPIES = 2**9
"""At most so many histograms are filled side by side: entries of the same bin would wait for one another, and a float
that many weights are added to would lose the last of them."""


def wide_pass(
    data: Entries, rows: Any, width: int, *, moments: bool, histogram: bool, worst: int
) -> tuple[Piece, Compensated | None, Worst | None]:
    """What `one_pass` tells of the same arguments."""
    if data.target.shape[0] == 0:
        nothing = jnp.zeros(1, data.target.dtype)
        data, rows = Entries(nothing, nothing, None, jnp.zeros(1, bool)), None
    size, length = data.target.shape[0], lanes.STEP * lanes.STEPS
    start = size // length * length
    pieces = []
    if start:
        pieces.append(_blocks(jax.tree.map(lambda leaf: leaf[:start].reshape(-1, length), data), moments))
    if start < size:
        pieces.append(_blocks(jax.tree.map(lambda leaf: leaf[None, start:], data), moments))
    counts = _histogram(data) if histogram else None
    kept = _worst(data, rows, width, worst) if worst else None
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pieces), counts, kept


def _blocks(data: Entries, moments: bool) -> Piece:
    """The statistics of each block, a row of the arrays."""
    length = data.target.shape[1]
    sample = jax.tree.map(lambda leaf: leaf[:, :: max(length // lanes.SAMPLE, 1)], data)

    def search() -> Entries:
        """The first entry that is present, where a sample has none."""
        place = jnp.argmax(data.present, 1)[:, None]
        found = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, place, 1), data)
        there = jnp.any(sample.present, 1, keepdims=True)
        return jax.tree.map(lambda leaf, one: jnp.where(there, leaf, one), sample, found)

    centres = jax.vmap(centre_of)(lax.cond(jnp.all(jnp.any(sample.present, 1)), lambda: sample, search))
    about = {name: centre[:, None] for name, centre in centres.items()}
    sums = jnp.stack([_row_sums(term) for term in terms_of(data, about, True, moments)], 1)
    largest = data.extent(-jnp.inf).max(1)
    return jax.vmap(functools.partial(piece_of, moments=moments))(sums, largest, centres)


def _row_sums(rows: jax.Array) -> jax.Array:
    """The sum of each row in two stages, so that rounding errors stay small."""
    number, length = rows.shape
    whole = length // 256 * 256
    return rows[:, :whole].reshape(number, -1, 256).sum(2).sum(1) + rows[:, whole:].sum(1)


def _histogram(data: Entries) -> Compensated:
    """Weight in each bin, from several histograms of every so-manieth entry."""
    size, dtype = data.target.shape[0], data.target.dtype
    copies = min(max(size // lanes.STEP, 1), COPIES)
    places = bin_of(data.pred - data.target) + BINS * (jnp.arange(size, dtype=jnp.int32) % copies)
    added = jnp.where(data.present, 1 if data.weights is None else data.weights, 0)
    empty = spread(jnp.zeros(copies * BINS, added.dtype), data.target)
    filled = empty.at[places].add(added, mode="promise_in_bounds").reshape(copies, BINS)
    return whole(filled.sum(0), dtype) if data.weights is None else total(exact(filled))


def _worst(data: Entries, rows: Any, width: int, number: int) -> Worst:
    """The entries of largest |r|: first the chunks that hold them, then those within."""
    size = data.target.shape[0]
    extent = data.extent(jnp.inf)
    padded = jnp.pad(extent, (0, -size % CHUNK), constant_values=-jnp.inf).reshape(-1, CHUNK)
    chunks = jnp.sort(
        lax.top_k(padded.max(1), min(number, padded.shape[0]))[1]
    )  # so that the first of equals stay first
    largest, inside = lax.top_k(padded[chunks].ravel(), min(number, CHUNK * chunks.size))
    places = chunks[inside // CHUNK] * CHUNK + inside % CHUNK
    at = jnp.minimum(places, size - 1)
    row = (at // width if rows is None else rows[at]).astype(jnp.int32)
    there = largest > -jnp.inf
    found = (largest, jnp.where(there, row, -1), *(jnp.where(there, x[at], jnp.nan) for x in (data.pred, data.target)))
    short = number - largest.size
    filled = [
        jnp.pad(x, (0, short), constant_values=v) for x, v in zip(found, (-jnp.inf, -1, jnp.nan, jnp.nan), strict=True)
    ]
    return first(Worst(*filled), number)
