"""Barron's general loss: its special cases, its derivatives in alpha and scale, and learning both."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from mpmath import mpf
from support import close

import jaxloss

ALPHAS = (-np.inf, -1e6, -100.0, -2.0, -1.0, -1e-3, -1e-6, 0.0, 1e-6, 1e-3, 0.5, 1.0, 1.5, 1.999, 2 - 2.0**-20, 2.0)
SCALES = (1e-3, 1.0, 1e3)


@functools.cache
def exact(oracle, residual: float, alpha: float, scale: float) -> float:
    return float(oracle(mpf(residual), mpf(alpha), mpf(scale)))


@functools.cache
def cases_and_derivatives() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Residuals of every size relative to the scale, with alpha and scale, and what is derived there in these."""
    ratios = np.concatenate([10.0 ** np.linspace(-9, 9, 13), np.linspace(0.3, 6, 7)])
    cases = np.array([(scale * ratio, alpha, scale) for alpha in ALPHAS for scale in SCALES for ratio in ratios])
    residual, alpha, scale = cases.astype(np.float32).T

    def total(settings):
        return jaxloss.barron(residual, jnp.zeros_like(residual), reduction="sum", **settings)

    return cases, jax.jit(jax.grad(total))({"alpha": alpha, "scale": scale})


@pytest.mark.parametrize("name", ["alpha", "scale"])
def test_derivatives_in_the_settings_are_exact(name):
    """To 1e-5, wherever the derivative is a normal number."""
    oracle = {"alpha": oracles.barron_alpha_slope, "scale": oracles.barron_scale_slope}[name]
    cases, derivatives = cases_and_derivatives()
    got = np.asarray(derivatives[name], np.float64)
    want = np.array([exact(oracle, *map(float, case)) for case in cases.astype(np.float32)])
    normal = (np.abs(want) >= np.finfo(np.float32).tiny) & (np.abs(want) <= np.finfo(np.float32).max)
    assert normal.mean() > 0.5
    error = np.abs(got - want)[normal] / np.abs(want)[normal]
    worst = error.argmax()
    assert error[worst] <= 1e-5, (error[worst], cases[normal][worst], got[normal][worst], want[normal][worst])
    assert not np.isnan(got).any()


def test_special_cases_are_the_other_losses():
    residual = np.float32([-30.0, -2.0, -0.3, 1e-3, 0.7, 4.0])
    at = residual, np.zeros_like(residual)
    scale = 0.8

    def own(alpha, scale):
        return jaxloss.barron(*at, alpha=alpha, scale=scale, reduction="none")

    half, root = scale / 2, scale / np.sqrt(2)
    joined = {
        "mse": (own(2.0, scale), jaxloss.mse(*at, reduction="none") / (2 * scale**2)),
        "pseudo_huber": (own(1.0, scale), jaxloss.pseudo_huber(*at, delta=scale, reduction="none") / scale**2),
        "cauchy": (scale**2 * own(0.0, root) / 2, jaxloss.cauchy(*at, scale=scale, reduction="none")),
        "geman_mcclure": (scale**2 * own(-2.0, half) / 4, jaxloss.geman_mcclure(*at, scale=scale, reduction="none")),
        "welsch": (scale**2 * own(-np.inf, root) / 2, jaxloss.welsch(*at, scale=scale, reduction="none")),
    }
    for left, right in joined.values():
        close(left, right, rtol=5e-6, atol=0)
    for centre, beside in ((0.0, 1e-6), (0.0, -1e-6), (2.0, 2 - 2.0**-22), (-np.inf, -1e9)):
        close(own(centre, scale), own(beside, scale), rtol=2e-5, atol=0)


def test_the_log_partition_function_equals_quadrature():
    alphas = np.float32([0, 1e-6, 1e-3, 0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 1.9, 1.99, 1.999, 2])
    at = np.zeros_like(alphas)
    got = jaxloss.barron_nll(at, at, alpha=alphas, scale=1.0, reduction="none")
    want = [float(oracles.log_partition(mpf(float(alpha)))) for alpha in alphas]
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=1e-6)
    assert want[0] == pytest.approx(np.log(np.pi * np.sqrt(2)), abs=1e-12)  # α = 0: ∫ dr/(1 + ½r²)
    assert want[-1] == pytest.approx(np.log(2 * np.pi) / 2, abs=1e-12)


def test_the_log_partition_function_has_the_derivative_of_quadrature():
    def one(alpha):
        return jaxloss.barron_nll(0.0, 0.0, alpha=alpha, scale=1.0)

    for alpha in (0.25, 0.5, 1.0, 1.75):
        step = mpf(2) ** -20
        want = (oracles.log_partition(alpha + step) - oracles.log_partition(alpha - step)) / (2 * step)
        close(jax.grad(one)(alpha), np.array(float(want)), rtol=1e-5)


@pytest.mark.parametrize("kind", ["normal", pytest.param("heavy", marks=pytest.mark.slow)])
def test_alpha_and_scale_are_recovered_from_data(kind):
    """Quantiles of the density with the true settings stand for a sample without noise."""
    optax = pytest.importorskip("optax")
    alpha, scale = {"normal": (2.0, 0.7), "heavy": (1.0, 0.5)}[kind]
    grid = np.sinh(np.linspace(-9, 9, 200_001))
    density = np.exp(-np.asarray(jaxloss.barron(np.float32(grid), np.zeros(grid.shape), alpha=alpha, reduction="none")))
    share = np.cumsum(density * np.gradient(grid))
    data = jnp.asarray(scale * np.interp((np.arange(2000) + 0.5) / 2000, share / share[-1], grid), jnp.float32)

    def settings(raw):
        return {"alpha": 2 * jax.nn.sigmoid(raw["alpha"]), "scale": jax.nn.softplus(raw["scale"])}

    def objective(raw):
        return jaxloss.barron_nll(data, jnp.zeros_like(data), **settings(raw))

    optimizer = optax.adam(0.1)
    raw = {"alpha": jnp.float32(0.3), "scale": jnp.float32(1.0)}

    def step(carry, _):
        raw, state = carry
        updates, state = optimizer.update(jax.grad(objective)(raw), state)
        return (optax.apply_updates(raw, updates), state), None

    (raw, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=3000))((raw, optimizer.init(raw)))
    found = settings(raw)
    assert abs(float(found["alpha"]) - alpha) < 0.05
    assert abs(float(found["scale"]) / scale - 1) < 0.02
