"""Every family against scipy.stats, mpmath and its own samples; derivatives; shapes; raw parameters."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, LONG, each, each_family, each_short_family
from jax.test_util import check_grads
from mpmath import mpf

import jaxloss
from jaxloss.likelihood.distribution import Distribution

COUNT = 60


def ordinary(row, count=COUNT, seed=0):
    """float64 parameters, the scipy distribution, targets."""
    random = np.random.default_rng(seed)
    parameters = row.draw(random, count)
    scipy = row.scipy(**parameters)
    return parameters, scipy, row.sampled(scipy, random).astype(np.float64)


def made(row, parameters, dtype=None):
    return row.family(**{name: jnp.asarray(value, dtype) for name, value in parameters.items()})


@each_family
def test_equals_scipy_in_float64(row):
    with jax.enable_x64(True):
        parameters, scipy, target = ordinary(row)
        dist = made(row, parameters)
        log_density = scipy.logpmf if row.family.discrete else scipy.logpdf
        np.testing.assert_allclose(dist.log_prob(jnp.asarray(target)), log_density(target), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(dist.mean, np.broadcast_to(scipy.mean(), target.shape), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(dist.variance, np.broadcast_to(scipy.var(), target.shape), rtol=1e-10)
        np.testing.assert_allclose(dist.cdf(jnp.asarray(target)), scipy.cdf(target), rtol=1e-8, atol=1e-12)
        level = np.random.default_rng(1).uniform(0.01, 0.99, target.shape)
        np.testing.assert_allclose(dist.quantile(jnp.asarray(level)), scipy.ppf(level), rtol=1e-8, atol=1e-8)


@each_short_family
def test_quantile_of_cdf_is_where_it_began(row):
    parameters, _, target = ordinary(row)
    dist = made(row, parameters, jnp.float32)
    target = jnp.asarray(target, jnp.float32)
    level = dist.cdf(target)
    inside = np.asarray((level > 0.01) & (level < 0.99))
    again = np.asarray(dist.quantile(level))
    width = np.asarray(jnp.sqrt(dist.variance))
    width = np.where(np.isfinite(width), width, np.abs(target) + 1)
    np.testing.assert_array_less(np.abs(again - target)[inside], (2e-4 * width)[inside] + row.family.discrete * 0.5)


@each_family
def test_log_prob_in_float32_equals_mpmath(row):
    parameters, target = row.extreme(np.random.default_rng(2), 400)
    parameters = {name: np.float32(value) for name, value in parameters.items()}
    got = np.asarray(made(row, parameters).log_prob(jnp.asarray(target, jnp.float32)), np.float64)
    for index, number in enumerate(got):
        given = {name: float(value[index]) for name, value in parameters.items()}
        y = float(np.float32(target[index]))
        terms = row.log_prob(mpf(y), **{name: mpf(value) for name, value in given.items()})
        error = abs(mpf(float(number)) - sum(terms)) / max(map(abs, terms))
        assert error <= 5e-6, f"{row.name} at {y}, {given}: {number}, exactly {float(sum(terms))}"


@each_family
def test_samples_have_the_distribution(row):
    stats = pytest.importorskip("scipy.stats")
    parameters, _, _ = ordinary(row, count=4, seed=3)
    draws = np.asarray(made(row, parameters, jnp.float32).sample(jax.random.key(0), (20_000,)), np.float64)
    assert draws.shape == (20_000, 4)
    for column in range(4):
        one = row.scipy(**{name: value[column] for name, value in parameters.items()})
        if row.family.discrete:
            edges = np.unique(one.ppf(np.linspace(0.02, 0.98, 13)))
            expected = np.diff(np.concatenate([[0], one.cdf(edges), [1]])) * len(draws)
            counted = np.bincount(np.searchsorted(edges, draws[:, column]), minlength=len(expected))
            assert stats.chisquare(counted, expected * counted.sum() / expected.sum()).pvalue > 1e-3
        else:
            assert stats.kstest(draws[:, column], one.cdf).pvalue > 1e-3


@pytest.mark.usefixtures("eager")
@each_short_family
def test_nll_has_right_derivatives_in_every_parameter(row):
    with jax.enable_x64(True):
        parameters, _, target = ordinary(row, count=6, seed=4)
        check_grads(
            lambda dist: jaxloss.nll(dist, jnp.asarray(target)), (made(row, parameters),), order=2, rtol=1e-4, eps=1e-4
        )


@each_short_family
def test_crps_equals_its_integral_and_trains(row):
    if not row.crps:
        pytest.skip("no closed form")
    integrate = pytest.importorskip("scipy.integrate")
    with jax.enable_x64(True):
        parameters, _, target = ordinary(row, count=6, seed=5)
        dist = made(row, parameters)
        got = np.asarray(jaxloss.crps(dist, jnp.asarray(target), reduction="none"))
        for index, y in enumerate(target):
            one = row.scipy(**{name: value[index] for name, value in parameters.items()})
            if row.family.discrete:
                points = np.arange(0, one.ppf(1 - 1e-14) + y + 2)
                want = np.sum((one.cdf(points) - (points >= y)) ** 2)
            else:
                low, high = one.ppf(1e-16), one.ppf(1 - 1e-15)
                options = {"limit": 2000, "epsabs": 1e-12, "epsrel": 1e-12}
                inner = np.concatenate([one.ppf(np.linspace(0.001, 0.999, 41)), [y]])
                edges = np.unique(np.clip(np.concatenate([[low, high], inner]), min(low, y), max(high, y)))
                want = sum(
                    integrate.quad(lambda x, one=one, y=y: (one.cdf(x) - (x >= y)) ** 2, a, b, **options)[0]
                    for a, b in itertools.pairwise(edges)
                )
            np.testing.assert_allclose(got[index], want, rtol=1e-6, atol=1e-9)
        trained = {name: jnp.asarray(parameters[name]) for name in (row.location, row.scale) if name}

        def score(trained):
            rest = {name: jnp.asarray(value) for name, value in parameters.items() if name not in trained}
            return jaxloss.crps(row.family(**rest, **trained), jnp.asarray(target))

        check_grads(score, (trained,), order=1, rtol=1e-4, eps=1e-5)


@each_family
def test_from_raw_is_valid_everywhere_and_alive(row):
    size = row.family.raw_size
    extremes = jnp.asarray(np.random.default_rng(6).uniform(-1e4, 1e4, (200, size)), jnp.float32)
    middle = extremes / 200
    for raw in (extremes, middle, jnp.zeros((1, size)), jnp.full((1, size), 1e4), jnp.full((1, size), -1e4)):
        dist = row.family.from_raw(raw)
        for name, value in vars(dist).items():
            assert np.all(row.family.domain[name].holds(np.asarray(value))), name
    gradients = jax.vmap(jax.jacobian(lambda raw: jnp.stack(jax.tree.leaves(row.family.from_raw(raw)))))(middle)
    assert np.all(np.isfinite(gradients))
    assert np.all(np.any(np.asarray(gradients) != 0, axis=1)), "each raw number moves some parameter"


@each(slow=(*LONG, "Normal", "LogNormal"))
def test_initial_bias_is_the_likeliest_constant(row):
    """No constant nearby is likelier, whatever the unit and the weights; several targets at once."""
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(8)
    parameters = {name: value[:1] for name, value in row.draw(random, 1).items()}
    scipy = row.scipy(**{name: np.repeat(value, 300) for name, value in parameters.items()})
    target = np.stack([row.sampled(scipy, random) for _ in range(2)], 1)
    weights = random.uniform(0.5, 2, 300)
    with jax.enable_x64(True):
        bias = row.family.initial_bias(target.astype(np.float64), weights)
        assert bias.shape == (2, row.family.raw_size)

        @jax.jit
        def objective(raw, column):
            dist = row.family.from_raw(jnp.broadcast_to(raw, (300, len(raw))))
            return jaxloss.nll(dist, column, weights=weights)

        for raw, column in zip(bias, jnp.asarray(target.T, jnp.float64), strict=True):
            start = np.asarray(raw) + 0.1
            best = optimize.minimize(
                objective, start, (column,), "Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}
            )
            assert objective(raw, column) <= best.fun + 1e-9


@pytest.mark.usefixtures("eager")
@each_short_family
def test_shapes_masks_and_half_precision(row):
    parameters, _, target = ordinary(row, count=6, seed=7)
    dist, target = made(row, parameters, jnp.float32), jnp.asarray(target, jnp.float32)
    where = jnp.array([True, False, True, True, False, True])
    hidden = jax.tree.map(lambda leaf: jnp.where(where, leaf, jnp.nan), (dist, target))
    for loss in (jaxloss.nll, jaxloss.crps) if row.crps else (jaxloss.nll,):
        value, gradient = jax.value_and_grad(lambda dist, loss=loss: loss(dist, hidden[1], where=where))(hidden[0])
        kept = jax.tree.map(lambda leaf: leaf[where], (dist, target))
        want, kept_gradient = jax.value_and_grad(lambda dist, loss=loss, kept=kept: loss(dist, kept[1]))(kept[0])
        np.testing.assert_allclose(value, want, rtol=1e-5)
        for got, full in zip(jax.tree.leaves(gradient), jax.tree.leaves(kept_gradient), strict=True):
            np.testing.assert_allclose(got[where], full, rtol=1e-4, atol=1e-6)
            assert np.all(got[~where] == 0)
        with pytest.raises(jaxloss.ShapeError, match=r"\(6, 1\)"):
            loss(dist, target[:, None])
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), dist)
        score, slopes = jax.value_and_grad(lambda half, loss=loss: loss(half, target))(half)
        assert score.dtype == jnp.float32
        assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(slopes))
    for name in parameters:
        wrong = {**parameters, name: parameters[name][:, None]}
        with pytest.raises(jaxloss.ShapeError, match=name if len(parameters) > 1 else r"\(6, 1\)"):
            jaxloss.nll(made(row, wrong, jnp.float32), target)


@each_family
def test_a_bad_parameter_is_named(row):
    parameters = row.draw(np.random.default_rng(0), 3)
    for name in parameters:
        bad = {**parameters, name: np.array([1.0, np.nan, 1.0])}
        with pytest.raises(ValueError, match=f"{row.name}: {name} must be"):
            row.family(**bad)


def test_every_family_has_a_row():
    classes = {value for value in vars(jaxloss).values() if isinstance(value, type)}
    exported = {value for value in classes if issubclass(value, Distribution) and value.raw_size}
    assert exported == {row.family for row in FAMILIES}
