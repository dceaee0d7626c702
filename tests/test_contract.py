"""Which losses there are, and which shapes and dtypes they accept; what they refuse is in test_bad_input."""

from __future__ import annotations

import inspect

import catalogue
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ROWS
from support import close, sample

import jaxloss
from jaxloss import mse


def test_every_exported_loss_has_a_row():
    exported = {
        name for name, loss in catalogue.lifted_losses(jaxloss).items() if loss.__module__.startswith("jaxloss.losses.")
    }
    assert {row.name for row in ROWS} == exported
    assert len(ROWS) == len(exported)
    for row in ROWS:
        assert getattr(jaxloss, row.name) is row.loss


def test_every_loss_of_the_catalogue_is_exported():
    families = [module for _, module in inspect.getmembers(jaxloss.losses, inspect.ismodule)]
    assert families
    for family in families:
        assert set(catalogue.lifted_losses(family)) == set(family.__all__)
        assert set(family.__all__) <= set(vars(jaxloss))


@pytest.mark.parametrize("row", [row for row in ROWS if row.name == "huber"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 2), (0,), (3, 0)])
def test_any_rank(row, shape):
    pred, target = sample(row, shape)
    losses = row.loss(pred, target, reduction="none", **row.usual)
    assert losses.shape == shape
    assert jaxloss.slope(row.loss)(pred, target, **row.usual).shape == shape
    mean = row.loss(pred, target, **row.usual)
    assert mean.shape == ()
    close(mean, jnp.float32(losses.mean() if losses.size else 0))


def test_arrays_of_numpy_and_python_numbers_are_taken():
    close(mse(np.ones(3, np.float32), np.arange(3)), jnp.float32(2 / 3))
    close(mse(1.5, 1), jnp.float32(0.25))


def test_targets_are_cast_on_the_host():
    far = 2**31 + 2**12
    target = np.array([far, -far])
    assert target.dtype == np.int64
    close(mse(jnp.zeros(2), target, reduction="none"), jnp.full(2, np.float32(far) ** 2))
    precise = np.array([1e9 + 64.0])  # exact in float32
    assert float(mse(jnp.array([1e9]), precise)) == 4096.0
    for dtype in (np.int8, np.int32, np.uint8, bool, np.float16, np.float64):
        close(mse(jnp.zeros(2), np.array([0, 1], dtype)), jnp.float32(0.5))
        close(
            mse(jnp.zeros(2), jnp.array(np.array([0, 1]), jnp.dtype(dtype if dtype != np.float64 else "float32"))), 0.5
        )
