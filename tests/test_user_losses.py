"""Losses written by a user: on numbers, on vectors, and on predictions that are pytrees."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import close

import jaxloss
from jaxloss import loss_sum, pointwise, slope

RANDOM = np.random.default_rng(0)
PRED, TARGET = (RANDOM.standard_normal((5, 4, 3)).astype(np.float32) for _ in range(2))
WHERE = RANDOM.uniform(size=(5, 4)) < 0.7


@pointwise(event_ndim=1)
def distance(pred, target, *, power=2.0):
    """Σ|r|^power over a vector."""
    return (jnp.abs(pred - target) ** power).sum()


class Spread(NamedTuple):
    loc: jax.Array
    scale: jax.Array


@pointwise
def spread_loss(pred, target):
    return ((target - pred.loc) / pred.scale) ** 2 + 2 * jnp.log(pred.scale)


SPREAD = Spread(jnp.asarray(PRED[..., 0]), jnp.asarray(np.exp(PRED[..., 1])))


def test_a_loss_on_vectors_reduces_over_the_axes_of_its_losses():
    want = (np.abs(PRED - TARGET) ** 2).sum(-1)
    close(distance(PRED, TARGET, reduction="none"), want)
    close(distance(PRED, TARGET), want.mean())
    close(distance(PRED, TARGET, axis=-1), want.mean(-1))
    close(distance(PRED, TARGET, where=WHERE), want[WHERE].mean())
    weights = np.float32([[0.5, 1, 2, 3]])
    close(distance(PRED, TARGET, weights=weights, reduction="weighted_mean", axis=1), (want * weights).sum(1) / 6.5)
    powers = np.float32([1, 2, 3, 4])
    close(
        distance(PRED, TARGET, power=powers, reduction="none"), (np.abs(PRED - TARGET) ** powers[:, None]).sum(-1), 1e-5
    )
    bound = jax.tree_util.Partial(distance, power=2.0)
    for loss in (distance, bound):
        part = loss_sum(loss, PRED, TARGET, where=WHERE)
        close((part.total, part.weight), (want[WHERE].sum(), np.float64(WHERE.sum())))
    assert float(loss_sum(bound, PRED, TARGET, weights=weights, reduction="weighted_mean").weight) == 5 * 6.5


def test_a_loss_on_vectors_has_a_slope_of_the_prediction_and_no_curvature():
    close(slope(distance)(PRED, TARGET), 2 * (PRED - TARGET))
    close(jax.grad(distance)(PRED, TARGET), 2 * (PRED - TARGET) / 20)
    with pytest.raises(TypeError, match="compares vectors"):
        jaxloss.curvature(distance)
    with pytest.raises(jaxloss.ShapeError, match="rank 1 or more"):
        distance(1.0, 1.0)
    with pytest.raises(jaxloss.ShapeError, match="weights"):
        distance(PRED, TARGET, weights=np.ones((5, 4, 3)))


def test_masked_vectors_are_absent():
    spoiled = [np.where(WHERE[..., None], array, np.nan) for array in (PRED, TARGET)]
    close(distance(*spoiled, where=WHERE), distance(PRED[WHERE], TARGET[WHERE]))
    gradient = jax.grad(distance)(*spoiled, where=WHERE)
    close(gradient[WHERE], jax.grad(distance)(PRED[WHERE], TARGET[WHERE]))
    assert not np.any(gradient[~WHERE])


def test_a_prediction_may_be_a_pytree():
    target = TARGET[..., 0]
    want = ((target - SPREAD.loc) / SPREAD.scale) ** 2 + 2 * np.log(SPREAD.scale)
    close(spread_loss(SPREAD, target, reduction="none"), want)
    close(spread_loss(SPREAD, target, where=WHERE), want[WHERE].mean())
    slopes = slope(spread_loss)(SPREAD, target)
    assert isinstance(slopes, Spread)
    close(slopes.loc, -2 * (target - SPREAD.loc) / SPREAD.scale**2, rtol=1e-5)
    gradient = jax.grad(spread_loss)(SPREAD, target, reduction="sum")
    close(gradient, slopes)
    spoiled = jax.tree.map(lambda leaf: jnp.where(WHERE, leaf, jnp.nan), SPREAD)
    close(spread_loss(spoiled, target, where=WHERE), want[WHERE].mean())
    hidden = jax.grad(spread_loss)(spoiled, target, where=WHERE)
    assert not any(np.any(leaf[~WHERE]) for leaf in hidden)


def test_every_leaf_of_a_pytree_has_the_shape_of_the_target():
    with pytest.raises(jaxloss.ShapeError, match=r"pred\.scale has shape"):
        spread_loss(Spread(jnp.ones(3), jnp.ones((3, 1))), jnp.ones(3))
    with pytest.raises(TypeError, match="int32"):
        spread_loss(Spread(jnp.ones(3), jnp.ones(3, jnp.int32)), jnp.ones(3))


def test_closed_forms_given_by_the_user_are_what_is_differentiated():
    """Told apart from automatic derivatives by being wrong on purpose."""

    @pointwise(slope=lambda pred, target: 10 * (pred - target), curvature=lambda pred, target: 0 * pred + 7)
    def square(pred, target):
        return (pred - target) ** 2

    pred, target = jnp.float32([1.0, 3.0]), jnp.zeros(2)
    close(jax.grad(square)(pred, target, reduction="sum"), 10 * pred)
    close(jax.jacfwd(square)(pred, target, reduction="sum"), 10 * pred)
    close(jax.hessian(square)(pred, target, reduction="sum"), 7 * jnp.eye(2))
    close(jax.grad(square, 1)(pred, target, reduction="sum"), -2 * pred)
    close(jaxloss.curvature(square)(pred, target), jnp.full(2, 7.0))


def test_needed_settings_are_bound_or_passed():
    @pointwise
    def powered(pred, target, *, power):
        return (pred - target) ** power

    close(powered(jnp.ones(3) * 2, jnp.zeros(3), power=3.0), jnp.float32(8))
    close(jax.tree_util.Partial(powered, power=3.0)(jnp.ones(3) * 2, jnp.zeros(3)), jnp.float32(8))
    with pytest.raises(TypeError, match="needs the setting 'power'"):
        powered(jnp.ones(3), jnp.zeros(3))
