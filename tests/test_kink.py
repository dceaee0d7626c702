"""Corners: the derivative there is the subgradient of least magnitude, in every mode, also of second order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import close

from jaxloss.numerics import kink

POINTS = np.float32([-2.0, -1e-30, 0.0, 1e-30, 2.0])
CASES = {
    "absolute": (np.abs(POINTS), [-1, -1, 0, 1, 1]),
    "positive_part": (np.maximum(POINTS, 0), [0, 0, 0, 1, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_slopes_and_curvatures(name):
    function = getattr(kink, name)
    values, slopes = CASES[name]
    close(function(POINTS), values, atol=0)
    for derivative in (jax.grad, jax.jacfwd):
        close(jax.vmap(derivative(function))(POINTS), np.float32(slopes), atol=0)
        close(jax.jit(jax.vmap(derivative(jax.grad(function))))(POINTS), np.zeros(5), atol=0)


def test_root():
    points = np.float32([0.0, 1e-36, 1e-30, 0.25, 4.0, 1e36])
    slopes = np.append(0, 0.5 / np.sqrt(points[1:].astype(np.float64)))
    close(kink.root(points), np.sqrt(points), rtol=2e-7, atol=0)
    close(jax.vmap(jax.grad(kink.root))(points), slopes, atol=0)
    close(jax.vmap(jax.jacfwd(kink.root))(points), slopes, atol=0)
    close(jax.grad(jax.grad(kink.root))(4.0), np.array(-1 / 32), atol=0)
    assert float(jax.grad(jax.grad(kink.root))(0.0)) == 0.0


def test_norm():
    for size in (1e-30, 1.0, 1e30):
        vector = np.float32([3 * size, 0, -4 * size])
        close(kink.norm(vector), np.float32(5 * size), rtol=4e-7, atol=0)
        close(jax.grad(kink.norm)(vector), np.float32([0.6, 0, -0.8]), rtol=4e-7, atol=0)
    close(jax.grad(kink.norm)(np.zeros(3, np.float32)), np.zeros(3, np.float32), atol=0)


@pytest.mark.parametrize("name", ["absolute", "positive_part", "root"])
def test_nan_is_seen(name):
    function = getattr(kink, name)
    assert jnp.isnan(function(jnp.nan))
    assert jnp.isnan(jax.grad(function)(jnp.nan))


def test_every_function_of_the_module_is_tested():
    assert {*CASES, "root", "norm"} == set(kink.__all__)
