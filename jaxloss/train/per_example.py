"""Each row's own gradient: for differentially private training, and to find the rows that dominate a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.reduce import divide
from jaxloss.train.batch import Batch, regular
from jaxloss.train.checks import check_at_least_one, check_params
from jaxloss.train.objective import Objective, supervised

__all__ = ["gradient_norms", "per_example_grads"]


def per_example_grads(
    apply: Callable, loss: Callable, *, reduction: str = "mean", chunk: int | None = None
) -> Callable[[Any, Batch], Any]:
    """A pure `(params, batch) -> gradients`: a tree like `params`, with a leading axis of the batch's rows.

    The gradient of row i is (rows / W)·∂Σⱼwᵢⱼℓᵢⱼ, with W the weight of the whole batch, so the mean over rows is the
    gradient of the batch's loss, whatever is weighted and masked; a row that is masked has gradient 0, whatever it
    holds. This is what `optax.contrib.differentially_private_aggregate` takes.

    apply: `apply(params, x) -> pred` of a model without state: under batch statistics no row has a gradient of its own.
    reduction: "mean" or "weighted_mean", as in `supervised`.
    chunk: rows whose gradients are computed at once, a bound on the memory in between; None takes all.

    >>> from jaxloss import mse
    >>> grads = per_example_grads(lambda slope, x: slope * x, mse)
    >>> grads(jnp.ones(()), Batch(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0]))).tolist()
    [2.0, 8.0]
    """
    return _each_row(supervised(apply, loss, reduction=reduction), lambda grads: grads, chunk)


def gradient_norms(
    apply: Callable, loss: Callable, *, reduction: str = "mean", chunk: int | None = None
) -> Callable[[Any, Batch], jax.Array]:
    """A pure `(params, batch) -> norms`, of shape (rows,) and float32: the length of each row's gradient.

    The length is over all parameters together, and free of overflow. The rows of the largest dominate a step. Arguments
    as in `per_example_grads`; with `chunk` no more than that many gradients are ever held.

    >>> from jaxloss import mse
    >>> norms = gradient_norms(lambda params, x: x @ params, mse)
    >>> norms(jnp.zeros(2), Batch(jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([1.0, 1.0]))).tolist()
    [10.0, 2.0]
    """
    return _each_row(supervised(apply, loss, reduction=reduction), _norm, chunk)


def _each_row(objective: Objective, finish: Callable[[Any], Any], chunk: int | None) -> Callable[[Any, Batch], Any]:
    """What `finish` makes of each row's gradient."""
    if chunk is not None:
        check_at_least_one("per-example gradients", "chunk", chunk)

    def every(function: Callable, rows: Batch) -> Any:
        return jax.vmap(function)(rows) if chunk is None else lax.map(function, rows, batch_size=chunk)

    def gradients(params: Any, batch: Batch) -> Any:
        check_params("per-example gradients", params)
        count = batch.rows
        rows = regular(batch).map_rows(lambda leaf: jnp.asarray(leaf)[:, None])  # batches of one row each
        weights = every(lambda row: objective(params, row).weight, rows)
        scales = jax.tree.map(lambda weight: divide(jnp.asarray(count, weight.dtype), weight.sum()), weights)

        def share(params: Any, row: Batch) -> jax.Array:
            return sum(jax.tree.leaves(jax.tree.map(jnp.multiply, objective(params, row).total, scales)), jnp.zeros(()))

        def gradient(row: Batch) -> Any:
            """Nothing of a masked row, though what it holds may be NaN, which a model passes on to its gradient."""
            grads = jax.grad(share)(params, row)
            if row.where is None:
                return grads
            present = functools.reduce(jnp.logical_or, [jnp.any(mask) for mask in jax.tree.leaves(row.where)])
            return jax.tree.map(lambda leaf: jnp.where(present, leaf, jnp.zeros_like(leaf)), grads)

        return every(lambda row: finish(gradient(row)), rows)

    return gradients


def _norm(grads: Any) -> jax.Array:
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(grads) if leaf.size]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return unit * jnp.sqrt(sum(jnp.sum(jnp.square(leaf / unit)) for leaf in leaves))
