"""Models with batch statistics: a ragged tail counts its own rows, each once, as in a loop written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import close, order_of, orders_of

from jaxloss import mse
from jaxloss.train import Batch, fit, fit_many, functional
from jaxloss.train.order import Layout

ROWS, SIZE, RATE = 40, 16, 0.05


class Net(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.line = nnx.BatchNorm(3, momentum=0.3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.line(self.norm(x))


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 3)).astype(np.float32)
    x[0] = 100.0  # the row that padding would repeat
    return x, np.sin(x[:, :1])


def by_hand(orders, seed=0):
    """Flax alone: plain gradient descent over the rows, the last batch with the rows that are left."""
    x, target = data()
    model = Net(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)
    for order in orders:
        for rows in np.split(order, range(SIZE, ROWS, SIZE)):
            optimizer.update(model, nnx.grad(lambda model, rows=rows: mse(model(x[rows]), target[rows]))(model))
    _, params, statistics = nnx.split(model, nnx.Param, ...)
    return nnx.to_pure_dict(params), statistics


def same(result, want, rtol=1e-6):
    params, statistics = want
    close((result.params, result.state.model_state), (params, statistics), rtol=rtol, atol=1e-6)


SETTINGS = {"loss": mse, "optimizer": optax.sgd(RATE), "epochs": 3}


def test_arrays():
    apply, params, statistics = functional(Net(nnx.Rngs(0)))
    result = fit(apply, params, data(), model_state=statistics, batch_size=SIZE, **SETTINGS)
    same(result, by_hand(orders_of(0, 3, ROWS)))
    assert result.state.step == 9
    assert len(result.history["loss"]) == 3


def test_streams_and_files(tmp_path):
    apply, params, statistics = functional(Net(nnx.Rngs(0)))
    x, target = data()
    parts = [(x[part], target[part]) for part in np.split(np.arange(ROWS), range(SIZE, ROWS, SIZE))]
    result = fit(apply, params, parts, model_state=statistics, **SETTINGS)
    same(result, by_hand([np.arange(ROWS)] * 3))
    for name, values in (("x", x), ("target", target)):
        np.save(tmp_path / f"{name}.npy", values)
    mapped = tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "target"))
    result = fit(apply, params, mapped, model_state=statistics, batch_size=SIZE, **SETTINGS)
    same(result, by_hand(orders_of(0, 3, ROWS)), 1e-5)


def test_many():
    applies, params, statistics = zip(*(functional(Net(nnx.Rngs(seed))) for seed in (0, 1)), strict=True)
    params, statistics = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (params, statistics))
    shared = {"model_state": statistics, "batch_size": SIZE, "seeds": [5, 6], **SETTINGS}
    result = fit_many(applies[0], params, data(), **shared)
    chosen = np.tile(np.arange(ROWS), (2, 1))
    of_rows = fit_many(applies[0], params, data(), rows=chosen, **shared)
    for member in (0, 1):
        want, _ = by_hand(orders_of(5 + member, 3, ROWS), seed=member)
        for one in (result, of_rows):
            close(jax.tree.map(lambda leaf, member=member: leaf[member], one.params), want, rtol=1e-5, atol=1e-6)
    chosen[0, -1] = -1
    with pytest.raises(ValueError, match=r"equally many rows, got \[39, 40\]"):
        fit_many(applies[0], params, data(), rows=chosen, **shared)


def test_what_would_leave_places_empty_is_refused_in_one_line():
    apply, params, statistics = functional(Net(nnx.Rngs(0)))
    with pytest.raises(ValueError, match="does not divide the batch of 8 rows"):
        fit(apply, params, data(), model_state=statistics, batch_size=(16, 1), **SETTINGS)
    for rows, size in ((40, 16), (41, 41), (42, 6)):
        with pytest.raises(ValueError, match="multiple of") as told:
            Layout.of(rows, size, 4, pads=False)
        assert "\n" not in str(told.value)
    assert Layout.of(48, 16, 4, pads=False).tail == 0
    assert Layout.of(40, 40, 4, pads=False).steps == 1


def test_the_mean_over_the_epoch_counts_rows():
    apply, params, statistics = functional(Net(nnx.Rngs(0)))
    x, target = data()
    still = SETTINGS | {"optimizer": optax.sgd(0.0), "epochs": 1}
    result = fit(apply, params, Batch(x, target), model_state=statistics, batch_size=SIZE, **still)
    total = 0.0
    for rows in np.split(order_of(0, 0, ROWS), range(SIZE, ROWS, SIZE)):
        pred, _ = apply(params, x[rows], model_state=statistics, key=jax.random.key(0), train=True)
        total += float(jnp.sum((pred - target[rows]) ** 2))
    np.testing.assert_allclose(result.history["loss"][0], total / ROWS, rtol=1e-5)
