"""Each row's own gradient: against one at a time, under weights and masks, in chunks, and for private training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from support import close, refused

import jaxloss
from jaxloss import huber, mse
from jaxloss.train import Batch, gradient_norms, make_step, per_example_grads, supervised

ROWS, FEATURES, OUTPUTS = 7, 3, 2


def linear(params, x):
    return jnp.matmul(x, params["weight"], precision="highest") + params["bias"]


def problem(seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(ROWS, FEATURES)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(ROWS, OUTPUTS)), jnp.float32)
    params = {"weight": jnp.asarray(rng.normal(size=(FEATURES, OUTPUTS)), jnp.float32), "bias": jnp.ones((1, OUTPUTS))}
    return params, Batch(x, target)


def masked():
    params, batch = problem()
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.uniform(0.5, 2, (ROWS, 1)), jnp.float32)
    where = jnp.asarray(rng.random((ROWS, OUTPUTS)) < 0.6).at[2].set(False)
    return params, Batch(batch.x, jnp.where(where, batch.target, jnp.nan), weights, where)


def batch_gradient(params, batch, loss, reduction="mean"):
    return jax.grad(lambda params: supervised(linear, loss, reduction=reduction)(params, batch).mean)(params)


def test_of_the_mean_squared_error_is_the_closed_form():
    params, batch = problem()
    grads = per_example_grads(linear, mse)(params, batch)
    residual = np.asarray(linear(params, batch.x) - batch.target)
    want = 2 / OUTPUTS * np.einsum("nf,no->nfo", batch.x, residual)
    np.testing.assert_allclose(grads["weight"], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads["bias"], 2 / OUTPUTS * residual[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
def test_the_mean_over_rows_is_the_gradient_of_the_batch(chunk, reduction):
    params, batch = masked()
    loss = Partial(huber, delta=0.7)
    grads = jax.jit(per_example_grads(linear, loss, reduction=reduction, chunk=chunk))(params, batch)
    assert grads["weight"].shape == (ROWS, FEATURES, OUTPUTS)
    want = batch_gradient(params, batch, loss, reduction)
    close(jax.tree.map(lambda leaf: leaf.mean(0), grads), want, rtol=1e-5)
    assert not np.any(grads["weight"][2]), "a masked row has no gradient, though its target is NaN"


def test_a_weight_shared_by_all_rows_and_a_row_alone():
    params, batch = problem()
    shared = batch._replace(weights=jnp.array([[2.0, 0.5]]))
    grads = per_example_grads(linear, mse)(params, shared)
    close(jax.tree.map(lambda leaf: leaf.mean(0), grads), batch_gradient(params, shared, mse), rtol=1e-5)
    one = jax.tree.map(lambda leaf: leaf[:1], batch)
    close(
        jax.tree.map(lambda leaf: leaf[0], per_example_grads(linear, mse)(params, one)),
        batch_gradient(params, one, mse),
    )


def test_nothing_to_learn_from_is_zero():
    params, batch = problem()
    nothing = batch._replace(where=jnp.zeros((1, 1), bool))
    assert not np.any(per_example_grads(linear, mse)(params, nothing)["weight"])
    assert not np.any(gradient_norms(linear, mse)(params, nothing))


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_masked_row_may_hold_anything(bad, chunk):
    params, batch = problem()
    where = (jnp.arange(ROWS) != 4)[:, None]
    weights = jnp.where(where, 0.7, bad)
    good = Batch(batch.x, batch.target, jnp.where(where, 0.7, 1.0), where)
    row = (jnp.arange(ROWS) == 4)[:, None]
    spoiled = Batch(jnp.where(row, bad, batch.x), jnp.where(row, bad, batch.target), weights, where)
    for reduction in ("mean", "weighted_mean"):
        settings = {"reduction": reduction, "chunk": chunk}
        grads = per_example_grads(linear, mse, **settings)(params, spoiled)
        assert not np.any(grads["weight"][4])
        close(grads, per_example_grads(linear, mse, **settings)(params, good), rtol=0, atol=0)
        norms = gradient_norms(linear, mse, **settings)(params, spoiled)
        assert norms[4] == 0
        assert np.isfinite(norms).all()


def test_heads_of_a_composite_loss_are_divided_by_their_own_weights():
    params, batch = problem()
    where = jnp.arange(ROWS)[:, None] % 3 > 0

    def heads(params, x):
        pred = linear(params, x)
        return {"near": pred[:, :1], "far": pred[:, 1:]}

    target = {"near": batch.target[:, :1], "far": batch.target[:, 1:]}
    loss = jaxloss.composite({"near": mse, "far": huber}, {"near": 1.0, "far": 3.0})
    both = Batch(batch.x, target, None, {"near": where, "far": ~where})
    grads = per_example_grads(heads, loss)(params, both)
    want = jax.grad(lambda params: supervised(heads, loss)(params, both).mean)(params)
    close(jax.tree.map(lambda leaf: leaf.mean(0), grads), want, rtol=1e-5)


def test_no_more_gradients_are_held_than_asked_for():
    params, batch = problem()
    held = {
        chunk: str(jax.make_jaxpr(gradient_norms(linear, mse, chunk=chunk))(params, batch)) for chunk in (None, 2, 3)
    }
    for chunk, text in held.items():
        for rows in (2, 3, ROWS):  # the gradients of so many rows by the weight
            present = f"f32[{rows},{FEATURES},{OUTPUTS}]" in text or f"f32[{rows},{OUTPUTS},{FEATURES}]" in text
            assert present == (rows == (chunk or ROWS)), (chunk, rows)


def test_norms_find_the_row_that_dominates():
    params, batch = problem()
    batch = batch._replace(target=batch.target.at[4].add(1e3))
    grads = per_example_grads(linear, mse)(params, batch)
    norms = gradient_norms(linear, mse, chunk=2)(params, batch)
    flat = np.concatenate([np.asarray(leaf, np.float64).reshape(ROWS, -1) for leaf in jax.tree.leaves(grads)], 1)
    np.testing.assert_allclose(norms, np.linalg.norm(flat, axis=1), rtol=1e-5)
    assert int(jnp.argmax(norms)) == 4
    assert norms[4] > 0.9 * norms.sum()


def test_norms_are_float32_and_do_not_overflow():
    params, batch = problem()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    norms = gradient_norms(linear, mse)(half, batch)
    assert norms.dtype == jnp.float32
    np.testing.assert_allclose(norms, gradient_norms(linear, mse)(params, batch), rtol=0.05)
    far = batch._replace(x=1e15 * batch.x)
    grads = per_example_grads(linear, huber)(params, far._replace(target=-1e30 * jnp.ones((ROWS, OUTPUTS))))
    largest = np.max(np.abs(np.asarray(grads["weight"], np.float64)))
    assert largest > 1e13
    enormous = gradient_norms(linear, Partial(huber, delta=1e15))(params, far)
    assert np.all(np.isfinite(enormous))
    assert np.max(enormous) > 1e25


def test_a_private_step_without_noise_and_clipping_is_the_plain_step():
    params, batch = problem()
    private = optax.chain(optax.contrib.differentially_private_aggregate(1e6, 0.0, key=0), optax.sgd(0.1))
    updates, _ = private.update(per_example_grads(linear, mse)(params, batch), private.init(params))
    plain = optax.sgd(0.1)
    state = jaxloss.train.TrainState.create(params, plain)
    close(
        optax.apply_updates(params, updates),
        make_step(supervised(linear, mse), plain)(state, batch)[0].params,
        rtol=1e-5,
    )


def test_a_private_step_clips_each_row_and_adds_noise():
    params, batch = problem()
    batch = batch._replace(target=batch.target.at[4].add(1e3))
    grads = per_example_grads(linear, mse)(params, batch)

    def step(noise):
        private = optax.contrib.differentially_private_aggregate(0.5, noise, key=0)
        return private.update(grads, private.init(params))[0]

    assert float(optax.tree.norm(step(0.0))) <= 0.5 + 1e-6
    assert not np.allclose(step(0.0)["weight"], step(1.0)["weight"])


def test_bad_settings_are_refused_in_one_line():
    for call, kind, word in [
        (lambda: per_example_grads(linear, mse, chunk=0), ValueError, "chunk"),
        (lambda: per_example_grads(linear, mse, chunk=1.5), TypeError, "chunk must be an integer"),
        (lambda: per_example_grads(linear, mse)({"weight": 1}, problem()[1]), TypeError, "has dtype int32"),
        (lambda: gradient_norms(linear, "mse"), TypeError, "mse"),
        (lambda: per_example_grads(linear, Partial(huber, delta=-1.0)), ValueError, "delta"),
    ]:
        refused(kind, [word], call)
