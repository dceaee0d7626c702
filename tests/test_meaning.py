"""What a loss means: zero at a perfect fit, growing with the residual, minimised by what it says it estimates."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from catalogue import POSITIVE, REAL, ROWS, Row, each, each_loss
from hypothesis import given
from hypothesis import strategies as st

import jaxloss

ROUNDING = 4e-6
WEIGHTED = ""  # mape and smape: no functional of the sample alone
FUNCTIONALS = {
    "mean": lambda values, **settings: np.mean(values),
    "median": lambda values, **settings: np.median(values),
    "quantile(level)": lambda values, level: np.quantile(values, level, method="inverted_cdf"),
    "expectile(level)": lambda values, level: expectile(values, level),
    "geometric mean of 1 + y, less 1": lambda values: np.expm1(np.log1p(values).mean()),
}


def expectile(values, level):
    """The root of Σ |level − 1[y < e]|·(y − e), by bisection."""
    low, high = np.min(values), np.max(values)
    for _ in range(100):
        middle = (low + high) / 2
        above, below = np.maximum(values - middle, 0).sum(), np.maximum(middle - values, 0).sum()
        low, high = (middle, high) if level * above > (1 - level) * below else (low, middle)
    return (low + high) / 2


def numbers(row: Row, size: int):
    """Arrays on the row's line, of a few magnitudes, always of one shape: one compilation."""
    real = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
    positive = st.floats(2.0**-7, 2.0**10, width=32)
    entry = real if row.line is REAL else positive.map(lambda number: number + row.line.lower)
    return st.lists(entry, min_size=size, max_size=size).map(lambda values: np.array(values, np.float32))


@functools.cache
def compiled(loss):
    return jax.jit(lambda pred, target, settings: loss(pred, target, reduction="none", **settings))


def losses(row: Row, pred, target, **settings):
    """Elementwise losses in float64 NumPy, of float32 arrays."""
    target = np.broadcast_to(np.float32(target), pred.shape)
    return np.asarray(compiled(row.loss)(pred, target, settings), np.float64)


@each([row for row in ROWS if row.zero_at_fit])
@given(data=st.data())
def test_zero_at_a_perfect_fit_and_nowhere_negative(row, data):
    pred, target = data.draw(numbers(row, 8)), data.draw(numbers(row, 8))
    for settings in row.settings:
        assert not losses(row, target, target, **settings).any()
        assert (losses(row, pred, target, **settings) >= 0).all()


@each_loss
@given(data=st.data())
def test_a_loss_does_not_fall_as_the_prediction_moves_away(row, data):
    preds, target = np.sort(data.draw(numbers(row, 32))), data.draw(numbers(row, 1))[0]
    for settings in row.settings:
        values = losses(row, preds, target, **settings)
        above, below = values[preds >= target], values[preds <= target][::-1]
        for outward in (above, below):
            assert (np.diff(outward) >= -ROUNDING * row.tolerance * np.abs(outward[1:])).all()


@each([row for row in ROWS if jaxloss.traits(row.loss).symmetric])
@given(data=st.data())
def test_symmetric_in_the_sign_of_the_residual(row, data):
    residual = data.draw(numbers(row, 8))
    for settings in row.settings:
        positive, negative = losses(row, residual, 0.0, **settings), losses(row, -residual, 0.0, **settings)
        assert (positive == negative).all()
        if not jaxloss.traits(row.loss).residual:
            continue
        exchanged = losses(row, np.zeros_like(residual), residual, **settings)
        assert (exchanged == positive).all()


@each_loss
def test_a_loss_is_called_symmetric_exactly_when_it_is(row):
    first, second = losses(row, np.float32([2.5, 0.5]), 1.5, **row.settings[-1])
    assert (abs(first - second) <= 1e-3 * abs(first)) == jaxloss.traits(row.loss).symmetric


@each([row for row in ROWS if jaxloss.traits(row.loss).convex])
@given(data=st.data())
def test_convex_in_the_prediction(row, data):
    one, other, target = (data.draw(numbers(row, 8)) for _ in range(3))
    for settings in row.settings:
        middle = losses(row, (one + other) / 2, target, **settings)
        chord = (losses(row, one, target, **settings) + losses(row, other, target, **settings)) / 2
        assert (middle <= chord * (1 + ROUNDING) + 1e-7).all()
        assert (np.asarray(jaxloss.curvature(row.loss)(one, target, **settings)) >= 0).all()


@each_loss
def test_bounded_influence(row):
    """The slope at ever farther targets stays bounded where the loss says so, and grows where it does not."""
    target = np.float32([1e2, 1e4, 1e8, 1e16, 1e30])
    target = np.concatenate([target, -target]) if row.line is REAL else target
    grows = []
    for settings in row.settings:
        slopes = np.abs(jaxloss.slope(row.loss)(np.ones_like(target), target, **settings)).reshape(-1, 5)
        grows.append((slopes.max(1) > 2 * slopes[:, 0].max() + 1e-6).any())
    assert any(grows) == (not jaxloss.traits(row.loss).bounded_influence)


@each([row for row in ROWS if jaxloss.traits(row.loss).estimates in FUNCTIONALS])
@given(data=st.data())
def test_the_minimising_constant_is_what_the_loss_estimates(row, data):
    sample = data.draw(numbers(row, 9))
    for settings in row.settings:
        level = {name: value for name, value in settings.items() if name == "level"}
        best = FUNCTIONALS[jaxloss.traits(row.loss).estimates](sample.astype(np.float64), **level)
        spread = max(np.ptp(sample), 1e-2 * abs(best), 1e-3)
        steps = np.array([0, *(sign * size for size in (1e-2, 0.1, 0.5) for sign in (-1, 1))])
        constants = best + spread * steps
        constants = np.where(constants > row.line.lower, constants, best)
        with jax.enable_x64(True):
            pred = jnp.broadcast_to(jnp.asarray(constants)[:, None], (constants.size, sample.size))
            target = jnp.broadcast_to(jnp.asarray(sample, jnp.float64), pred.shape)
            totals = np.asarray(row.loss(pred, target, axis=-1, **settings))
        assert (totals[0] <= totals * (1 + 1e-9) + 1e-12).all()


@each_loss
def test_every_loss_says_what_it_estimates(row):
    assert jaxloss.traits(row.loss).estimates in {*FUNCTIONALS, "M-estimate", WEIGHTED}


def test_mape_estimates_the_median_weighted_by_the_inverse_of_the_target():
    random = np.random.default_rng(0)
    target = np.exp(random.standard_normal(101))
    order = np.argsort(target)
    share = np.cumsum(1 / target[order]) / np.sum(1 / target)
    median = target[order][np.searchsorted(share, 0.5)]
    pred = np.broadcast_to(np.sort(target)[:, None], (101, 101)).astype(np.float32)
    totals = np.asarray(jaxloss.mape(pred, np.broadcast_to(target, pred.shape), axis=-1))
    assert np.sort(target)[totals.argmin()] == median < np.median(target)


@each_loss
def test_a_loss_is_finite_inside_the_domain_it_states_and_nan_outside(row):
    """Of predictions and targets; the row's line is that domain, but for a target's lower end, which may be taken."""
    traits = jaxloss.traits(row.loss)
    assert traits.pred == {REAL: jaxloss.contract.REAL, POSITIVE: jaxloss.contract.POSITIVE}.get(
        row.line, jaxloss.contract.ABOVE_MINUS_ONE
    )
    points = np.float32([-1e3, -1.5, -1, -0.5, -1e-3, 0, 1e-3, 0.5, 1, 2, 1e3])
    pred, target = (array.ravel() for array in np.meshgrid(points, points))
    values = losses(row, pred, target, **row.usual)
    inside = traits.pred.holds(pred) & traits.target.holds(target)
    assert np.isfinite(values[inside]).all()
    negative = (pred < row.line.lower) | (target < row.line.lower)
    assert np.isnan(values[negative]).all()
    assert (points[traits.target.holds(points)] >= row.line.lower).all()


@each([row for row in ROWS if jaxloss.traits(row.loss).convex and jaxloss.traits(row.loss).symmetric])
@given(data=st.data())
def test_the_centre_of_a_symmetric_sample_minimises(row, data):
    half = data.draw(numbers(row, 4)) / 64
    sample = np.concatenate([half, -half, [0.0]]).astype(np.float32)
    for settings in row.settings:
        slopes = np.asarray(jaxloss.slope(row.loss)(np.zeros_like(sample), sample, **settings), np.float64)
        assert math.fsum(slopes) == 0
