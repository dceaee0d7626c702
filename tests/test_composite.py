"""Losses of several heads, and targets with holes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from support import refused

import jaxloss
from jaxloss import composite, huber, loss_sum, mae, mse, observed
from jaxloss.train import Batch, TrainState, fit, make_step, supervised

HEADS = {"a": mse, "b": (Partial(huber, delta=0.5), mae)}
WEIGHTS = {"a": 2.0, "b": (0.5, 1.0)}


def parts(seed=0, rows=6):
    rng = np.random.default_rng(seed)
    empty = {"a": np.empty(rows), "b": (np.empty((rows, 3)), np.empty((rows, 2)))}
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), empty)


PRED, TARGET = parts(0), parts(1)
WHERE = {"a": jnp.arange(6) != 2, "b": (None, jnp.arange(12).reshape(6, 2) % 3 != 0)}


def by_hand(pred, target, where=None, reduction="mean"):
    where = where or {"a": None, "b": (None, None)}
    return (
        2 * mse(pred["a"], target["a"], where=where["a"], reduction=reduction)
        + 0.5 * huber(pred["b"][0], target["b"][0], delta=0.5, where=where["b"][0], reduction=reduction)
        + mae(pred["b"][1], target["b"][1], where=where["b"][1], reduction=reduction)
    )


@pytest.mark.parametrize("where", [None, WHERE])
@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "sum"])
def test_value_and_gradient_are_those_of_the_parts(where, reduction):
    loss = composite(HEADS, WEIGHTS)
    got = jax.value_and_grad(loss)(PRED, TARGET, where=where, reduction=reduction)
    want = jax.value_and_grad(by_hand)(PRED, TARGET, where, reduction)
    for left, right in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_each_head_is_reported_and_sums_to_the_total():
    loss = composite(HEADS, WEIGHTS)
    summed = loss_sum(loss, PRED, TARGET, where=WHERE)
    assert jax.tree.structure(summed.each) == jax.tree.structure(PRED)
    np.testing.assert_allclose(summed.mean, loss(PRED, TARGET, where=WHERE), rtol=1e-6)
    np.testing.assert_allclose(summed.each["b"][1], mae(PRED["b"][1], TARGET["b"][1], where=WHERE["b"][1]), rtol=1e-6)


def test_elementwise_losses_keep_the_structure():
    losses = composite(HEADS)(PRED, TARGET, reduction="none")
    assert jax.tree.map(jnp.shape, losses) == jax.tree.map(jnp.shape, PRED)


def test_sums_of_parts_with_different_masks_add_exactly():
    loss = composite(HEADS, WEIGHTS)

    def rows(tree, start, stop):
        return jax.tree.map(lambda leaf: leaf[start:stop], tree)

    cuts = ((0, 2), (2, 6))
    pieces = [loss_sum(loss, rows(PRED, *cut), rows(TARGET, *cut), where=rows(WHERE, *cut)) for cut in cuts]
    np.testing.assert_allclose(sum(pieces).mean, loss(PRED, TARGET, where=WHERE), rtol=1e-6)


def heads_of(params, x):
    wide = jnp.matmul(x, params, precision="highest")
    return {"a": wide[:, 0], "b": (wide[:, 1:4], wide[:, 4:])}


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_training_step_divides_each_head_by_its_own_count(micro_batches):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4)), jnp.float32)
    params, optimizer = jnp.zeros((4, 6)), optax.sgd(1.0)
    step = make_step(supervised(heads_of, composite(HEADS, WEIGHTS)), optimizer, micro_batches=micro_batches)
    where = {"a": WHERE["a"], "b": (jnp.ones((6, 3), bool), WHERE["b"][1])}
    state, metrics = jax.jit(step)(TrainState.create(params, optimizer), Batch(x, TARGET, None, where))
    value, gradient = jax.value_and_grad(lambda params: by_hand(heads_of(params, x), TARGET, where))(params)
    np.testing.assert_allclose(state.params, -gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"].mean, value, rtol=1e-5)


def test_fit_pads_every_head():
    x = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
    settings = {"loss": composite(HEADS, WEIGHTS), "optimizer": optax.sgd(0.1), "epochs": 1}
    data = Batch(x, TARGET, None, WHERE)
    result = fit(heads_of, jnp.zeros((4, 6)), data, batch_size=4, validation=data, **settings)
    pred = heads_of(result.params, x)
    np.testing.assert_allclose(result.history["validation_loss"][0], by_hand(pred, TARGET, WHERE), rtol=1e-5)


def test_weights_and_settings_are_leaves():
    loss = composite({"a": mse, "b": Partial(huber, delta=0.5)}, {"a": 1.0, "b": 1.0})
    pred, target = ({"a": tree["a"], "b": tree["b"][0]} for tree in (PRED, TARGET))
    gradient = jax.grad(lambda loss: loss(pred, target), allow_int=True)(jax.tree.map(jnp.asarray, loss))
    leaves = jax.tree.leaves(gradient)
    assert len(leaves) == 3
    assert all(float(leaf) != 0 for leaf in leaves)


def test_nan_as_absent():
    target = {"a": TARGET["a"].at[1].set(jnp.nan), "b": TARGET["b"]}
    loss = composite(HEADS, WEIGHTS)
    value, gradient = jax.value_and_grad(loss)(PRED, target, where=observed(target))
    want = by_hand(PRED, TARGET, {"a": jnp.arange(6) != 1, "b": (None, None)})
    np.testing.assert_allclose(value, want, rtol=1e-6)
    assert float(gradient["a"][1]) == 0
    assert bool(observed(jnp.arange(3)).all())


REFUSED = {
    "structure of pred": (lambda: composite(HEADS)(PRED["a"], TARGET), ValueError, "structure"),
    "structure of weights": (lambda: composite(HEADS, {"a": 1.0}), ValueError, "weights"),
    "negative weight": (lambda: composite({"a": mse}, {"a": -1.0}), ValueError, "-1.0"),
    "bad setting": (lambda: composite({"a": Partial(huber, delta=-1)}), ValueError, "delta"),
    "not a loss": (lambda: composite({"a": "mse"}), TypeError, "mse"),
    "nothing": (lambda: composite({}), ValueError, "at least one"),
    "axis": (lambda: composite(HEADS)(PRED, TARGET, axis=0), ValueError, "axis"),
    "shape of a head": (
        lambda: composite({"a": mse})({"a": jnp.ones((3, 1))}, {"a": jnp.ones(3)}),
        jaxloss.ShapeError,
        "['a']",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case):
    call, kind, word = REFUSED[case]
    refused(kind, [word], call)
