"""The few entries with the largest residuals."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Worst", "first", "keep", "no_rows"]


class Worst(NamedTuple):
    """The entries of largest |r|, largest first; those that are not finite (size inf) before all. Row −1: no entry."""

    size: Any
    row: Any
    pred: Any
    target: Any


def no_rows(dtype: Any, number: int) -> Worst:
    """The list before any entry."""
    nothing = jnp.full(number, jnp.nan, dtype)
    return Worst(jnp.full(number, -jnp.inf, dtype), jnp.full(number, -1, jnp.int32), nothing, nothing)


def keep(kept: Worst, extent, rows, pred, target) -> Worst:
    """The worst of those kept and a block; a block with none of them costs one maximum."""
    number = kept.size.shape[-1]

    def search(kept: Worst) -> Worst:
        largest, places = lax.top_k(extent, min(number, extent.size))
        row = jnp.where(largest == -jnp.inf, -1, rows[places]).astype(kept.row.dtype)
        block = Worst(largest, row, pred[places], target[places])
        return first(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), kept, block), number)

    return lax.cond(extent.max() >= kept.size[-1], search, lambda kept: kept, kept)


def first(entries: Worst, number: int) -> Worst:
    """The first `number` by size, then by row, along the last axis."""
    size, row, pred, target = lax.sort((-entries.size, entries.row, entries.pred, entries.target), num_keys=2)
    return jax.tree.map(lambda leaf: leaf[..., :number], Worst(-size, row, pred, target))
