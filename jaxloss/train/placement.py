"""Rows and parameters on the devices: split over a mesh, and the rows of one batch picked from their parts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from jaxloss.contract import shown
from jaxloss.train.data import Layout, count_rows, padded, with_rows
from jaxloss.train.state import Batch

__all__ = [
    "DATA_AXIS",
    "assemble",
    "automatic",
    "place",
    "returned",
    "select",
    "spread",
    "spread_orders",
    "spread_params",
    "sums_of_parts",
    "within",
]

DATA_AXIS = "data"
"""The mesh axis over which rows are split."""


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
