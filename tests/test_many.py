"""`fit_many`: every member as `fit` trains it alone; sweeps, splits, early ends; the ensemble's prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from support import dumping, run_program
from test_fit import FEATURES, ROWS, data, linear

import jaxloss
from jaxloss import Mixture, Normal, ensemble_predict, huber, mse
from jaxloss.train import Batch, average_params, fit, fit_many

RANDOM = np.random.default_rng(0)
MEMBERS = 3


def starts():
    return {"weight": RANDOM.normal(size=(MEMBERS, FEATURES)).astype(np.float32), "bias": np.zeros(MEMBERS, np.float32)}


def averaging_adam(learning_rate):
    return average_params(optax.adam(learning_rate), 0.5)


def member(tree, number):
    return jax.tree.map(lambda leaf: leaf[number], tree)


def same(left, right, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, rtol), left, right)


def test_members_with_their_own_seeds_settings_and_rates():
    start, deltas, rates = starts(), np.float32([0.1, 0.5, 2.0]), np.float32([0.01, 0.05, 0.1])
    shared = {"epochs": 12, "batch_size": 16, "validation": data(seed=5), "patience": 4}
    result = fit_many(
        linear, start, data(), loss=huber, optimizer=averaging_adam,
        settings={"loss": {"delta": deltas}, "optimizer": {"learning_rate": rates}}, seeds=[4, 5, 6], **shared,
    )  # fmt: skip
    for number in range(MEMBERS):
        loss = Partial(huber, delta=deltas[number])
        rate = averaging_adam(rates[number])
        alone = fit(linear, member(start, number), data(), loss=loss, optimizer=rate, seed=4 + number, **shared)
        same(member(result.params, number), alone.params)
        assert result.best_epoch[number] == alone.best_epoch
        ended = len(alone.history["loss"])
        for name, curve in alone.history.items():
            np.testing.assert_allclose(result.history[name][number, :ended], curve, 1e-5)
            assert np.isnan(result.history[name][number, ended:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 8])
def test_rows_of_their_own(batch_size):
    """The shortest has two batches less in an epoch: it then takes no steps, which Adam would notice."""
    start = starts()
    x, target = data()
    rows = np.full((MEMBERS, 30), -1)
    held = np.full((MEMBERS, 20), -1)
    for number, size in enumerate((30, 25, 11)):
        order = RANDOM.permutation(ROWS)
        rows[number, :size], held[number, : 31 - size] = order[:size], order[size:31]
    shared = {"loss": mse, "optimizer": optax.adam(0.1), "epochs": 5}
    result = fit_many(
        linear, start, (x, target), rows=rows, validation=held, batch_size=batch_size, seeds=[0, 0, 0], **shared
    )
    for number in range(MEMBERS):
        own, validated = (part[number][part[number] >= 0] for part in (rows, held))
        size = batch_size and min(batch_size, len(own))
        alone = fit(
            linear, member(start, number), (x[own], target[own]), batch_size=size,
            validation=(x[validated], target[validated]), **shared,
        )  # fmt: skip
        same(member(result.params, number), alone.params)
        np.testing.assert_allclose(result.history["validation_loss"][number], alone.history["validation_loss"], 1e-5)


def test_without_validation_the_last_parameters_are_returned():
    start = starts()
    result = fit_many(linear, start, data(), loss=mse, optimizer=optax.sgd(0.1), epochs=4)
    alone = fit(linear, member(start, 1), data(), loss=mse, optimizer=optax.sgd(0.1), epochs=4)
    same(member(result.params, 1), alone.params)
    assert result.best_epoch.tolist() == [4] * MEMBERS
    assert set(result.history) == {"loss", "skipped"}


def test_one_member_that_diverges_leaves_the_others_alone():
    start = starts()
    rates = {"learning_rate": np.float32([0.05, 1e4, 0.05])}
    settings = {"loss": mse, "epochs": 200, "batch_size": 16}
    with pytest.warns(UserWarning, match=r"1 of 3 members.*: 1;"):
        result = fit_many(linear, start, data(), optimizer=optax.sgd, settings={"optimizer": rates}, **settings)
    assert result.skipped.tolist() == [0, 10, 0] or result.skipped[1] >= 10
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))
    for number in (0, 2):
        alone = fit(linear, member(start, number), data(), optimizer=optax.sgd(0.05), seed=number, **settings)
        same(member(result.params, number), alone.params, 1e-4)
    assert np.isnan(result.history["loss"][1, -1])
    assert np.isfinite(result.history["loss"][[0, 2]]).all()


def test_the_ensemble_predicts_a_distribution():
    params = starts()
    x = data()[0]
    preds = np.stack([linear(member(params, number), x) for number in range(MEMBERS)])
    numbers = ensemble_predict(linear, params, x)
    np.testing.assert_allclose(numbers.mean, preds.mean(0), 1e-5, 1e-6)
    np.testing.assert_allclose(numbers.variance, preds.var(0, ddof=1), 1e-5, 1e-6)
    mixed = ensemble_predict(lambda params, x: Normal(linear(params, x), jnp.full(len(x), 0.3)), params, x)
    assert isinstance(mixed, Mixture)
    np.testing.assert_allclose(mixed.mean, preds.mean(0), 1e-5, 1e-6)
    np.testing.assert_allclose(mixed.variance, preds.var(0) + 0.09, 1e-5, 1e-6)


@pytest.mark.slow
def test_members_over_devices_are_the_same(tmp_path):
    printed = run_program("members_on_devices", tmp_path, JAX_NUM_CPU_DEVICES="2", **dumping(tmp_path))
    assert printed.split() == ["['all-reduce']"]


def test_an_ensemble_of_unequal_members_is_refused_in_one_line():
    with pytest.raises(jaxloss.ShapeError, match="members") as told:
        ensemble_predict(linear, {"weight": np.zeros((3, 3)), "bias": np.zeros(2)}, data()[0])
    assert "\n" not in str(told.value)


X, TARGET = data()
REFUSED = {
    "members of params": ({"params": {"weight": np.zeros((2, 3)), "bias": np.zeros(3)}}, jaxloss.ShapeError, "(2,)"),
    "seeds": ({"seeds": [1, 2]}, jaxloss.ShapeError, "seeds"),
    "settings": ({"settings": {"loss": {"delta": np.ones(2)}}}, jaxloss.ShapeError, "delta"),
    "a setting's value": ({"settings": {"loss": {"delta": np.float32([1, -1, 1])}}}, ValueError, "delta"),
    "an optimizer made": ({"settings": {"optimizer": {"learning_rate": np.ones(3)}}}, TypeError, "optax.adamw"),
    "rows": ({"rows": np.zeros((2, 4), int)}, jaxloss.ShapeError, "(2, 4)"),
    "rows past the end": ({"rows": np.full((3, 4), ROWS)}, ValueError, "50"),
    "no row": ({"rows": np.full((3, 4), -1)}, ValueError, "names no row"),
    "rows to validate on": ({"validation": np.zeros((2, 1), int)}, jaxloss.ShapeError, "validation must be"),
    "a kind of settings": ({"settings": {"model": {}}}, TypeError, "'loss' and of 'optimizer'"),
    "not finite": ({"data": Batch(np.full_like(X, np.nan), TARGET)}, ValueError, "NaN"),
    "patience": ({"patience": 2}, ValueError, "validation"),
    "no integer": ({"rows": np.zeros((3, 4), int), "batch_size": 2.5}, TypeError, "batch_size must be an integer"),
    "seeds of floats": ({"seeds": [0.1, 0.2, 0.3]}, TypeError, "seeds must be integers"),
    "no mapping": ({"settings": {"loss": [1, 2, 3]}}, TypeError, "settings of 'loss'"),
    "words": (
        {"optimizer": optax.adam, "settings": {"optimizer": {"learning_rate": ["a"] * 3}}},
        TypeError,
        "learning_rate",
    ),
    "an optimizer that is not made": ({"optimizer": optax.adam}, TypeError, "optax.adam(1e-3)"),
    "model state": ({"model_state": {"n": np.zeros(2)}}, jaxloss.ShapeError, "(2,), (3,)"),
    "a mesh": ({"sharding": 4}, TypeError, "jax.make_mesh"),
    "batch size": ({"batch_size": 0}, ValueError, "batch_size=0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case):
    changed, error, word = REFUSED[case]
    call = {"params": starts(), "data": (X, TARGET), "loss": huber, "optimizer": optax.sgd(0.1), "epochs": 1} | changed
    with pytest.raises(error) as told:
        fit_many(linear, call.pop("params"), call.pop("data"), **call)
    assert word in str(told.value)
    assert "\n" not in str(told.value)
