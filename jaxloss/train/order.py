"""In what order an epoch takes the rows, and how they are cut into batches."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["Layout", "draw_orders"]


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

    def draw(self, seed: int, first: int, count: int, capacity: int) -> np.ndarray:
        """The rows of each batch of `count` epochs after the `first`; −1 for an empty place.

        Of shape (capacity, steps, shards, places).
        """
        orders = np.full((capacity, self.steps, self.shards, max(self.sizes)), -1, np.int32)
        for number, parts in enumerate(draw_orders(seed, first, count, self.rows, self.shards)):
            for shard, size in enumerate(self.sizes):
                flat = np.full(self.steps * size, -1, np.int32)
                flat[: self.rows] = parts[shard]
                orders[number, :, shard, :size] = flat.reshape(self.steps, size)
        return orders


def draw_orders(seed: int, first: int, count: int, rows: int, shards: int = 1) -> np.ndarray:
    """The order of each part's rows in each of `count` epochs after the `first`, keyed by (seed, epoch).

    Drawn on the host: a permutation on the device is a sort, which for a small network costs as much as the training.
    """
    orders = np.empty((count, shards, rows), np.int32)
    for number in range(count):
        bits = np.random.Philox(key=np.array([seed % 2**64, first + number], np.uint64))
        generator = np.random.Generator(bits)
        for shard in range(shards):
            orders[number, shard] = generator.permutation(rows)
    return orders
