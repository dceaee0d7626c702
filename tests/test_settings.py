"""Settings: how they are shown, shaped, bound, differentiated, and that a new value costs no compilation."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import each_kind_of_loss, each_loss, each_short_loss
from support import close, sample, settings_tree

import jaxloss

PRED, TARGET = jnp.ones((4, 3)), jnp.zeros((4, 3))


@each_loss
def test_the_signature_shows_settings_and_the_contract(row):
    parameters = inspect.signature(row.loss).parameters
    assert list(parameters) == ["pred", "target", *row.usual, "weights", "where", "axis", "reduction"]
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name not in ("pred", "target"))
    assert parameters["reduction"].default == "mean"
    assert row.loss.__doc__
    assert callable(row.loss)


def settings_shapes(shape):
    return [(), shape[-1:], (shape[0], 1), (1, shape[1]), (1, 1), shape]


@pytest.mark.usefixtures("eager")
@each_short_loss
def test_settings_broadcast_as_scalar_vector_or_full_rank(row):
    pred, target = sample(row, (4, 3))
    random = np.random.default_rng(1)
    for shape in settings_shapes(pred.shape) if row.usual else ():
        settings = {name: np.float32(value * random.uniform(0.6, 1, shape)) for name, value in row.usual.items()}
        got = row.loss(pred, target, reduction="none", **settings)
        full = {name: np.broadcast_to(value, pred.shape) for name, value in settings.items()}
        want = [
            [
                row.loss(pred[i, j], target[i, j], **{name: value[i, j] for name, value in full.items()})
                for j in range(3)
            ]
            for i in range(4)
        ]
        close(got, jnp.array(want), rtol=1e-6, atol=0)
        derivative = jaxloss.slope(row.loss)(pred, target, **settings)
        close(derivative, jaxloss.slope(row.loss)(pred, target, **full), atol=0)


@pytest.mark.usefixtures("eager")
@each_loss
def test_bound_settings_are_pytree_leaves(row):
    pred, target = sample(row)
    bound = jax.tree_util.Partial(row.loss, **settings_tree(row))
    assert len(jax.tree.leaves(bound)) == len(row.usual)
    close(bound(pred, target), row.loss(pred, target, **row.usual))
    close(jaxloss.slope(bound)(pred, target), jaxloss.slope(row.loss)(pred, target, **row.usual))
    gradient = jax.grad(lambda loss: loss(pred, target))(bound)
    want = jax.grad(lambda settings: row.loss(pred, target, **settings))(settings_tree(row))
    close(dict(gradient.keywords), want)


def test_partials_nest_and_the_outer_setting_wins():
    inner = functools.partial(jaxloss.huber, delta=2.0)
    outer = jax.tree_util.Partial(inner, delta=0.5)
    close(outer(PRED, TARGET), jaxloss.huber(PRED, TARGET, delta=0.5))
    close(jaxloss.slope(outer)(PRED, TARGET), jnp.full((4, 3), 0.5))
    assert jaxloss.traits(outer) is jaxloss.traits(jaxloss.huber)


@each_kind_of_loss
def test_a_new_setting_does_not_trace_again(row):
    traces = []

    @functools.wraps(row.loss.__wrapped__)
    def counted(pred, target, **settings):
        traces.append(1)
        return row.loss.__wrapped__(pred, target, **settings)

    loss = jaxloss.pointwise(counted)
    pred, target = sample(row)
    kinds = (float, np.float32, np.float64, jnp.float32, lambda value: np.array(value))
    for factor in (1.0, 0.9, 0.8):
        for kind in kinds:
            loss(pred, target, **{name: kind(value * factor) for name, value in row.usual.items()})
    loss(pred + 1, np.asarray(target), **row.usual)
    assert len(traces) == 1
