"""rmse: safe at a perfect fit, at both ends of the float range, and over nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import close, hvp

import jaxloss
from jaxloss import rmse

RANDOM = np.random.default_rng(0)
PRED, TARGET = (RANDOM.standard_normal((6, 3)).astype(np.float32) for _ in range(2))
WEIGHTS = np.float32(RANDOM.uniform(0.1, 2, (6, 1)))
WHERE = RANDOM.uniform(size=(6, 3)) < 0.7


def plain(pred, target, weights=1.0, where=True, axis=None, eps=0.0):
    """The definition, in float64 NumPy."""
    weights = np.broadcast_to(weights, pred.shape) * np.broadcast_to(where, pred.shape)
    squares = np.where(where, np.float64(pred) - target, 0) ** 2
    return np.sqrt((weights * squares).sum(axis) / weights.sum(axis) + eps)


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1)])
@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_definition(axis, eps):
    for weights, where in ((None, None), (WEIGHTS, None), (None, WHERE), (WEIGHTS, WHERE)):
        want = plain(PRED, TARGET, 1.0 if weights is None else weights, True if where is None else where, axis, eps)
        close(rmse(PRED, TARGET, eps, weights=weights, where=where, axis=axis), want)


def test_gradient_is_that_of_the_definition():
    residual = PRED - TARGET
    close(jax.grad(rmse)(PRED, TARGET), residual / (residual.size * plain(PRED, TARGET)))
    weights = np.broadcast_to(WEIGHTS, PRED.shape)
    value = plain(PRED, TARGET, weights)
    close(jax.grad(rmse)(PRED, TARGET, weights=WEIGHTS), weights * residual / (weights.sum() * value))
    close(jax.jacfwd(rmse)(PRED, TARGET), jax.grad(rmse)(PRED, TARGET))
    direction = np.ones_like(PRED)
    step = 1e-2
    want = (jax.grad(rmse)(PRED + step, TARGET) - jax.grad(rmse)(PRED - step, TARGET)) / (2 * step)
    close(hvp(lambda pred: rmse(pred, TARGET), PRED, direction), want, rtol=1e-3, atol=1e-4)


def test_gradient_is_zero_at_a_perfect_fit():
    for gradient in (jax.grad(rmse), jax.jit(jax.grad(rmse)), jax.jacfwd(rmse)):
        assert gradient(PRED, PRED).tolist() == np.zeros_like(PRED).tolist()
    one_perfect = np.where([True, False, False], PRED, TARGET)
    gradient = jax.grad(lambda pred: rmse(pred, one_perfect, axis=0).sum())(PRED)
    assert not np.any(gradient[:, 0])
    assert np.all(gradient[:, 1:] != 0)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_no_overflow_and_no_underflow(size):
    pred = np.float32([3, 4, 0, 0]) * np.float32(size)
    value, gradient = jax.value_and_grad(rmse)(pred, np.zeros(4, np.float32))
    close(value, np.float64(2.5 * size), atol=0)
    close(gradient, np.array([0.3, 0.4, 0, 0]))
    by_eps = jax.grad(rmse, 2)(pred, np.zeros(4, np.float32), 0.0)
    close(by_eps, np.float64(0.5 / (2.5 * size)), atol=0)


def test_half_precision_beyond_its_own_square():
    pred = jnp.full((8,), 400, jnp.float16)
    value, gradient = jax.value_and_grad(rmse)(pred, jnp.zeros(8, jnp.float16))
    assert value.dtype == jnp.float32
    assert float(value) == 400.0
    assert gradient.dtype == jnp.float16
    close(gradient, np.full(8, 0.125))


def test_over_nothing_it_is_nan():
    assert np.isnan(rmse(jnp.zeros(0), jnp.zeros(0)))
    assert np.isnan(rmse(PRED, TARGET, where=False))
    assert np.isnan(rmse(PRED, TARGET, weights=0.0))
    hidden = np.ones((6, 3), bool)
    hidden[:, 1] = False
    assert np.isnan(rmse(PRED, TARGET, where=hidden, axis=0)).tolist() == [False, True, False]


def test_masked_entries_are_absent():
    spoiled = [np.where(WHERE, array, np.nan) for array in (PRED, TARGET, np.broadcast_to(WEIGHTS, PRED.shape))]
    kept = [array[WHERE] for array in (PRED, TARGET, np.broadcast_to(WEIGHTS, PRED.shape))]
    value, gradient = jax.value_and_grad(rmse)(*spoiled[:2], weights=spoiled[2], where=WHERE)
    want, rest = jax.value_and_grad(rmse)(*kept[:2], weights=kept[2])
    close(value, want)
    close(gradient[WHERE], rest)
    assert not np.any(gradient[~WHERE])


def test_nan_and_infinity_that_are_not_masked_are_seen():
    assert np.isnan(rmse(np.float32([1, np.nan]), np.zeros(2)))
    assert float(rmse(np.float32([1, np.inf]), np.zeros(2))) == np.inf


def test_refusals():
    for call, kind in (
        (lambda: rmse(jnp.ones((32, 1)), jnp.ones(32)), jaxloss.ShapeError),
        (lambda: rmse(PRED, TARGET, -1.0), ValueError),
        (lambda: rmse(PRED, TARGET, weights=WEIGHTS[:, 0]), jaxloss.ShapeError),
        (lambda: rmse(PRED, TARGET, where=WEIGHTS), TypeError),
        (lambda: rmse(PRED, TARGET, axis=2), ValueError),
        (lambda: rmse(np.ones(3, int), np.ones(3)), TypeError),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("rmse: ")
