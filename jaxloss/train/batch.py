"""A batch of rows: checked and made regular where it comes in, screened for what is not finite, masked and padded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import ShapeError

__all__ = ["Batch", "as_batch", "mask_rows", "pad", "regular", "screen"]


class Batch(NamedTuple):
    """Rows to learn from: features and targets, rows along the first axis, and the target's weights and mask."""

    x: Any
    target: Any
    weights: Any = None
    where: Any = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return jnp.shape(jax.tree.leaves(self.x)[0])[0]

    def map_rows(self, function: Callable[[Any], Any]) -> Batch:
        """Apply the function to every array; each has the rows along its first axis once the batch is `regular`."""
        return jax.tree.map(function, self)


def regular(batch: Batch) -> Batch:
    """Give weights and masks that all rows share, a scalar or an array whose first axis is 1, an axis of all rows."""
    ranks = [jnp.ndim(leaf) for leaf in jax.tree.leaves(batch.target)]

    def widen(leaf: Any, rank: int) -> Any:
        if jnp.ndim(leaf) and jnp.shape(leaf)[0] == batch.rows:
            return leaf
        broadcast: Any = jnp.broadcast_to if isinstance(leaf, jax.Array) else np.broadcast_to
        return broadcast(leaf, (batch.rows, *(jnp.shape(leaf)[1:] if jnp.ndim(leaf) else (1,) * (rank - 1))))

    def widen_all(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        own = ranks if len(leaves) == len(ranks) else [max(ranks)] * len(leaves)
        return structure.unflatten(map(widen, leaves, own))

    return batch._replace(weights=widen_all(batch.weights), where=widen_all(batch.where))


PARTS = (("x",), ("target", "y"), ("weights",), ("where",))
"""The names under which a dict has the parts of a batch."""


def as_batch(name: str, data: Any, keys: Sequence[str] | None = None) -> Batch:
    """A regular batch of arrays; raises for what has no rows, or a different number.

    data: `(x, target)`, with weights and mask if there are more, as a tuple, list or `Batch`; or a dict, whose entries
        `keys` names in this order.
    """
    if isinstance(data, Mapping):
        names = [next((one for one in known if one in data), known[0]) for known in PARTS] if keys is None else keys
        if any(one not in data for one in names[: len(keys or PARTS[:2])]):
            told = f"got dict of {', '.join(map(str, data))}"
            raise TypeError(f"fit: {name}: {told}: say which are x and target by Stream(batches, keys=(…, …))")
        data = tuple(data.get(one) for one in names)
    if not isinstance(data, tuple | list) or not 2 <= len(data) <= 4:
        raise TypeError(f"fit: {name} must be (x, target), a Batch or a dict of them, got {_told(data)}")
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
    rows, rank = batch.rows, max(leaf.ndim for leaf in jax.tree.leaves(batch.target))
    for part, value in (("weights", batch.weights), ("where", batch.where)):
        for leaf in jax.tree.leaves(value):
            if leaf.ndim and leaf.shape[0] not in (1, rows):
                raise ShapeError(
                    f"fit: {part} of {name} has shape {leaf.shape}, but there are {rows} rows: its first axis must be "
                    "the rows' or 1"
                )
            if leaf.ndim > rank:
                raise ShapeError(f"fit: {part} of {name} has shape {leaf.shape}, of more axes than the target's {rank}")
    return regular(batch)


def _told(data: Any) -> str:
    return f"{type(data).__name__} of {len(data)}" if isinstance(data, tuple | list) else type(data).__name__


def _as_array(leaf: Any) -> Any:
    """An array of a type JAX computes with; those in files are left there, a tensor on the CPU is not copied."""
    if isinstance(leaf, jax.Array | np.memmap):
        return leaf
    try:
        host = np.asarray(leaf)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor with a gradient, on a GPU, of a type of its own
        told = " ".join(str(error).split())
        raise TypeError(f"fit: data must be arrays on the host, got {type(leaf).__name__}: {told}") from None
    if host.dtype.kind in "OSUMmV" and not jnp.issubdtype(host.dtype, jnp.inexact):  # bfloat16 is of kind V
        raise TypeError(f"fit: data must be numbers, got {host.dtype} of shape {host.shape}")
    if host.dtype == np.float32:
        return host
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and then found to be so
        return host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)


def screen(name: str, batch: Batch, nonfinite: str, first: int = 0) -> Batch:
    """Refuse or mask the rows that hold a NaN or an infinity and are not masked.

    Rows that are masked entirely and have features that are not finite get those of a row that has finite ones: a
    model would pass a NaN on to its gradient. first: the number of the first row.
    """
    if all(_is_finite(leaf) for leaf in jax.tree.leaves(batch._replace(where=None))):
        return batch
    rows, full = batch.rows, regular(Batch(batch.x, batch.target, *_ones(batch)))

    def any_of(trees: Any) -> Any:
        """Which rows hold a True in any of the trees' leaves."""
        leaves = [np.asarray(leaf).reshape(rows, -1).any(1) for leaf in jax.tree.leaves(trees)]
        return functools.reduce(np.logical_or, leaves)

    def lost(target: Any, weights: Any, where: Any) -> Any:
        return np.where(where, ~(_finite(target) & _finite(weights)), False)

    entries = jax.tree.map(lost, full.target, full.weights, full.where)
    used, lost_rows = any_of(full.where), any_of(jax.tree.map(lambda leaf: ~_finite(leaf), batch.x))
    bad = {"x": used & lost_rows, "target or weights": any_of(entries)}
    either = bad["x"] | bad["target or weights"]
    if either.any() and nonfinite == "error":
        places = first + np.flatnonzero(either)
        shown = ", ".join(map(str, places[:5])) + (", …" if len(places) > 5 else "")
        parts = " and ".join(f"{part} ({int(rows_.sum())} rows)" for part, rows_ in bad.items() if rows_.any())
        raise ValueError(
            f"fit: {name} holds NaN or infinity in {parts}, rows {shown}: repair or mask them, or pass nonfinite='mask'"
        )

    def keep(target: Any, entries: np.ndarray, where: Any) -> Any:
        good = ~bad["x"].reshape((rows,) + (1,) * (np.ndim(target) - 1)) & ~entries
        return np.broadcast_to(where, np.shape(target)) & good

    place = np.where(lost_rows & (bad["x"] | ~used), np.argmin(lost_rows), np.arange(rows))
    x = jax.tree.map(lambda leaf: np.asarray(leaf)[place], batch.x)
    return batch._replace(x=x, where=jax.tree.map(keep, full.target, entries, full.where))


def _ones(batch: Batch) -> tuple[Any, Any]:
    """The weights and the mask, and for those that are not given what they mean then."""
    weights = jax.tree.map(lambda _: 1.0, batch.target) if batch.weights is None else batch.weights
    where = jax.tree.map(lambda _: True, batch.target) if batch.where is None else batch.where
    return weights, where


def _finite(leaf: Any) -> Any:
    values = np.asarray(leaf)
    return np.isfinite(values) if jnp.issubdtype(values.dtype, jnp.inexact) else np.ones(values.shape, bool)


def _is_finite(leaf: Any) -> bool:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return True
    return bool(_all_finite(leaf)) if isinstance(leaf, jax.Array) else bool(np.isfinite(leaf).all())


@jax.jit
def _all_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def mask_rows(batch: Batch, present: Any) -> Batch:
    """The batch with the rows masked that are not present."""

    def mask(target: Any, where: Any = None) -> Any:
        rows = present.reshape(present.shape + (1,) * (target.ndim - 1))
        return rows if where is None else where & rows

    masked = (batch.target,) if batch.where is None else (batch.target, batch.where)
    return batch._replace(where=jax.tree.map(mask, *masked))


def pad(batch: Batch, rows: int) -> Batch:
    """The batch with masked copies of its first row at the end, so that it has `rows` rows."""
    have = batch.rows
    if have == rows:
        return batch

    def extend(leaf: Any) -> Any:
        return np.concatenate([leaf, np.broadcast_to(leaf[:1], (rows - have, *leaf.shape[1:]))])

    return mask_rows(batch.map_rows(extend), np.arange(rows) < have)
