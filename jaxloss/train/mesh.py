"""Rows and parameters on the devices: split over a mesh, and the rows of one batch picked from their parts."""

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

from jaxloss.contract import shown
from jaxloss.train.batch import Batch, mask_rows, pad
from jaxloss.train.order import Layout, Shuffle

__all__ = ["DATA_AXIS", "Placement", "Sharding", "select", "sum_parts"]

DATA_AXIS = "data"
"""The mesh axis over which rows are split."""


class Sharding(NamedTuple):
    """How a fit is spread over devices, where the rows are split and the parameters too."""

    mesh: Mesh
    """One of `jax.make_mesh`, with an axis "data" over which the rows are split."""
    params: Callable[[Any, Any], PartitionSpec] | None = None
    """`params(path, leaf) -> PartitionSpec` says how a parameter is split; None has all of them on every device."""


class Placement(NamedTuple):
    """Where the arrays of a fit lie."""

    given: Mesh | None
    """The mesh as the caller made it; None is the default device."""
    mesh: Mesh | None
    """The same devices with all axes of type Auto, over which the compiler distributes what is not annotated."""
    rule: Callable[[Any, Any], PartitionSpec] | None = None
    """`rule(path, leaf)` says how a parameter is split; None has all of them on every device."""

    @classmethod
    def of(cls, name: str, sharding: Any) -> Placement:
        """The placement on a mesh of `jax.make_mesh`, whatever the types of its axes are."""
        if sharding is None:
            return cls(None, None)
        mesh, rule = sharding if isinstance(sharding, Sharding) else (sharding, None)
        if not isinstance(mesh, Mesh):
            raise TypeError(f"{name}: sharding must be a mesh of jax.make_mesh or a Sharding of one, got {shown(mesh)}")
        axis_types = (AxisType.Auto,) * len(mesh.axis_names)
        return cls(mesh, Mesh(mesh.devices, mesh.axis_names, axis_types=axis_types), rule)

    @property
    def shards(self) -> int:
        """Parts that the rows are split into."""
        return 1 if self.mesh is None else self.mesh.shape[DATA_AXIS]

    @property
    def is_host(self) -> bool:
        """Whether the devices are the host's own cores."""
        default = jax.config.jax_default_device or jax.devices()[0]  # type: ignore[attr-defined]
        device = default if self.mesh is None else self.mesh.devices.flat[0]
        return (device if isinstance(device, str) else device.platform) == "cpu"

    def draw(self, shuffle: Shuffle, many: bool, first: int, needed: int, capacity: int) -> jax.Array:
        """The orders of so many epochs after the `first`, on the devices, with room for `capacity`.

        The rows of one run are split over the mesh, or many runs are. On a CPU NumPy draws them, whose sort is the
        quicker one; on an accelerator the devices do, and the host sends nothing and does not wait.
        """
        axes = () if self.mesh is None else self.mesh.axis_names if many else (None, None, DATA_AXIS)
        if not self.is_host:
            sharding = None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(*axes))
            return _draw_on_devices(shuffle, many, np.uint32(first), capacity, sharding)
        orders = shuffle.draw(np.arange(first, first + needed, dtype=np.uint32))
        if shuffle.layout.steps > 1 and needed < capacity:
            orders = np.pad(orders, [(0, 0), (0, capacity - needed), *[(0, 0)] * 3], constant_values=-1)
        return self.put(orders if many else orders[0], *axes)

    def activate(self) -> contextlib.AbstractContextManager:
        """Put the mesh in the place of one that `jax.set_mesh` has set, whose axes may be of other types."""
        if self.mesh is None or jax.sharding.get_abstract_mesh().empty:
            return contextlib.nullcontext()
        return jax.set_mesh(self.mesh)

    def give_back(self, tree: Any) -> Any:
        """The tree on the mesh as the caller made it, so that it goes with the arrays he has there."""
        given = self.given
        if given is None or AxisType.Explicit not in given.axis_types:
            return tree

        def put(leaf: Any) -> Any:
            if not (isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)):
                return leaf
            parts = [shard.data for shard in leaf.addressable_shards]  # device_put serves a single process alone
            return jax.make_array_from_single_device_arrays(leaf.shape, NamedSharding(given, leaf.sharding.spec), parts)

        return jax.tree.map(put, tree)

    def put(self, leaf: Any, *axes: Any) -> jax.Array:
        """An array that every process holds entirely, split over the mesh as `PartitionSpec(*axes)` says."""
        if self.mesh is None:
            return jnp.asarray(leaf)
        sharding = NamedSharding(self.mesh, PartitionSpec(*axes))
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self.put(jax.random.key_data(leaf), *axes), impl=jax.random.key_impl(leaf))
        host = _canonical(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    def put_rows(self, batch: Batch) -> Batch:
        """A batch that every process holds entirely, padded, its rows split over the mesh."""
        if self.mesh is None:
            return _copy_to_device(batch)
        return pad(batch, -(-batch.rows // self.shards) * self.shards).map_rows(lambda leaf: self.put(leaf, DATA_AXIS))

    def join_rows(self, batch: Batch) -> Batch:
        """A batch of which this process holds some rows and the others theirs, equally many."""
        if self.mesh is None:
            return _copy_to_device(batch)
        sharding = NamedSharding(self.mesh, PartitionSpec(DATA_AXIS))
        return batch.map_rows(lambda leaf: jax.make_array_from_process_local_data(sharding, _canonical(leaf)))

    def put_params(self, params: Any) -> Any:
        """Parameters on every device of the mesh, or split by the rule."""
        if self.mesh is None:
            return params

        def put(path: Any, leaf: Any) -> jax.Array:
            spec = PartitionSpec() if self.rule is None else self.rule(path, leaf)
            if not isinstance(spec, PartitionSpec):
                told = f"got {shown(spec)} of params{keystr(path)}"
                raise TypeError(f"fit: the params of a Sharding must give a PartitionSpec, {told}")
            return self.put(leaf, *spec)

        return jax.tree_util.tree_map_with_path(put, params)


@functools.partial(jax.jit, static_argnames=("many", "capacity", "sharding"))
def _draw_on_devices(shuffle: Shuffle, many: bool, first: Any, capacity: int, sharding: Any) -> jax.Array:
    orders = shuffle.draw(first + jnp.arange(capacity, dtype=jnp.uint32))
    orders = orders if many else orders[0]
    return orders if sharding is None else lax.with_sharding_constraint(orders, sharding)


@jax.jit
def _copy_to_device(batch: Batch) -> Batch:
    """Copies on the device: in one call, which takes a quarter of the time of `asarray` of each."""
    return batch


def _canonical(leaf: Any) -> np.ndarray:
    """The array on the host, of a type that JAX computes with."""
    host = np.asarray(leaf)
    return host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)


def select(data: Batch, order: Any, layout: Layout, mesh: Mesh | None) -> Batch:
    """The rows of one batch, empty places masked; each part of the data gives its own, so nothing is communicated."""
    index = jnp.maximum(order, 0) if layout.ragged else order

    def at(part: jax.Array, places: jax.Array) -> jax.Array:
        return part.at[places].get(mode="promise_in_bounds")

    def take(leaf: Any) -> Any:
        if layout.shards == 1:
            return at(leaf, index[0])
        parts = leaf.reshape(layout.shards, layout.rows, *leaf.shape[1:])
        return _split_rows(jax.vmap(at)(parts, index), mesh).reshape(-1, *leaf.shape[1:])

    batch = data.map_rows(take)
    return mask_rows(batch, (order >= 0).reshape(-1)) if layout.ragged else batch


def _split_rows(leaf: jax.Array, mesh: Mesh | None) -> jax.Array:
    """The array with its first axis split over the mesh's data axis."""
    if mesh is None:
        return leaf
    return lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec(DATA_AXIS)))


def sum_parts(part: Callable[[Batch], Any], data: Batch, size: int, mesh: Mesh | None) -> Any:
    """Σ part(rows) over all rows, about `size` at a time: a bound on memory."""
    shards = 1 if mesh is None else mesh.shape[DATA_AXIS]
    rows, places = data.rows // shards, -(-size // shards)
    if rows <= places:
        return part(data)
    layout = Layout(shards, rows, (places,) * shards, -(-rows // places), True)

    def one(first: Any) -> Any:
        index = first + jnp.arange(places)
        order = jnp.broadcast_to(jnp.where(index < rows, index, -1), (shards, places))
        return part(select(data, order, layout, mesh))

    return jax.tree.map(lambda leaf: leaf.sum(0), lax.map(one, jnp.arange(0, rows, places)))
