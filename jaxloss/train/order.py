"""In what order an epoch takes the rows, and how they are cut into batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Layout", "Shuffle", "draw_orders", "words_of"]


class Layout(NamedTuple):
    """How rows are cut into batches: a value, known when a program is compiled."""

    shards: int
    """Parts of the data, one to each place along the mesh's data axis."""
    rows: int
    """Rows of a part, padding included."""
    sizes: tuple[int, ...]
    """Rows that each part gives to a batch."""
    steps: int
    """Batches in an epoch."""
    ragged: bool
    """Whether some places of a batch are empty."""
    sparse: bool = False
    """Whether a batch may be wholly empty: no step is then taken."""
    tail: int = 0
    """Rows of the last batch, where it has a shape of its own instead of empty places; 0 where it has not."""

    @classmethod
    def of(cls, rows: int, batch_size: int, shards: int, *, pads: bool = True) -> Layout:
        """The layout of so many rows in batches of `batch_size` over so many parts.

        pads: whether a batch may have empty places; if not, the last one has a shape of its own.
        """
        part = -(-rows // shards)
        if batch_size == rows:
            layout = cls(shards, part, (part,) * shards, 1, False)
            return layout if pads else layout.require_full(rows)
        sizes = tuple(batch_size // shards + (shard < batch_size % shards) for shard in range(shards))
        if 0 in sizes:
            raise ValueError(f"fit: batch_size={batch_size} is less than the {shards} places of the mesh's data axis")
        steps = max(-(-part // size) for size in sizes)
        if not pads:
            tail = part - (steps - 1) * batch_size if shards == 1 else 0
            return cls(shards, part, sizes, steps, False, tail=tail % batch_size).require_full(rows)
        return cls(shards, part, sizes, steps, any(size * steps != part for size in (*sizes, max(sizes))))

    def require_full(self, rows: int) -> Layout:
        """The layout; raises where many parts cannot share the rows without empty places."""
        size = sum(self.sizes)
        if self.shards > 1 and (rows % self.shards or size % self.shards or rows % size):
            raise ValueError(
                f"fit: {rows} rows in batches of {size} over {self.shards} devices leave places empty, which count "
                f"in batch statistics: give a multiple of {math.lcm(size, self.shards)} rows, or no mesh"
            )
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shuffle:
    """What the orders of one run or many depend on."""

    layout: Layout = dataclasses.field(metadata={"static": True})
    seeds: Any
    """`words_of` them."""
    chosen: Any = None
    """The rows each run has, of shape (runs, rows), −1 after the last; None if all have all."""

    @classmethod
    def of(cls, layout: Layout, seeds: Iterable[int], chosen: np.ndarray | None = None) -> Shuffle:
        """The shuffle of runs with these seeds, of 64 bits each."""
        if chosen is not None:
            chosen = np.take_along_axis(chosen, np.argsort(chosen < 0, axis=1, kind="stable"), 1)
        return cls(layout, words_of(seeds), chosen)

    def draw(self, epochs: Any) -> Any:
        """The rows of each batch of these epochs, of shape (runs, epochs, steps, shards, places); −1 is an empty place.

        epochs: their numbers, as uint32: those of NumPy are drawn by NumPy, those of JAX by JAX.
        """
        layout, chosen = self.layout, self.chosen
        xp: Any = np if isinstance(epochs, np.ndarray) else jnp
        if chosen is not None and layout.steps == 1:
            return xp.asarray(chosen)[:, None, None, None]
        counts = None if chosen is None else (chosen >= 0).sum(1)
        orders = draw_orders(self.seeds, epochs, layout.rows, layout.shards, counts)
        if chosen is not None:
            rows = xp.take_along_axis(chosen, xp.maximum(orders, 0).reshape(len(chosen), -1), 1)
            orders = xp.where(orders < 0, -1, rows.reshape(orders.shape))

        def fill(part: Any, places: int) -> Any:
            """The array with empty places at the end of its last axis."""
            missing = places - part.shape[-1]
            return xp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, missing)], constant_values=-1) if missing else part

        parts = []
        for shard, size in enumerate(layout.sizes):
            part = fill(orders[:, :, shard], layout.steps * size)
            parts.append(fill(part.reshape(*part.shape[:2], layout.steps, size), max(layout.sizes)))
        return xp.stack(parts, axis=3)


def words_of(seeds: Iterable[int]) -> np.ndarray:
    """The seeds, of 64 bits each, as two words of 32 bits, of shape (runs, 2)."""
    return np.array([(seed % 2**32, seed // 2**32 % 2**32) for seed in map(int, seeds)], np.uint32)


def draw_orders(seeds: Any, epochs: Any, rows: int, shards: int = 1, counts: Any = None) -> Any:
    """The order of the rows of each shard in each epoch of each run, of shape (runs, epochs, shards, rows).

    Sorts the row numbers by a bijection of 32-bit words, keyed by (seed, epoch, shard): no two are equal, so the order
    is the same on every platform. The words alone are sorted, and the inverse tells of which rows they are.

    seeds, epochs: as of a `Shuffle`. counts: how many rows each run has, if not all; −1 follows the last.
    """
    xp: Any = np if isinstance(epochs, np.ndarray) else jnp
    row = np.arange(rows, dtype=np.uint32).reshape(1, 1, 1, -1)
    shard = np.arange(shards, dtype=np.uint32).reshape(1, 1, -1, 1)
    low, high = (seeds[:, part].reshape(-1, 1, 1, 1) for part in (0, 1))
    key = [np.full((1, 1, 1, 1), start, np.uint32) for start in STARTS]
    for word in (low, high, epochs.reshape(1, -1, 1, 1), shard):
        key = [_mix(part ^ word) for part in key]
    words = _mix(_mix(row ^ key[0]) ^ key[1])
    absent = None if counts is None else row >= counts.reshape(-1, 1, 1, 1)
    if absent is not None:
        words = xp.where(absent, np.uint32(2**32 - 1), words)
    words = xp.sort(words, axis=-1)
    orders = (_mix(_mix(words, INVERSES) ^ key[1], INVERSES) ^ key[0]).astype(np.int32)
    return orders if absent is None else xp.where(absent, -1, orders)


STARTS = 0x6A09E667, 0xBB67AE85
"""What the two words of a key begin as: the first bits after the point of the roots of 2 and of 3."""

FACTORS = 0x85EBCA6B, 0xC2B2AE35
"""Those of the finalizer of MurmurHash3 (Appleby 2008), by which each bit of a word flips the others half the time."""

INVERSES = tuple(pow(factor, -1, 2**32) for factor in reversed(FACTORS))
"""The factors of the inverse of `_mix`."""


def _mix(word: Any, factors: tuple[int, ...] = FACTORS) -> Any:
    """A bijection of words of 32 bits."""
    for factor in factors:
        word = (word ^ (word >> np.uint32(16))) * np.uint32(factor)
    return word ^ (word >> np.uint32(16))
