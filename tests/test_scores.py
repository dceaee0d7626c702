"""Scores of distributions, intervals and samples, against their definitions in NumPy and SciPy."""

from __future__ import annotations

import csv
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from support import ROOT, close, refused

import jaxloss
from jaxloss import Ensemble, Interval, Normal, beta_nll, censored_nll, crps, energy_score, interval_score, mse, nll

RANDOM = np.random.default_rng(0)
LOC, SCALE, TARGET = RANDOM.normal(size=(6, 2)), np.exp(RANDOM.normal(size=(6, 2))), 2 * RANDOM.normal(size=(6, 2))
SAMPLES = RANDOM.normal(size=(7, 6, 2))


def normal(dtype=jnp.float32) -> Normal:
    return Normal(jnp.asarray(LOC, dtype), jnp.asarray(SCALE, dtype))


def test_gaussian_nll_of_fixed_scale_is_squared_error():
    dist = Normal(jnp.asarray(LOC, jnp.float32), jnp.full((6, 2), 2.0))
    want = mse(dist.loc, TARGET) / 8 + np.log(2) + 0.5 * np.log(2 * np.pi)
    close(nll(dist, TARGET), want)


def test_nll_has_the_call_shape_of_a_loss():
    dist, weights, where = normal(), np.float32(RANDOM.uniform(1, 2, (6, 1))), LOC > -0.5
    each = np.asarray(nll(dist, TARGET, reduction="none"))
    assert each.shape == (6, 2)
    close(nll(dist, TARGET, weights=weights, where=where), np.sum((each * weights)[where]) / where.sum())
    close(nll(dist, TARGET, axis=0), each.mean(0))
    parts = jaxloss.loss_sum(nll, dist, TARGET, where=where)
    assert (float(parts.weight), float(parts.total)) == (where.sum(), pytest.approx(each[where].sum(), rel=1e-6))
    assert jax.tree.structure(jaxloss.slope(nll)(dist, TARGET)) == jax.tree.structure(dist)
    with pytest.raises(TypeError, match="one array, got Normal"):
        jaxloss.curvature(nll)(dist, TARGET)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beta_nll_weighs_the_gradient_of_nll(beta):
    gradient, plain = (jax.grad(loss)(normal(), TARGET) for loss in (jax.tree_util.Partial(beta_nll, beta=beta), nll))
    weight = SCALE ** (2 * beta)
    close(gradient, Normal(plain.loc * weight, plain.scale * weight), rtol=1e-5)
    close(
        beta_nll(normal(), TARGET, beta=beta, reduction="none"),
        weight * np.asarray(nll(normal(), TARGET, reduction="none")),
    )


# Samples


def fair_score(samples, target, length):
    """mean |x − y| − ½ mean |x − x′|, pair by pair."""
    count = len(samples)
    pairs = [length(a - b) for i, a in enumerate(samples) for j, b in enumerate(samples) if i != j]
    return sum(length(x - target) for x in samples) / count - 0.5 * sum(pairs) / (count * (count - 1))


def test_crps_of_an_ensemble_is_the_fair_estimate():
    got = crps(Ensemble.of(np.float32(SAMPLES)), TARGET, reduction="none")
    close(got, fair_score(SAMPLES, TARGET, np.abs), rtol=1e-5)


def test_crps_of_an_ensemble_equals_scoringrules():
    scoringrules = pytest.importorskip("scoringrules")
    want = scoringrules.crps_ensemble(TARGET, np.moveaxis(SAMPLES, 0, -1), estimator="fair")
    close(crps(Ensemble.of(np.float32(SAMPLES)), TARGET, reduction="none"), np.asarray(want), rtol=1e-5)


def test_crps_of_many_samples_is_that_of_their_distribution():
    dist = normal()
    samples = dist.sample(jax.random.key(0), (40_000,))
    error = 5 * np.asarray(SCALE) / 200
    got, want = crps(Ensemble.of(samples), TARGET, reduction="none"), crps(dist, TARGET, reduction="none")
    assert np.all(np.abs(np.asarray(got - want)) < error)


def test_energy_score_is_its_definition():
    want = fair_score(SAMPLES, TARGET, lambda v: np.sqrt((v**2).sum(-1)))
    close(energy_score(np.float32(SAMPLES), np.float32(TARGET), reduction="none"), want, rtol=1e-5)
    large = energy_score(np.float32(1e30 * SAMPLES), np.float32(1e30 * TARGET), reduction="none")
    close(large / 1e30, want, rtol=1e-5)


def test_energy_score_of_numbers_is_crps():
    samples, target = np.float32(SAMPLES[..., :1]), np.float32(TARGET[:, :1])
    want = crps(Ensemble.of(samples[..., 0]), target[:, 0], reduction="none")
    close(energy_score(samples, target, reduction="none"), want, rtol=1e-5, atol=1e-6)


def test_sample_scores_are_differentiable_where_samples_coincide():
    same = jnp.zeros((3, 2, 2))
    for score in (energy_score, lambda samples, target: crps(Ensemble.of(samples), target)):
        assert np.all(np.asarray(jax.grad(score)(same, jnp.zeros((2, 2)))) == 0)
    where = jnp.array([True, False])
    hidden = same.at[:, 1].set(jnp.nan)
    gradient = jax.grad(energy_score)(hidden, jnp.ones((2, 2)), where=where)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient)[:, 1] == 0)


# Intervals


def test_interval_score_is_its_definition_and_asks_for_quantiles():
    lower, upper = LOC - SCALE, LOC + SCALE
    pred = Interval(jnp.asarray(lower, jnp.float32), jnp.asarray(upper, jnp.float32))
    outside = np.maximum(lower - TARGET, 0) + np.maximum(TARGET - upper, 0)
    close(interval_score(pred, TARGET, coverage=0.8, reduction="none"), upper - lower + 2 / 0.2 * outside, rtol=2e-6)
    target = jnp.asarray(np.random.default_rng(1).normal(size=1001), jnp.float32)
    ends = jnp.linspace(-3, 3, 601)

    def mean_score(lower, upper):
        return interval_score(Interval(jnp.full(1001, lower), jnp.full(1001, upper)), target, coverage=0.8)

    best = ends[jnp.argmin(jax.vmap(lambda lower: mean_score(lower, 9.0))(ends))]
    assert abs(float(best) - float(jnp.quantile(target, 0.1))) < 0.02


def test_interval_score_is_stationary_where_an_end_is_hit():
    pred = Interval(jnp.zeros(1), jnp.ones(1))
    gradient = jax.grad(interval_score)(pred, jnp.zeros(1), coverage=0.9)
    close(gradient, Interval(np.array([-1.0]), np.array([1.0])))


def test_intervals_and_quantiles_are_ordered_by_construction():
    raw = jnp.asarray(np.random.default_rng(2).uniform(-50, 50, (50, 5)), jnp.float32)
    assert np.all(np.diff(jaxloss.ordered(raw), axis=-1) >= 0)
    pred = Interval.from_raw(raw[:, :2])
    assert np.all(np.asarray(pred.lower) <= np.asarray(pred.upper))


# Censoring


@pytest.mark.parametrize("code", [-1, 0, 1])
def test_censored_nll_equals_scipy(code):
    stats = pytest.importorskip("scipy.stats")
    target = np.concatenate([LOC.ravel() + k * SCALE.ravel() for k in (-30, -3, 0.2, 3, 30)])
    loc, scale = np.tile(LOC.ravel(), 5), np.tile(SCALE.ravel(), 5)
    with jax.enable_x64(True):
        dist = Normal(jnp.asarray(loc), jnp.asarray(scale))
        got = censored_nll(dist, jnp.asarray(target), censoring=code, reduction="none")
        exact = {-1: stats.norm.logcdf, 0: stats.norm.logpdf, 1: stats.norm.logsf}[code](target, loc, scale)
        np.testing.assert_allclose(got, -exact, rtol=1e-10)
        assert np.all(np.isfinite(jax.grad(censored_nll)(dist, jnp.asarray(target), censoring=code).loc))


def test_interval_censoring_is_right_in_both_tails():
    mpmath = pytest.importorskip("mpmath")
    low = np.array([-12.0, -8.0, -1.0, 0.0, 0.5, 8.0, 12.0, 3.0])
    high = low + np.array([1.0, 1e-3, 2.0, 1e-5, 1.0, 1.0, 1e-2, np.inf])
    zeros = jnp.zeros(8)
    got = censored_nll(Normal(zeros, zeros + 1), jnp.asarray(low), censoring=1, upper=high, reduction="none")
    want = [float(-mpmath.log(mpmath.ncdf(b) - mpmath.ncdf(a))) for a, b in zip(low, high, strict=True)]
    np.testing.assert_allclose(got, want, rtol=2e-5)
    with jax.enable_x64(True):
        zeros = jnp.zeros(8, jnp.float64)

        def total(dist):
            return censored_nll(dist, jnp.asarray(low), censoring=1, upper=jnp.asarray(high))

        check_grads(total, (Normal(zeros, zeros + 1),), order=1, rtol=1e-3, eps=1e-5)


def test_censoring_is_per_row():
    dist, code = normal(), np.tile([[-1], [0], [1]], (2, 1))
    each = np.stack([censored_nll(dist, TARGET, censoring=c, reduction="none") for c in (-1, 0, 1)])
    want = np.take_along_axis(each, np.broadcast_to(code + 1, TARGET.shape)[None], 0)[0]
    close(censored_nll(dist, TARGET, censoring=code, reduction="none"), want)


# Units


def test_nll_in_target_units_is_that_in_standard_units_plus_log_scale():
    y = np.random.default_rng(3).normal(50, 7, (40, 2)) * [1, 100]
    units = jaxloss.Standardizer.fit(y)
    with jax.enable_x64(True):
        shape = (40, 2)
        dist = Normal(0.1 * jnp.ones(shape), 0.7 * jnp.ones(shape))
        there = nll(units.inverse_distribution(dist), y, axis=0)
        here = nll(dist, units.transform(y), axis=0)
        np.testing.assert_allclose(there, here + np.log(units.scale), rtol=1e-13)
        interval = units.inverse_distribution(Interval(dist.loc - 1, dist.loc + 1))
        np.testing.assert_allclose(interval.lower, units.inverse(dist.loc - 1))
    with pytest.raises(TypeError, match="use inverse"):
        units.inverse_distribution(y)
    with pytest.raises(jaxloss.ShapeError, match="columns"):
        units.inverse_distribution(Normal(jnp.zeros(3), jnp.ones(3)))


# Calibration


def test_calibration_equals_counting():
    dist, where, weights = normal(), LOC > -0.5, np.float32(RANDOM.uniform(1, 2, (6, 1)))
    share = np.asarray(dist.cdf(TARGET))
    levels = np.array([0.5, 0.8, 0.95])
    inside = np.abs(share - 0.5)[..., None] <= levels / 2
    full = np.broadcast_to(weights, share.shape) * where
    want = (inside * full[..., None]).sum((0, 1)) / full.sum()
    close(jaxloss.coverage(dist, TARGET, levels, weights=weights, where=where), want)
    close(jaxloss.coverage(dist, TARGET, 0.8, axis=0), inside[..., 1].mean(0))
    grid = np.arange(0.05, 0.96, 0.05)
    want = np.abs((share[..., None] <= grid).mean((0, 1)) - grid).mean()
    close(jaxloss.calibration_error(dist, TARGET), want, rtol=1e-5)
    close(jaxloss.sharpness(dist, 0.9), 2 * 1.6448536 * SCALE.mean(), rtol=1e-5)
    assert np.isnan(jaxloss.coverage(dist, TARGET, 0.5, where=False))


def test_right_distributions_are_calibrated():
    """Fitted by nll on 4,000 rows of the family it assumes, and judged on 20,000 others."""
    random = np.random.default_rng(4)
    x = random.uniform(-1, 1, 24_000)
    y = 3 * x + 2 + np.exp(0.5 * x - 1) * random.normal(size=24_000)
    x, y = (jnp.asarray(part, jnp.float32) for part in (x, y))

    def predict(params, x):
        a, b, c, d = params
        return Normal(a + b * x, jnp.exp(c + d * x))

    params = newton(lambda params: nll(predict(params, x[:4000]), y[:4000]), jnp.zeros(4), 20)
    dist, target = predict(params, x[4000:]), y[4000:]
    levels = np.array([0.5, 0.8, 0.95])
    error = np.abs(np.asarray(jaxloss.coverage(dist, target, levels)) - levels)
    assert np.all(error < 3 * np.sqrt(levels * (1 - levels) * (1 / 20_000 + 1 / 4000)))
    assert jaxloss.calibration_error(dist, target) < 0.01
    assert np.abs(np.histogram(jaxloss.pit(dist, target), 10, (0, 1))[0] / 2000 - 1).max() < 0.1
    wide = Normal(dist.loc, 2 * dist.scale)
    assert jaxloss.calibration_error(wide, target) > 0.05


def newton(objective, params, steps):
    """Minimise by Newton's method, with a step halved until it helps."""

    @jax.jit
    def step(params):
        gradient, hessian = jax.grad(objective)(params), jax.hessian(objective)(params)
        values, vectors = jnp.linalg.eigh(hessian)
        direction = vectors @ ((vectors.T @ gradient) / jnp.maximum(jnp.abs(values), 1e-6 * jnp.abs(values).max()))
        scales = 0.5 ** jnp.arange(20.0)
        tried = jax.vmap(lambda scale: objective(params - scale * direction))(scales)
        return params - scales[jnp.nanargmin(tried)] * direction

    for _ in range(steps):
        params = step(params)
    return params


def test_engel_with_spread_that_grows_with_income():
    """The maximum of the likelihood, as published with the data."""
    path = pathlib.Path(ROOT).parent / "shared" / "data" / "classical" / "engel.csv"
    if not path.exists():
        pytest.skip("the shared data are not here")
    with path.open() as lines:
        rows = [(float(row["income"]) / 1000, float(row["foodexp"]) / 1000) for row in csv.DictReader(lines)]
    with jax.enable_x64(True):
        x, y = jnp.asarray(rows).T

        def total(params):
            a, b, c, d = params
            return nll(Normal(a + b * x, jnp.exp(0.5 * (c + d * x))), y, reduction="sum")

        params = newton(total, jnp.array([0.0, 0.5, -3.0, 0.0]), 40)
        want = [0.06289411625, 0.5815395595, -7.11173233, 2.014110183]
        np.testing.assert_allclose(params, want, rtol=1e-6)
        np.testing.assert_allclose(total(params), -269.6679404, rtol=1e-9)


# Bad input

REFUSED = {
    "negative scale": (ValueError, "Normal: scale must be positive", lambda: Normal(0.0, -1.0)),
    "scale of 0 in an array": (ValueError, "Normal: scale", lambda: Normal(np.zeros(2), np.array([1.0, 0.0]))),
    "ends exchanged": (ValueError, "lower must not be above upper", lambda: Interval(np.ones(2), np.zeros(2))),
    "leaves that differ": (
        jaxloss.ShapeError,
        "pred.scale has shape (6, 1)",
        lambda: nll(Normal(jnp.zeros(6), jnp.ones((6, 1))), jnp.zeros(6)),
    ),
    "target of another shape": (jaxloss.ShapeError, ".squeeze(-1)", lambda: crps(normal(), jnp.zeros((6, 2, 1)))),
    "infinite target": (ValueError, "a target must be finite", lambda: nll(normal(), np.full((6, 2), np.inf))),
    "integer parameters": (TypeError, "floating", lambda: nll(Normal(jnp.arange(2), jnp.ones(2)), jnp.zeros(2))),
    "raw of the wrong size": (jaxloss.ShapeError, "2 outputs per target", lambda: Normal.from_raw(jnp.zeros((4, 3)))),
    "raw of an interval": (jaxloss.ShapeError, "last axis must be 2", lambda: Interval.from_raw(jnp.zeros(3))),
    "one sample": (jaxloss.ShapeError, "at least 2 samples", lambda: Ensemble.of(jnp.zeros((1, 4)))),
    "coverage of 1": (ValueError, "coverage", lambda: interval_score(Interval(LOC, LOC), TARGET, coverage=1.0)),
    "unknown censoring": (ValueError, "censoring", lambda: censored_nll(normal(), TARGET, censoring=2)),
    "negative beta": (ValueError, "beta", lambda: beta_nll(normal(), TARGET, beta=-1)),
    "level of 95": (ValueError, "strictly between 0 and 1", lambda: jaxloss.coverage(normal(), TARGET, 95)),
    "levels of rank 2": (jaxloss.ShapeError, "a vector", lambda: jaxloss.coverage(normal(), TARGET, [[0.5]])),
    "value of another shape": (jaxloss.ShapeError, "transpose", lambda: normal().cdf(np.zeros((2, 6)))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_named_in_one_line(case):
    kind, message, call = REFUSED[case]
    refused(kind, [message], call)
