"""Rows on their way to a step: checked on the host, cut into batches, drawn in an order of their own."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import ShapeError
from jaxloss.train.state import Batch

__all__ = ["Layout", "as_batch", "count_rows", "epoch_orders", "padded", "screen", "with_rows"]


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

    @classmethod
    def of(cls, rows: int, batch_size: int, shards: int) -> Layout:
        """The layout of so many rows in batches of `batch_size` over so many parts."""
        part = -(-rows // shards)
        if batch_size == rows:
            return cls(shards, part, (part,) * shards, 1, False)
        sizes = tuple(batch_size // shards + (shard < batch_size % shards) for shard in range(shards))
        if 0 in sizes:
            raise ValueError(f"fit: batch_size={batch_size} is less than the {shards} places of the mesh's data axis")
        steps = max(-(-part // size) for size in sizes)
        return cls(shards, part, sizes, steps, any(size * steps != part for size in (*sizes, max(sizes))))

    def orders(self, seed: int, first: int, count: int, capacity: int) -> np.ndarray:
        """The rows of each batch of `count` epochs after the `first`; −1 for an empty place.

        Of shape (capacity, steps, shards, places).
        """
        orders = np.full((capacity, self.steps, self.shards, max(self.sizes)), -1, np.int32)
        for number, parts in enumerate(epoch_orders(seed, first, count, self.rows, self.shards)):
            for shard, size in enumerate(self.sizes):
                flat = np.full(self.steps * size, -1, np.int32)
                flat[: self.rows] = parts[shard]
                orders[number, :, shard, :size] = flat.reshape(self.steps, size)
        return orders


def epoch_orders(seed: int, first: int, count: int, rows: int, shards: int = 1) -> np.ndarray:
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


def as_batch(name: str, data: Any) -> Batch:
    """`(x, target)` or a `Batch`, its leaves as arrays; raises for what has no rows, or a different number."""
    if not isinstance(data, tuple) or not 2 <= len(data) <= 4:
        raise TypeError(f"fit: {name} must be (x, target) or a Batch, got {type(data).__name__}")
    batch = jax.tree.map(_as_array, Batch(*data))
    sizes = {
        part: leaf.shape[0] if leaf.ndim else None
        for part, value in (("x", batch.x), ("target", batch.target))
        for leaf in jax.tree.leaves(value)
    }
    if "x" not in sizes or "target" not in sizes or None in sizes.values():
        raise TypeError(f"fit: {name} must hold arrays with rows, such as np.asarray(x) of a list, in x and target")
    if len(set(sizes.values())) != 1:
        raise ValueError(f"fit: {name} must have the same number of rows in x and target, got {sizes}")
    if 0 in sizes.values():
        raise ValueError(f"fit: {name} has no rows")
    rows, rank = next(iter(sizes.values())), max(leaf.ndim for leaf in jax.tree.leaves(batch.target))
    for part, value in (("weights", batch.weights), ("where", batch.where)):
        for leaf in jax.tree.leaves(value):
            if leaf.ndim and leaf.shape[0] not in (1, rows):
                raise ShapeError(
                    f"fit: {part} of {name} has shape {leaf.shape}, but there are {rows} rows: its first axis must be "
                    "the rows' or 1"
                )
            if leaf.ndim > rank:
                raise ShapeError(f"fit: {part} of {name} has shape {leaf.shape}, of more axes than the target's {rank}")
    return batch


def _as_array(leaf: Any) -> Any:
    """An array of a type JAX computes with; those in files are left there."""
    if isinstance(leaf, jax.Array | np.memmap):
        return leaf
    host = np.asarray(leaf)
    if host.dtype.kind in "OSUMmV" and not jnp.issubdtype(host.dtype, jnp.inexact):  # bfloat16 is of kind V
        raise TypeError(f"fit: data must be numbers, got {host.dtype} of shape {host.shape}")
    if host.dtype == np.float32:
        return host
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and then found to be so
        return host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)


def count_rows(batch: Batch) -> int:
    """The number of rows of a batch."""
    return jax.tree.leaves(batch.x)[0].shape[0]


def screen(name: str, batch: Batch, nonfinite: str, first: int = 0) -> Batch:
    """Refuse or mask the rows that hold a NaN or an infinity and are not masked.

    Rows that are masked as a whole and have features that are not finite get those of a row that has finite ones: a
    model would pass a NaN on to its gradient. first: the number of the first row.
    """
    if nonfinite not in ("error", "mask"):
        raise ValueError(f"fit: nonfinite must be 'error' or 'mask', got {nonfinite!r}")
    if all(_is_finite(leaf) for leaf in jax.tree.leaves(batch._replace(where=None))):
        return batch
    rows = count_rows(batch)
    where = jax.tree.map(lambda _: True, batch.target) if batch.where is None else batch.where
    weights = jax.tree.map(lambda _: 1.0, batch.target) if batch.weights is None else batch.weights

    def by_row(values: Any) -> np.ndarray:
        values = np.asarray(values)
        return (
            values.reshape(rows, -1).any(1) if values.ndim and values.shape[0] == rows else np.full(rows, values.any())
        )

    def lost(target: Any, weights: Any, where: Any) -> np.ndarray:
        return np.where(where, ~(_finite(target) & _finite(weights)), False)

    entries = jax.tree.map(lost, batch.target, weights, where)
    used = functools.reduce(np.logical_or, [by_row(leaf) for leaf in jax.tree.leaves(where)])
    bad = {
        "x": used & functools.reduce(np.logical_or, [by_row(~_finite(leaf)) for leaf in jax.tree.leaves(batch.x)]),
        "target or weights": functools.reduce(np.logical_or, [by_row(leaf) for leaf in jax.tree.leaves(entries)]),
    }
    either = bad["x"] | bad["target or weights"]
    if either.any() and nonfinite == "error":
        places = first + np.flatnonzero(either)
        shown = ", ".join(map(str, places[:5])) + (", …" if len(places) > 5 else "")
        parts = " and ".join(f"{part} ({int(rows_.sum())} rows)" for part, rows_ in bad.items() if rows_.any())
        raise ValueError(
            f"fit: {name} holds NaN or infinity in {parts}, rows {shown}: repair or mask them, or pass nonfinite='mask'"
        )

    def keep(target: Any, entries: np.ndarray, where: Any) -> np.ndarray:
        good = ~bad["x"].reshape((rows,) + (1,) * (np.ndim(target) - 1)) & ~entries
        return np.broadcast_to(where, np.shape(target)) & good

    lost_rows = functools.reduce(np.logical_or, [by_row(~_finite(leaf)) for leaf in jax.tree.leaves(batch.x)])
    place = np.where(lost_rows & (bad["x"] | ~used), np.argmin(lost_rows), np.arange(rows))
    x = jax.tree.map(lambda leaf: np.asarray(leaf)[place], batch.x)
    return batch._replace(x=x, where=jax.tree.map(keep, batch.target, entries, where))


def _finite(leaf: Any) -> np.ndarray:
    values = np.asarray(leaf)
    return np.isfinite(values) if jnp.issubdtype(values.dtype, jnp.inexact) else np.ones(values.shape, bool)


def _is_finite(leaf: Any) -> bool:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return True
    return bool(_all_finite(leaf)) if isinstance(leaf, jax.Array) else bool(np.isfinite(leaf).all())


@jax.jit
def _all_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def with_rows(batch: Batch, present: Any) -> Batch:
    """The batch with the rows masked that are not present."""

    def mask(target: Any, where: Any = None) -> Any:
        rows = present.reshape(present.shape + (1,) * (target.ndim - 1))
        return rows if where is None else where & rows

    masked = (batch.target,) if batch.where is None else (batch.target, batch.where)
    return batch._replace(where=jax.tree.map(mask, *masked))


def padded(batch: Batch, rows: int) -> Batch:
    """The batch with masked copies of its first row at the end, so that it has `rows` rows."""
    have = count_rows(batch)
    if have == rows:
        return batch

    def pad(leaf: Any) -> Any:
        if not leaf.ndim or leaf.shape[0] != have:
            return leaf
        return np.concatenate([leaf, np.broadcast_to(leaf[:1], (rows - have, *leaf.shape[1:]))])

    return with_rows(jax.tree.map(pad, batch), np.arange(rows) < have)
