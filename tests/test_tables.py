"""Data as users have them: tables of pandas, tensors of PyTorch, columns of whole numbers and booleans."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import refused

import jaxloss
from jaxloss import diagnose, mse, rmse, slope
from jaxloss.metrics import ResidualStats, r2
from jaxloss.solve import levenberg_marquardt, solve_linear

RANDOM = np.random.default_rng(0)


class Column:
    """Whatever holds an array, as a pandas Series or a tensor does."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def test_whatever_holds_an_array_is_one():
    pred, target, weights = RANDOM.normal(size=(3, 6)).astype(np.float32)
    weights, where = np.abs(weights), pred > -1
    held = [Column(values) for values in (pred, target, weights, where)]
    for function in (mse, r2, rmse, ResidualStats.of):
        told = function(held[0], held[1], weights=held[2], where=held[3])
        plain = function(pred, target, weights=weights, where=where)
        jax.tree.map(np.testing.assert_array_equal, told, plain)
    np.testing.assert_array_equal(slope(mse)(*held[:2]), slope(mse)(pred, target))
    np.testing.assert_array_equal(jax.grad(mse)(jnp.asarray(pred), held[1]), jax.grad(mse)(pred, target))
    assert str(diagnose(*held[:2])) == str(diagnose(pred, target))


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    assert float(mse(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))) == 2.5


def test_whole_numbers_and_booleans_are_columns():
    x = np.column_stack([np.arange(8), np.arange(8) % 3 == 0])
    y = x @ [2.0, -1.0] + 3
    fit = solve_linear(x, y)
    np.testing.assert_allclose([*fit.coef, fit.intercept], [2, -1, 3], rtol=1e-5)
    np.testing.assert_allclose(solve_linear(jnp.asarray(x), y).coef, fit.coef)
    np.testing.assert_allclose(solve_linear(x[:, 1:] > 0, y).predict(x[:, 1:] > 0).mean(), y.mean(), rtol=1e-6)


def test_a_table_names_its_columns():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {"area": RANDOM.normal(size=20), "rooms": RANDOM.integers(1, 6, 20), "has a garden": RANDOM.random(20) < 0.5},
        index=np.arange(20) + 7,
    )
    price = 3 * table["area"] + table["rooms"] - table["has a garden"] + RANDOM.normal(size=20)
    fit, plain = solve_linear(table, price), solve_linear(table.to_numpy(float), price.to_numpy())
    np.testing.assert_array_equal(fit.coef, plain.coef)
    np.testing.assert_array_equal(fit.predict(table), plain.predict(table.to_numpy(float)))
    assert fit.names == ("area", "rooms", "has a garden")
    assert plain.names is None
    rows = [line.split("  ")[0] for line in fit.summary(table, price).splitlines()[2:]]
    assert rows == ["area", "rooms", "has a garden", "intercept"]
    other = table[["rooms", "area", "has a garden"]]
    refused(ValueError, ["was fitted to area, rooms, has a garden: pass x[list(fit.names)]"], fit.predict, other)
    np.testing.assert_array_equal(fit.predict(other[list(fit.names)]), fit.predict(table))
    refused(TypeError, ["columns street of x hold more than"], solve_linear, table.assign(street="Elm"), price)
    curve = levenberg_marquardt(lambda params, x: x @ params, jnp.zeros(3), table.to_numpy(np.float32), price)
    assert curve.params.shape == (3,)
    assert float(jaxloss.huber(fit.predict(table), price)) > 0
