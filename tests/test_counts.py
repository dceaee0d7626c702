"""What the families of counts promise beyond other families: large counts, both tails, values that are no counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import correction, far_spread_counts
from jax.test_util import check_grads
from mpmath import betainc, exp, gammainc, log, mp, mpf, psi

from jaxloss import NegativeBinomial, Poisson, nll, slope

pytestmark = pytest.mark.slow  # every gradient compiles a loop; the table of families has the fast checks

FAMILIES = [Poisson, NegativeBinomial]
both = pytest.mark.parametrize("family", FAMILIES, ids=[family.__name__ for family in FAMILIES])


def drawn(count, low, high, seed=0):
    """Parameters of any size and targets on both sides of the mean, in float32."""
    random = np.random.default_rng(seed)
    log_rate = np.float32(random.uniform(np.log(low), np.log(high), count))
    concentration = np.float32(10 ** random.uniform(-2, 5, count))
    rate = np.exp(log_rate.astype(np.float64))
    width = np.sqrt(rate * (1 + rate / concentration))
    return log_rate, concentration, np.floor(np.maximum(rate + width * random.uniform(-3, 3, count), 0))


def made(family, log_rate, concentration, dtype=None):
    parameters = (log_rate,) if family is Poisson else (log_rate, concentration)
    return family(*(jnp.asarray(parameter, dtype) for parameter in parameters))


tails = jax.jit(lambda dist, target: dist._log_tails(target))


@both
@pytest.mark.parametrize(("dtype", "high", "error"), [("float32", 1e3, 5e-6), ("float64", 1e6, 1e-9)])
def test_cdf_equals_scipy_for_large_counts(family, dtype, high, error):
    special = pytest.importorskip("scipy.special")
    with jax.enable_x64(True):
        log_rate, concentration, target = drawn(500, 0.01, high)
        rate, c = np.exp(log_rate.astype(np.float64)), concentration.astype(np.float64)
        exact = (
            special.gammaincc(target + 1, rate) if family is Poisson else special.betainc(c, target + 1, c / (c + rate))
        )
        got = made(family, log_rate, concentration, dtype).cdf(jnp.asarray(target, dtype))
        np.testing.assert_allclose(np.asarray(got, np.float64), exact, rtol=0, atol=error)


@both
@mp.workdps(40)
def test_both_tails_are_right_far_below_the_least_float(family):
    log_rate = np.float32([np.log(50), np.log(50), np.log(3), np.log(2000), 30, -30])
    concentration = np.float32([4, 500, 0.1, 1e4, 2, 0.5])
    target = np.array([1.0, 900, 400, 4000, 5, 3])
    below, above = tails(made(family, log_rate, concentration), jnp.asarray(target, jnp.float32))
    for index in range(len(target)):
        rate, c, a = exp(mpf(float(log_rate[index]))), mpf(float(concentration[index])), mpf(target[index]) + 1
        if family is Poisson:
            want = gammainc(a, rate, mp.inf, regularized=True), gammainc(a, 0, rate, regularized=True)
        else:
            want = (
                betainc(c, a, 0, c / (c + rate), regularized=True),
                betainc(a, c, 0, rate / (c + rate), regularized=True),
            )
        for got, probability in zip((below[index], above[index]), want, strict=True):
            np.testing.assert_allclose(float(got), float(log(probability)), rtol=5e-6, atol=1e-30)


@both
@pytest.mark.parametrize(("order", "modes"), [(1, ["rev"]), pytest.param(2, ["fwd", "rev"], marks=pytest.mark.slow)])
def test_tails_have_derivatives_in_every_parameter(family, order, modes):
    with jax.enable_x64(True):
        log_rate, concentration = np.log([1.0, 5.0, 40.0, 3.0]), np.array([0.5, 3.0, 50.0, 0.1])
        dist, target = made(family, log_rate, concentration), jnp.array([2.0, 2.0, 60.0, 0.0])
        check_grads(lambda dist: tails(dist, target), (dist,), order=order, modes=modes, rtol=1e-4, eps=1e-4)
        gradient = jax.jit(jax.grad(lambda dist: dist.cdf(target).sum()))(dist)
        np.testing.assert_allclose(gradient.log_rate, -np.exp(log_rate + upward(dist, target)), rtol=1e-9)


def upward(dist, target):
    """log P(count), for a negative binomial times (count + concentration)/(rate + concentration)."""
    if isinstance(dist, Poisson):
        return np.asarray(dist.log_prob(target))
    rate, c = np.exp(dist.log_rate), dist.concentration
    return np.asarray(dist.log_prob(target)) + np.log((target + c) / (rate + c))


@mp.workdps(100)
def test_slopes_in_float32_do_not_cancel():
    """Relative to rate − count itself, which next to the rate is a millionth of either, and in the concentration to
    the largest of the terms of one sign."""
    random = np.random.default_rng(2)
    parameters, target = far_spread_counts(random, 400)
    parameters = {name: np.float32(value) for name, value in parameters.items()}
    dist = NegativeBinomial(**{name: jnp.asarray(value) for name, value in parameters.items()})
    poisson = np.asarray(slope(nll)(Poisson(dist.log_rate), target).log_rate, np.float64)
    slopes = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), slope(nll)(dist, target))
    least = mpf("1e-36")

    def correction_slope(a):
        return psi(0, a) - log(a) + 1 / (2 * a)

    for index, y in enumerate(map(mpf, target)):
        rate, c = exp(mpf(float(parameters["log_rate"][index]))), mpf(float(parameters["concentration"][index]))
        excess, share = rate - y, c / (c + rate)
        slack = mpf("3e-9") * y  # what is left where the two are next to each other
        assert abs(mpf(poisson[index]) - excess) <= 1e-6 * abs(excess) + slack
        assert abs(mpf(slopes.log_rate[index]) - share * excess) <= 2e-6 * share * abs(excess) + share * slack + least
        deviance = log((c + rate) / (c + y)) + (c + y) / (c + rate) - 1
        terms = [correction_slope(y + c) - correction_slope(c), y / (2 * c * (c + y)), -deviance]
        assert abs(mpf(slopes.concentration[index]) + sum(terms)) <= 5e-6 * max(map(abs, terms)) + least


@both
def test_what_is_no_count_has_probability_0_and_no_gradient(family):
    dist = made(family, np.zeros(6, np.float32), np.ones(6, np.float32))
    target = jnp.array([-1.0, 0.5, jnp.inf, -jnp.inf, 2.0, jnp.nan])
    log_prob = np.asarray(dist.log_prob(target))
    assert np.all(log_prob[:4] == -np.inf)
    assert np.isfinite(log_prob[4])
    assert np.isnan(log_prob[5])
    np.testing.assert_array_equal(dist.cdf(target)[:4], [0, dist.cdf(jnp.zeros(6))[0], 1, 0])
    np.testing.assert_allclose(jnp.exp(tails(dist, target)[1][:4]), [1, 1 - dist.cdf(jnp.zeros(6))[0], 0, 1], rtol=1e-6)
    np.testing.assert_array_equal(dist.cdf(target + 0.75)[4], dist.cdf(target)[4])
    slopes = jax.grad(lambda dist: dist.log_prob(target)[:5].sum())(dist)
    for leaf in jax.tree.leaves(slopes):
        assert np.all(np.isfinite(leaf))
        assert not np.any(leaf[:4])
        assert leaf[4] != 0 or family is NegativeBinomial
    assert float(dist.cdf(-0.5)[0]) == 0
    with pytest.raises(ValueError, match=r"whole number of at least 0, got 0\.5"):
        nll(dist, np.full(6, 0.5))


@both
def test_nothing_overflows(family):
    """At the ends of what from_raw gives: value, slope and curvature are numbers."""
    log_rate, concentration, target = (
        np.float32(axis).ravel()
        for axis in np.meshgrid([-80, -20, 0, 13.8, 40, 80], [1e-3, 1, 1e6], [0, 1, 100, 1e6], indexing="ij")
    )
    dist = made(family, log_rate, concentration)

    @jax.jit
    def found(dist, target):
        def total(dist):
            return dist.log_prob(target).sum()

        curvature = jax.jvp(jax.grad(total), (dist,), (jax.tree.map(jnp.ones_like, dist),))[1]
        return total(dist), jax.grad(total)(dist), curvature, jax.grad(lambda dist: dist.cdf(target).sum())(dist)

    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found(dist, jnp.asarray(target))))
    assert not any(np.any(np.isnan(tail) | (tail > 0)) for tail in tails(dist, jnp.asarray(target)))


def test_a_negative_binomial_of_large_concentration_is_poisson():
    log_rate, target = jnp.linspace(-3, 10, 50), jnp.round(jnp.linspace(0, 300, 50) ** 2 / 4)
    wide = NegativeBinomial(log_rate, jnp.full(50, 1e12))
    np.testing.assert_allclose(wide.log_prob(target), Poisson(log_rate).log_prob(target), rtol=2e-6)
    np.testing.assert_allclose(wide.cdf(target), Poisson(log_rate).cdf(target), rtol=1e-5, atol=1e-30)


def test_the_rate_of_a_negative_binomial_may_be_far_below_its_concentration():
    dist, target = NegativeBinomial(jnp.full(1, -77.0), jnp.full(1, 1e6)), jnp.zeros(1)
    np.testing.assert_allclose(nll(dist, target), np.exp(-77.0), rtol=1e-5)
    np.testing.assert_allclose(slope(nll)(dist, target).log_rate, np.exp(-77.0), rtol=1e-5)


@both
def test_a_level_that_is_a_cdf_gives_its_value_back_though_rounded(family):
    log_rate, concentration, target = drawn(200, 0.1, 1e3, seed=1)
    dist = made(family, log_rate, concentration)
    level = dist.cdf(jnp.asarray(target, jnp.float32))
    plain = np.asarray((level > 0.01) & (level < 0.99))
    for rounded in (level, jnp.nextafter(level, jnp.ones_like(level))):
        np.testing.assert_array_equal(np.asarray(dist.quantile(rounded))[plain], target[plain])


def test_large_draws_have_the_right_moments():
    dist = Poisson(jnp.log(jnp.array([1e6, 1e8, 1e12])))
    draws = np.asarray(dist.sample(jax.random.key(0), (20_000,)), np.float64)
    z = (draws - np.exp(np.asarray(dist.log_rate, np.float64))) / np.sqrt(np.asarray(dist.variance, np.float64))
    np.testing.assert_allclose(z.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(z.std(0), 1, atol=0.03)


@mp.workdps(40)
def test_the_oracle_s_correction_is_that_of_stirling():
    assert abs(correction(mpf(1000)) - (1 / mpf(12000) - 1 / mpf(360) / mpf(1000) ** 3)) < 1e-15
