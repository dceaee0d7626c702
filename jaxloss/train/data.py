"""Rows on their way to a step: checked on the host, laid out over the devices, drawn in an order of their own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from jaxloss.contract import ShapeError, shown
from jaxloss.train.state import Batch

__all__ = [
    "Layout",
    "as_batch",
    "assemble",
    "automatic",
    "count_rows",
    "epoch_orders",
    "place",
    "returned",
    "screen",
    "select",
    "spread",
    "within",
]

DATA_AXIS = "data"
"""The mesh axis over which rows are split."""


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


def automatic(name: str, mesh: Mesh | None) -> Mesh | None:
    """The mesh with axes over which the compiler itself distributes, as `jax.make_mesh` does not make them."""
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(f"{name}: mesh must be one of jax.make_mesh, got {shown(mesh)}")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def within(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """A context in which the mesh takes the place of one that `jax.set_mesh` has set: its axes' types may differ."""
    if mesh is None or jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    return jax.set_mesh(mesh)


def returned(tree: Any, mesh: Mesh | None) -> Any:
    """The tree on the mesh as the caller made it, so that it goes with the arrays he has there."""
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return tree

    def put(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            return leaf
        parts = [shard.data for shard in leaf.addressable_shards]  # device_put serves a single process alone
        return jax.make_array_from_single_device_arrays(leaf.shape, NamedSharding(mesh, sharding.spec), parts)

    return jax.tree.map(put, tree)


@jax.jit
def _on_device(batch: Batch) -> Batch:
    """Copies on the device: in one call, which takes a quarter of the time of `asarray` of each."""
    return batch


def spread(batch: Batch, mesh: Mesh | None) -> Batch:
    """The batch on the devices: padded, its rows split over the mesh's data axis."""
    if mesh is None:
        return _on_device(batch)
    rows, shards = count_rows(batch), mesh.shape[DATA_AXIS]
    batch = padded(batch, -(-rows // shards) * shards)
    rows = count_rows(batch)

    def split(leaf: Any) -> PartitionSpec:
        return PartitionSpec(DATA_AXIS) if leaf.ndim and leaf.shape[0] == rows else PartitionSpec()

    return jax.tree.map(lambda leaf: place(leaf, mesh, split(leaf)), batch)


def assemble(batch: Batch, rows: int, mesh: Mesh | None) -> Batch:
    """A batch on the devices, of which this process holds `rows` rows and the others theirs."""
    if mesh is None:
        return _on_device(batch)

    def join(leaf: Any) -> jax.Array:
        if not leaf.ndim or leaf.shape[0] != rows:
            return place(leaf, mesh, PartitionSpec())
        host = np.asarray(leaf)
        host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype))
        return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(DATA_AXIS)), host)

    return jax.tree.map(join, batch)


def place(leaf: Any, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """An array that every process holds whole, spread over the mesh."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(place(jax.random.key_data(leaf), mesh, spec), impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype))
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def spread_orders(orders: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """Orders on the devices, each part's with its rows."""
    return jnp.asarray(orders) if mesh is None else place(orders, mesh, PartitionSpec(None, None, DATA_AXIS))


def spread_params(params: Any, mesh: Mesh | None, rule: Callable | None = None) -> Any:
    """A tree on every device of the mesh, or split by the rule."""
    if mesh is None:
        return params

    def put(path: Any, leaf: Any) -> jax.Array:
        spec = PartitionSpec() if rule is None else rule(path, leaf)
        if not isinstance(spec, PartitionSpec):
            raise TypeError(f"fit: shard_params must give a PartitionSpec, got {shown(spec)} of params{keystr(path)}")
        return place(leaf, mesh, spec)

    return jax.tree_util.tree_map_with_path(put, params)


def select(data: Batch, order: Any, layout: Layout, mesh: Mesh | None) -> Batch:
    """The rows of one batch, empty places masked; each part of the data gives its own, so nothing is communicated."""
    index = jnp.maximum(order, 0) if layout.ragged else order
    rows = layout.shards * layout.rows

    def at(part: jax.Array, places: jax.Array) -> jax.Array:
        return part.at[places].get(mode="promise_in_bounds")

    def take(leaf: Any) -> Any:
        if not leaf.ndim or leaf.shape[0] != rows:
            return leaf
        if layout.shards == 1:
            return at(leaf, index[0])
        parts = leaf.reshape(layout.shards, layout.rows, *leaf.shape[1:])
        return _split(jax.vmap(at)(parts, index), mesh).reshape(-1, *leaf.shape[1:])

    batch = jax.tree.map(take, data)
    return with_rows(batch, (order >= 0).reshape(-1)) if layout.ragged else batch


def _split(leaf: jax.Array, mesh: Mesh | None) -> jax.Array:
    if mesh is None:
        return leaf
    return lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec(DATA_AXIS)))


def sums_of_parts(part: Callable[[Batch], Any], data: Batch, size: int, mesh: Mesh | None) -> Any:
    """Σ part(rows) over all rows, about `size` at a time: a bound on memory."""
    shards = 1 if mesh is None else mesh.shape[DATA_AXIS]
    rows, places = count_rows(data) // shards, -(-size // shards)
    if rows <= places:
        return part(data)
    layout = Layout(shards, rows, (places,) * shards, -(-rows // places), True)

    def one(first: Any) -> Any:
        index = first + jnp.arange(places)
        order = jnp.broadcast_to(jnp.where(index < rows, index, -1), (shards, places))
        return part(select(data, order, layout, mesh))

    return jax.tree.map(lambda leaf: leaf.sum(0), lax.map(one, jnp.arange(0, rows, places)))
