"""Reductions against loops over entries; masks against deletion; LossSum."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import each_loss, each_short_loss
from support import close, hvp, sample, settings_tree

import jaxloss
from jaxloss import LossSum, loss_sum, mse

SHAPE = (4, 3)
RANDOM = np.random.default_rng(0)
PRED, TARGET = (RANDOM.standard_normal(SHAPE).astype(np.float32) for _ in range(2))
WEIGHTS = {
    "none": None,
    "scalar": 0.7,
    "column": np.float32(RANDOM.uniform(0.1, 2, (4, 1))),
    "row": np.float32(RANDOM.uniform(0.1, 2, (1, 3))),
    "full": np.float32(RANDOM.uniform(0, 2, SHAPE)),
    "zero": 0.0,
}
MASKS = {
    "none": None,
    "scalar": True,
    "column": np.array([True, False, True, True])[:, None],
    "full": RANDOM.uniform(size=SHAPE) < 0.6,
    "nothing": np.zeros(SHAPE, bool),
    "one column gone": np.array([True, False, True])[None].repeat(4, 0),
}
REDUCTIONS = [
    (reduction, axis) for reduction in ("mean", "weighted_mean", "sum") for axis in (None, 0, -1, (0, 1), ())
] + [("none", None)]


def reduce_by_loops(losses, weights, where, axis, reduction):
    """The reductions as the contract words them; (totals, what to divide them by)."""
    weights = np.broadcast_to(1.0 if weights is None else weights, losses.shape)
    where = np.broadcast_to(True if where is None else where, losses.shape)
    axes = range(losses.ndim) if axis is None else np.atleast_1d(np.array(axis, int)) % losses.ndim
    axes = () if reduction == "none" else tuple(axes)
    kept = [1 if number in axes else size for number, size in enumerate(losses.shape)]
    total, count, weight = np.zeros(kept), np.zeros(kept), np.zeros(kept)
    for index in np.ndindex(losses.shape):
        if where[index]:
            place = tuple(0 if number in axes else i for number, i in enumerate(index))
            total[place] += float(weights[index]) * float(losses[index])
            count[place] += 1
            weight[place] += float(weights[index])
    divisor = {"mean": count, "weighted_mean": weight}.get(reduction, np.ones(kept))
    return total.squeeze(axes), divisor.squeeze(axes)


@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("weighted", WEIGHTS)
def test_reductions_match_loops(weighted, masked):
    weights, where = WEIGHTS[weighted], MASKS[masked]
    losses = (PRED.astype(np.float64) - TARGET) ** 2
    with jax.disable_jit():
        for reduction, axis in REDUCTIONS:
            total, divisor = reduce_by_loops(losses, weights, where, axis, reduction)
            want = np.where(divisor == 0, 0, total / np.where(divisor == 0, 1, divisor))
            call = {"weights": weights, "where": where, "axis": axis, "reduction": reduction}
            close(mse(PRED, TARGET, **call), want)
            if "mean" in reduction:
                close(loss_sum(mse, PRED, TARGET, **call), LossSum(total, divisor))


@pytest.mark.usefixtures("eager")
@each_loss
def test_every_loss_reduces_its_elementwise_losses(row):
    pred, target = sample(row, SHAPE)
    losses = np.asarray(row.loss(pred, target, reduction="none", **row.usual), np.float64)
    weights, where = WEIGHTS["column"], MASKS["full"]
    for reduction, axis in (("mean", None), ("weighted_mean", 0), ("sum", -1), ("none", None)):
        total, divisor = reduce_by_loops(losses, weights, where, axis, reduction)
        call = {"weights": weights, "where": where, "axis": axis, "reduction": reduction}
        close(row.loss(pred, target, **call, **row.usual), total / divisor if reduction != "none" else total)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_over_nothing_a_loss_is_zero(shape):
    empty = jnp.zeros(shape)
    for reduction in ("mean", "weighted_mean", "sum"):
        assert float(mse(empty, empty, weights=jnp.ones(shape), reduction=reduction)) == 0.0
    assert mse(empty, empty, reduction="none").shape == shape
    assert loss_sum(mse, empty, empty) == LossSum(0.0, 0.0)
    assert jax.grad(mse)(empty, empty).shape == shape


@pytest.mark.usefixtures("eager")
@each_loss
def test_all_masked_is_zero_with_zero_gradient_and_the_weight_tells(row):
    pred = jnp.full(SHAPE, jnp.nan)
    call = {"where": jnp.zeros(SHAPE, bool), **row.usual}
    value, gradient = jax.value_and_grad(row.loss)(pred, pred, **call)
    assert float(value) == 0.0
    assert not np.any(gradient)
    part = loss_sum(row.loss, pred, pred, **call)
    assert (float(part.total), float(part.weight), float(part.mean)) == (0.0, 0.0, 0.0)


@pytest.mark.usefixtures("eager")
@each_short_loss
def test_masked_entries_are_absent(row):
    """Value, gradient in everything, and Hessian-vector product are those of the unmasked entries alone."""
    pred, target = sample(row, (6,))
    direction, weights = (jnp.linspace(*ends, 6, dtype=jnp.float32) for ends in ((-1, 1), (0.5, 2)))
    settings = settings_tree(row, (6,))
    keep = np.array([True, False, True, False, False, True])
    poison = jnp.float32([1, jnp.nan, 1, jnp.inf, -jnp.inf, 1])

    def spoil(array):
        return jnp.where(keep, array, poison)

    def everything(pred, target, weights, settings, direction, **call):
        def value(pred, target, weights, settings):
            return row.loss(pred, target, weights=weights, reduction="weighted_mean", **call, **settings)

        losses = row.loss(pred, target, weights=weights, reduction="none", **call, **settings)
        gradients = jax.grad(value, (0, 1, 2, 3))(pred, target, weights, settings)
        product = hvp(lambda p: value(p, target, weights, settings), pred, direction)
        return value(pred, target, weights, settings), (losses, gradients, product)

    data = (pred, target, weights, settings)
    value, arrays = everything(*jax.tree.map(spoil, data), direction, where=keep)
    want, rest = everything(*jax.tree.map(lambda array: array[keep], data), direction[keep])
    close(value, want)
    close(jax.tree.map(lambda array: array[keep], arrays), rest)
    for array in jax.tree.leaves(arrays):
        assert not np.any(array[~keep])


def test_a_mask_of_rows_hides_poisoned_scalar_weight_rows():
    where = MASKS["column"]
    weights = np.where(where, 1.5, np.nan)
    for reduction in ("mean", "weighted_mean", "sum"):
        got = mse(PRED, TARGET, weights=weights, where=where, reduction=reduction)
        kept = where[:, 0]
        close(got, mse(PRED[kept], TARGET[kept], weights=1.5, reduction=reduction))


@pytest.mark.usefixtures("eager")
@each_short_loss
def test_nan_that_is_not_masked_is_seen(row):
    pred, target = sample(row, (4,))
    for spoiled in ((pred.at[1].set(jnp.nan), target), (pred, target.at[1].set(jnp.nan))):
        value, gradient = jax.value_and_grad(row.loss)(*spoiled, **row.usual)
        assert math.isnan(value)
        assert np.isnan(gradient).tolist() == [False, True, False, False]


def test_counts_past_the_integers_of_float32():
    rows, columns = 2**13 + 1, 2**12
    where = jnp.ones((rows, columns), bool).at[0, 0].set(False)
    empty = jnp.zeros((rows, columns), jnp.float32)
    got = jax.jit(functools.partial(loss_sum, mse))(empty, empty, where=where)
    exact = rows * columns - 1  # needs 26 bits
    assert float(got.weight) == float(np.float32(exact))
    by_row = loss_sum(mse, empty, empty, where=where, axis=1).weight
    assert by_row[:2].tolist() == [columns - 1, columns]


def test_loss_sums_add_and_divide_last():
    weights, where = WEIGHTS["full"], MASKS["full"]
    for reduction in ("mean", "weighted_mean"):
        parts = [
            loss_sum(mse, PRED[s], TARGET[s], weights=weights[s], where=where[s], reduction=reduction)
            for s in (slice(0, 1), slice(1, 4))
        ]
        whole = mse(PRED, TARGET, weights=weights, where=where, reduction=reduction)
        close((parts[0] + parts[1]).mean, whole)
        close(sum(parts).mean, whole)
        close(sum([*parts, LossSum(0.0, 0.0)]).mean, whole)
    for stranger in (1, (1.0, 2.0), None):
        with pytest.raises(TypeError):
            parts[0] + stranger
    with pytest.raises(TypeError):
        1 + parts[0]
    assert len(jax.tree.leaves(parts[0])) == 2


def test_loss_sum_reads_bound_settings_and_any_callable():
    bound = jax.tree_util.Partial(jaxloss.huber, delta=0.3)
    close(loss_sum(bound, PRED, TARGET).mean, jaxloss.huber(PRED, TARGET, delta=0.3))
    close(loss_sum(jaxloss.huber, PRED, TARGET, delta=0.3).mean, jaxloss.huber(PRED, TARGET, delta=0.3))

    def doubled(pred, target, *, reduction="mean", **rest):
        return 2 * mse(pred, target, reduction=reduction, **rest)

    close(loss_sum(doubled, PRED, TARGET).mean, 2 * mse(PRED, TARGET))
