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
    """The noise of a row of weight w is √w times smaller.

    Too few of 400 rows then lie about a kink at ±2 to tell their density (0.88 with normal noise); of 1600 enough do.
    """
    loss, weights = {**SMOOTH, **LINEAR}[name], np.tile(WEIGHTS, 4 if name == "epsilon 2" else 1)
    assert 0.9 < ratio(loss, with_noise(noise, weights**-0.5), weights, rows=len(weights)) < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("name", {**SMOOTH, **LINEAR})
def test_with_weights_of_importance(name):
    """The noise is the same whatever the weight; mse takes weights for precisions, as weighted least squares do."""
    if name != "mse":
        assert 0.9 < ratio({**SMOOTH, **LINEAR}[name], with_noise("normal"), WEIGHTS) < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", SMOOTH)
def test_with_an_estimated_scale(name, noise):
    assert 0.9 < ratio(SMOOTH[name], with_noise(noise, 7.0), scale_estimator="mad") < 1.1


def counts(random, mean, shape):
    return random.poisson(np.exp(0.3 * mean), shape)


def overdispersed(random, mean, shape):
    """Of a variance of 2.5 means."""
    return random.poisson(1.5 * random.gamma(np.exp(0.3 * mean) / 1.5, size=shape))


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


@pytest.mark.parametrize("name", [pytest.param("epsilon 2", marks=pytest.mark.slow), "quantile 0.9", "tukey"])
def test_few_data_sets(name):
    """The above in small: the spread over 300 sets is known to 4 %."""
    loss = {**SMOOTH, **LINEAR}[name]
    assert 0.8 < ratio(loss, with_noise("Laplace"), sets=300, rows=200) < 1.25


def test_a_tube_in_units_of_the_scale_has_one_solution():
    """A scale so large that no residual is past the tube solves the equations, too, and tells nothing."""
    random = np.random.default_rng(6)
    x = random.standard_normal((400, 1))
    with jax.enable_x64(True):
        targets = jnp.asarray(2 * x[:, 0] + 1 + 7 * random.standard_t(5, (100, 400)))
        loss, settings = jaxloss.squared_epsilon_insensitive, {"epsilon": 1.0}
        ones = jnp.ones(400)
        slopes, errors, converged = fitted(loss, settings, jnp.asarray(x), targets, ones, scale_estimator="mad")
        slopes, errors = np.asarray(slopes), np.asarray(errors)
    assert converged.all()
    assert (np.abs(slopes - 2) < 5 * errors).all()
    assert errors.max() < 2 * np.median(errors)


@pytest.mark.parametrize(
    ("function", "name", "values"),
    [
        (jaxloss.huber, "delta", (0.3, 1.0)),
        pytest.param(jaxloss.quantile, "level", (0.2, 0.7), marks=pytest.mark.slow),
        pytest.param(jaxloss.epsilon_insensitive, "epsilon", (0.3, 1.0), marks=pytest.mark.slow),
    ],
    ids=["huber", "quantile", "epsilon_insensitive"],
)
def test_several_outputs_settings_and_masks_are_fits_of_their_own(function, name, values):
    random = np.random.default_rng(3)
    with jax.enable_x64(True):
        x, y = random.standard_normal((120, 2)), random.standard_t(5, (120, 2))
        where = random.permuted(np.arange(120)[:, None] < [96, 96], axis=0)  # equally many: one program for all alone
        loss = Partial(function, **{name: jnp.array(values)})

        def alone(column, value):
            rows = x[where[:, column]], y[where[:, column], column]
            return solve_linear(*rows, Partial(function, **{name: value})).standard_errors(*rows)

        errors = solve_linear(x, y, loss, where=where).standard_errors(x, np.where(where, y, np.nan), where=where)
        for column, value in enumerate(values):
            np.testing.assert_allclose(errors[column], alone(column, value), rtol=1e-8)
        rows = x[where[:, 0]], y[where[:, 0], 0]
        for value, error in zip(values, solve_linear(*rows, loss).standard_errors(*rows), strict=True):
            np.testing.assert_allclose(error, alone(0, value), rtol=1e-8)


def test_weights_of_mse_and_of_links_are_those_of_statsmodels():
    models = pytest.importorskip("statsmodels.api")
    random = np.random.default_rng(4)
    with jax.enable_x64(True):
        x, weights = random.standard_normal((80, 2)), random.uniform(0.2, 4, 80)
        y, design = x @ [1.0, -1.0] + random.standard_normal(80), np.column_stack([x, np.ones(80)])
        fit = solve_linear(x, y, weights=weights)
        theirs = models.WLS(y, design, weights=weights).fit().bse
        np.testing.assert_allclose(fit.standard_errors(x, y, weights=weights), theirs, rtol=1e-9)
        counts = random.poisson(np.exp(0.3 * y)).astype(float)
        fit = solve_linear(x, counts, jaxloss.poisson_deviance, weights=weights)
        glm = models.GLM(counts, design, models.families.Poisson(), var_weights=weights)
        theirs = glm.fit(scale="X2", tol=1e-12).bse
        np.testing.assert_allclose(fit.standard_errors(x, counts, weights=weights), theirs, rtol=1e-6)


def pieces(loss, turns):
    """Lines whose largest is the loss, from its values at points between its kinks."""
    slopes = np.asarray(jaxloss.slope(loss)(turns, np.zeros_like(turns)))
    return slopes, np.asarray(loss(turns, np.zeros_like(turns), reduction="none")) - slopes * turns


@pytest.mark.parametrize("name", [pytest.param("three kinks", marks=pytest.mark.slow), "lopsided"])
def test_a_loss_of_ones_own_with_several_kinks_is_minimised(name):
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(5)
    with jax.enable_x64(True):
        x, weights = random.standard_normal((60, 2)), random.uniform(0.5, 2, 60)
        y, design = x @ [1.0, 2.0] + random.standard_t(3, 60), np.column_stack([x, np.ones(60)])
        fit = solve_linear(x, y, LINEAR[name], weights=weights)
        rises, starts = pieces(LINEAR[name], np.array([-7.0, -0.2, 0.2, 7.0]))
        above = np.vstack([np.hstack([rise * design, -np.eye(60)]) for rise in rises])
        right = np.concatenate([rise * y - start for rise, start in zip(rises, starts, strict=True)])
        costs = np.concatenate([np.zeros(3), weights])
        best = optimize.linprog(costs, A_ub=above, b_ub=right, bounds=(None, None))
        assert fit.converged
        np.testing.assert_allclose(fit.objective, best.fun, rtol=1e-10)
