"""Gathers what each shard of a mesh axis holds, so that every shard has all of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["gather_shards"]


def gather_shards(tree: Any, axis_name: Any) -> Any:
    """Stack the pytrees of all shards of a mesh axis along a new first axis, the same on each of them.

    Inside `shard_map` or `vmap`. By a sum, which the compiler knows to be the same everywhere; `lax.all_gather` with
    `to="invarying"` says so too, but not under `vmap` (jax 0.10).
    """
    here, number = lax.axis_index(axis_name), lax.axis_size(axis_name)

    def spread(leaf: Any) -> jax.Array:
        mine = (jnp.arange(number) == here).reshape((number,) + (1,) * jnp.ndim(leaf))
        return jnp.where(mine, jnp.asarray(leaf)[None], 0)

    return lax.psum(jax.tree.map(spread, tree), axis_name)
