"""Standard errors of linear fits against the spread of the coefficients over simulated data sets."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxloss
from jaxloss.lift import Traits, pointwise
from jaxloss.solve import solve_linear

SMOOTH = {
    "mse": jaxloss.mse,
    "huber": Partial(jaxloss.huber, delta=1.345),
    "huber, narrow": Partial(jaxloss.huber, delta=0.5),
    "smooth_l1": Partial(jaxloss.smooth_l1, beta=0.5),
    "pseudo_huber": jaxloss.pseudo_huber,
    "log_cosh": jaxloss.log_cosh,
    "squared_epsilon_insensitive": Partial(jaxloss.squared_epsilon_insensitive, epsilon=1.0),
    "fair": Partial(jaxloss.fair, scale=1.4),
    "expectile": Partial(jaxloss.expectile, level=0.8),
    "quantile_huber": Partial(jaxloss.quantile_huber, level=0.8, delta=0.5),
    "cauchy": Partial(jaxloss.cauchy, scale=2.385),
    "welsch": Partial(jaxloss.welsch, scale=2.985),
    "geman_mcclure": Partial(jaxloss.geman_mcclure, scale=4.0),
    "tukey": Partial(jaxloss.tukey, scale=4.685),
    "barron": Partial(jaxloss.barron, alpha=0.5, scale=1.5),
}


@pointwise(traits=Traits(residual=True, convex=True))
def three_kinks(pred, target, *, turn=1.0):
    """|r|, and past `turn` twice as steep."""
    size = jnp.abs(pred - target)
    return jnp.maximum(size, 2 * size - turn)


@pointwise(traits=Traits(residual=True, convex=True))
def lopsided(pred, target, *, low=-0.5, high=1.0):
    """A tube of its own on either side, left at a slope of −3 and of 1."""
    residual = pred - target
    return jnp.maximum(jnp.maximum(3 * (low - residual), residual - high), 0)


LINEAR = {
    "mae": jaxloss.mae,
    "epsilon 0.1": Partial(jaxloss.epsilon_insensitive, epsilon=0.1),
    "epsilon 1": Partial(jaxloss.epsilon_insensitive, epsilon=1.0),
    "epsilon 2": Partial(jaxloss.epsilon_insensitive, epsilon=2.0),
    "quantile 0.9": Partial(jaxloss.quantile, level=0.9),
    "quantile 0.25": Partial(jaxloss.quantile, level=0.25),
    "three kinks": Partial(three_kinks, turn=1.0),
    "lopsided": Partial(lopsided, low=-0.5, high=1.0),
}
NOISES = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "Laplace": lambda random, shape: random.laplace(size=shape),
    "t5": lambda random, shape: random.standard_t(5, shape),
}


@functools.partial(jax.jit, static_argnames=("function", "scale_estimator"))
def fitted(function, settings, x, targets, weights, scale_estimator=None):
    """Slopes and their standard errors, one to a data set."""
    loss = Partial(function, **settings)

    def one(target):
        fit = solve_linear(x, target, loss, weights=weights, scale_estimator=scale_estimator)
        return fit.coef[0], fit.standard_errors(x, target, weights=weights)[0], fit.converged

    return jax.vmap(one)(targets)


def ratio(loss, targets_of, weights=None, scale_estimator=None, sets=1000, rows=400):
    """The mean standard error of a slope over its spread over data sets, which 1000 of them tell to 2.2 %."""
    random = np.random.default_rng(1)
    x = random.standard_normal((rows, 1))
    with jax.enable_x64(True):
        weights = jnp.ones(rows) if weights is None else jnp.asarray(weights)
        targets = jnp.asarray(targets_of(random, 2 * x[:, 0] + 1, (sets, rows)), jnp.float64)
        function, settings = (loss.func, loss.keywords) if isinstance(loss, Partial) else (loss, {})
        slopes, errors, converged = fitted(function, settings, jnp.asarray(x), targets, weights, scale_estimator)
        assert converged.mean() > 0.98
        return float(errors.mean() / slopes.std())


def with_noise(name, scale=1.0):
    return lambda random, mean, shape: mean + scale * NOISES[name](random, shape)


WEIGHTS = np.random.default_rng(9).uniform(0.3, 3, 400)


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", {**SMOOTH, **LINEAR})
def test_standard_errors_are_the_spread_over_data_sets(name, noise):
    loss = {**SMOOTH, **LINEAR}[name]
    assert 0.9 < ratio(loss, with_noise(noise)) < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", {**SMOOTH, **LINEAR})
def test_with_weights_of_precision(name, noise):
    """The noise of a row of weight w is √w times smaller."""
    loss = {**SMOOTH, **LINEAR}[name]
    assert 0.9 < ratio(loss, with_noise(noise, WEIGHTS**-0.5), WEIGHTS) < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("name", {**SMOOTH, **LINEAR})
def test_with_weights_of_importance(name):
    """The noise is the same whatever the weight; mse takes weights for precisions, as weighted least squares do."""
    if name == "mse":
        return
    loss = {**SMOOTH, **LINEAR}[name]
    assert 0.9 < ratio(loss, with_noise("normal"), WEIGHTS) < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", SMOOTH)
def test_with_an_estimated_scale(name, noise):
    assert 0.9 < ratio(SMOOTH[name], with_noise(noise, 7.0), scale_estimator="mad") < 1.1


def counts(random, mean, shape):
    return random.poisson(np.exp(0.3 * mean), shape)


def overdispersed(random, mean, shape):
    rate = np.exp(0.3 * mean) * random.gamma(2, 1 / 2, shape)
    return random.poisson(rate)


def waits(random, mean, shape):
    return np.exp(0.3 * mean) * random.gamma(1.5, 1 / 1.5, shape)


def amounts(random, mean, shape):
    """Compound Poisson–gamma, of variance proportional to mean^1.5."""
    rate = 2 * np.exp(0.3 * mean) ** 0.5
    number = np.broadcast_to(random.poisson(rate, shape), shape)
    size = np.where(number > 0, random.gamma(np.maximum(number, 1)), 0)
    return np.exp(0.3 * mean) / rate * size


def grown(random, mean, shape):
    return np.expm1(mean * 0.3 + 1 + 0.2 * random.standard_normal(shape))


LINKED = {
    "poisson_deviance": (jaxloss.poisson_deviance, counts),
    "poisson_deviance, overdispersed": (jaxloss.poisson_deviance, overdispersed),
    "gamma_deviance": (jaxloss.gamma_deviance, waits),
    "tweedie_deviance": (Partial(jaxloss.tweedie_deviance, power=1.5), amounts),
    "msle": (jaxloss.msle, grown),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LINKED)
def test_of_losses_with_a_link(name):
    assert 0.9 < ratio(*LINKED[name]) < 1.1


@pytest.mark.slow
def test_prior_weights_of_counts():
    """A mean of w counts has w times less variance."""
    loss, whole = jaxloss.poisson_deviance, np.round(WEIGHTS * 3 + 1)

    def means(random, mean, shape):
        return random.poisson(whole * np.exp(0.3 * mean), shape) / whole

    assert 0.9 < ratio(loss, means, whole) < 1.1
