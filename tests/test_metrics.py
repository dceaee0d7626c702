"""Scores are their definitions and scikit-learn's; safe at a perfect fit, far from zero, and over nothing."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from support import close, hvp, refused

import jaxloss
from jaxloss import metrics, rmse

RANDOM = np.random.default_rng(0)
PRED, TARGET = (RANDOM.standard_normal((6, 3)).astype(np.float32) for _ in range(2))
WEIGHTS = np.float32(RANDOM.uniform(0.1, 2, (6, 1)))
WHERE = RANDOM.uniform(size=(6, 3)) < 0.7
D2_MAE, D2_MSE = metrics.d2(jaxloss.mae), metrics.d2(jaxloss.mse)


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
        refused(kind, ["rmse: "], call)


# The other scores, by their definitions in float64 NumPy. A group is one vector.


def average(values, weights):
    return (values * weights).sum() / weights.sum()


def median(values, weights):
    """The middle of the interval of numbers with half of the weight on either side."""
    order = np.argsort(values)
    values, below = values[order], np.cumsum(weights[order]) / weights.sum()
    return (values[np.argmax(below >= 0.5 - 1e-9)] + values[np.argmax(below > 0.5 + 1e-9)]) / 2


def against(error, spread):
    return 1 - error / spread


DEFINITIONS = {
    metrics.bias: lambda p, t, w: average(p - t, w),
    metrics.max_error: lambda p, t, w: np.abs(p - t).max(),
    metrics.median_absolute_error: lambda p, t, w: median(np.abs(p - t), w),
    metrics.r2: lambda p, t, w: against(average((p - t) ** 2, w), average((t - average(t, w)) ** 2, w)),
    metrics.explained_variance: lambda p, t, w: against(
        average((p - t - average(p - t, w)) ** 2, w), average((t - average(t, w)) ** 2, w)
    ),
    metrics.pearson: lambda p, t, w: (
        average((p - average(p, w)) * (t - average(t, w)), w)
        / np.sqrt(average((p - average(p, w)) ** 2, w) * average((t - average(t, w)) ** 2, w))
    ),
    D2_MAE: lambda p, t, w: against(average(np.abs(p - t), w), average(np.abs(t - median(t, w)), w)),
    D2_MSE: lambda p, t, w: against(average((p - t) ** 2, w), average((t - average(t, w)) ** 2, w)),
}
each_score = pytest.mark.parametrize("score", DEFINITIONS, ids=lambda score: score.__name__)


def by_definition(score, pred, target, weights, where, axis):
    """The score of every group, one after the other."""
    weights = np.broadcast_to(1.0 if weights is None else weights, pred.shape).astype(np.float64)
    where = np.broadcast_to(True if where is None else where, pred.shape)
    axes = tuple(range(pred.ndim)) if axis is None else (axis,)
    kept = [number for number in range(pred.ndim) if number not in axes]
    lines = [np.moveaxis(x, kept, range(len(kept))) for x in (pred, target, weights, where)]
    lines = [x.reshape([pred.shape[number] for number in kept] + [-1]) for x in lines]
    found = np.empty(lines[0].shape[:-1])
    for place in np.ndindex(found.shape):
        keep = lines[3][place]
        p, t, w = (np.float64(x[place])[keep] for x in lines[:3])
        found[place] = DEFINITIONS[score](p, t, w)
    return found


@each_score
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_scores_are_their_definitions(score, axis):
    for weights, where in ((None, None), (WEIGHTS, None), (None, WHERE), (WEIGHTS, WHERE)):
        pred, target = (PRED, TARGET) if axis != 1 else (PRED.T, TARGET.T)
        weights, where = (x if x is None or axis != 1 else x.T for x in (weights, where))
        got = score(pred, target, weights=weights, where=where, axis=axis)
        close(got, by_definition(score, pred, target, weights, where, axis), 2e-6, 2e-6)


@each_score
def test_scores_far_from_zero(score):
    target = np.float32(RANDOM.normal(1e6, 1, (4000, 2)))
    pred = np.float32(target + RANDOM.normal(0.1, 0.5, target.shape))
    weights = np.float32(RANDOM.uniform(0.1, 2, (4000, 1)))
    for axis in (None, 0):
        got = score(pred, target, weights=weights, axis=axis)
        close(got, by_definition(score, pred, target, weights, None, axis), 1e-5, 1e-6)


@each_score
def test_scores_without_masked_entries_and_over_nothing(score):
    spoiled = [np.where(WHERE, array, np.nan) for array in (PRED, TARGET, np.broadcast_to(WEIGHTS, PRED.shape))]
    kept = [array[WHERE] for array in (PRED, TARGET, np.broadcast_to(WEIGHTS, PRED.shape))]
    close(score(*spoiled[:2], weights=spoiled[2], where=WHERE), score(*kept[:2], weights=kept[2]))
    zero = np.where(WHERE, 1.0, 0.0)
    close(score(PRED, TARGET, weights=zero), score(*kept[:2]))
    assert np.isnan(score(jnp.zeros(0), jnp.zeros(0)))
    assert np.isnan(score(PRED, TARGET, where=False))
    assert np.isnan(score(PRED, TARGET, weights=0.0))
    assert np.isnan(score(jnp.zeros((0, 2)), jnp.zeros((0, 2)), axis=0)).tolist() == [True, True]
    hidden = np.ones((6, 3), bool)
    hidden[:, 1] = False
    assert np.isnan(score(PRED, TARGET, where=hidden, axis=0)).tolist() == [False, True, False]


@each_score
def test_scores_see_a_nan_that_is_not_masked(score):
    assert np.isnan(score(np.float32([1, 2, np.nan]), np.float32([1, 3, 2])))
    assert np.isnan(score(np.float32([1, 2, 3]), np.float32([1, np.nan, 2])))


@each_score
def test_scores_under_jit_vmap_and_shape_errors(score):
    want = score(PRED, TARGET, axis=0)
    close(jax.jit(lambda p, t: score(p, t, axis=0))(PRED, TARGET), want)
    close(jax.vmap(score, 1)(PRED, TARGET), want)
    assert score(PRED, np.float64(TARGET)).dtype == jnp.float32
    assert score(jnp.bfloat16(PRED), TARGET).dtype == jnp.float32
    for call, kind in (
        (lambda: score(jnp.ones((32, 1)), jnp.ones(32)), jaxloss.ShapeError),
        (lambda: score(PRED, TARGET, where=WEIGHTS), TypeError),
        (lambda: score(PRED, TARGET, axis=2), ValueError),
    ):
        refused(kind, [f"{score.__name__}: "], call)


@pytest.mark.parametrize("score", [metrics.r2, metrics.explained_variance, metrics.pearson, metrics.bias, D2_MSE])
def test_gradients_of_scores(score):
    def value(pred):
        return score(pred, TARGET, weights=WEIGHTS, where=WHERE)

    gradient = jax.grad(value)(PRED)
    assert not np.any(gradient[~WHERE])
    step = 1e-3
    for place in ((0, 0), (2, 1), (5, 2)):
        shifted = [PRED.astype(np.float64) for _ in range(2)]
        shifted[0][place] += step
        shifted[1][place] -= step
        up, down = (by_definition(score, pred, TARGET, WEIGHTS, WHERE, None) for pred in shifted)
        np.testing.assert_allclose(gradient[place], (up - down) / (2 * step), 1e-3, 1e-6)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_scores_at_both_ends_of_the_range(size):
    pred, target = PRED * np.float32(size), TARGET * np.float32(size)
    for score in (metrics.r2, metrics.explained_variance, metrics.pearson):
        close(score(pred, target), score(PRED, TARGET), 1e-5)
        assert np.all(np.isfinite(jax.grad(score)(pred, target)))


def test_constant_targets():
    target = np.full(4, 1e6 + 0.5, np.float32)
    off = target + np.float32([0, 1, 2, -1])
    weights = np.float32([0.1, 0.3, 0.7, 1.1])
    for score in (metrics.r2, metrics.explained_variance, D2_MAE, D2_MSE):
        assert [float(score(pred, target, weights=weights)) for pred in (target, off)] == [1.0, 0.0]
        assert float(score(target[:1], target[:1])) == 1.0
        assert not np.any(np.isnan(jax.grad(score)(target, target)))
    assert float(metrics.explained_variance(target + 3, target)) == 1.0
    assert np.isnan(metrics.pearson(off, target))
    assert np.isnan(metrics.pearson(target, off))


def test_agreement_with_scikit_learn():
    peers = pytest.importorskip("sklearn.metrics")
    pred, target = (RANDOM.lognormal(size=(41, 3)).astype(np.float32) for _ in range(2))
    for weights in (None, RANDOM.integers(1, 5, 41).astype(np.float32)):
        aligned = None if weights is None else weights[:, None]
        pairs = {
            metrics.r2: peers.r2_score,
            metrics.explained_variance: peers.explained_variance_score,
            metrics.median_absolute_error: peers.median_absolute_error,
            rmse: peers.root_mean_squared_error,
            D2_MAE: peers.d2_absolute_error_score,
            metrics.d2(Partial(jaxloss.quantile, level=0.25)): functools.partial(peers.d2_pinball_score, alpha=0.25),
        }
        for score, peer in pairs.items():
            each = score(pred, target, weights=aligned, axis=0)
            close(each, peer(target, pred, sample_weight=weights, multioutput="raw_values"), 2e-6, 2e-6)
            close(each.mean(), np.asarray(peer(target, pred, sample_weight=weights)), 2e-6, 2e-6)
        for power in (1.0, 1.5, 2.0, 3.0):
            score = metrics.d2(Partial(jaxloss.tweedie_deviance, power=power))
            want = peers.d2_tweedie_score(target[:, 0], pred[:, 0], sample_weight=weights, power=power)
            close(score(pred[:, 0], target[:, 0], weights=weights), np.asarray(want), 5e-6, 5e-6)
    close(metrics.max_error(pred[:, 0], target[:, 0]), np.asarray(peers.max_error(target[:, 0], pred[:, 0])))


@pytest.mark.parametrize("delta", [0.01, 1.0, 100.0])
def test_d2_finds_the_best_constant_of_any_convex_loss(delta):
    target = np.float32(RANDOM.standard_t(2, 60))
    pred = np.float32(target + RANDOM.normal(size=60))
    loss = Partial(jaxloss.huber, delta=delta)
    grid = np.linspace(target.min(), target.max(), 200_001)

    def huber(residual):
        size = np.abs(residual)
        return np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))

    best = min(huber(c - np.float64(target)).mean() for c in grid[::50])
    np.testing.assert_allclose(metrics.d2(loss)(pred, target), 1 - huber(np.float64(pred) - target).mean() / best, 1e-4)
    shifted = metrics.d2(loss)(np.float32(np.float64(pred) + 1024), np.float32(np.float64(target) + 1024))
    np.testing.assert_allclose(shifted, metrics.d2(loss)(pred, target), 0, 2e-3 + 1e-3 / delta)


def test_d2_says_what_it_needs():
    with pytest.raises(TypeError, match=r"^d2\(tukey\): its best constant is not known: only for a loss whose traits"):
        metrics.d2(jaxloss.tukey)
    with pytest.raises(TypeError, match=r"^d2\(plain\): needs a loss"):
        metrics.d2(plain)
    with pytest.raises(ValueError, match="delta must be positive"):
        metrics.d2(Partial(jaxloss.huber, delta=-1.0))
    traced = jax.jit(lambda delta: metrics.d2(Partial(jaxloss.huber, delta=delta))(PRED, TARGET))
    close(traced(1.0), metrics.d2(jaxloss.huber)(PRED, TARGET))
    traced = jax.jit(lambda level: metrics.d2(Partial(jaxloss.quantile, level=level))(PRED, TARGET))
    close(traced(0.5), D2_MAE(PRED, TARGET))


@pytest.mark.slow
def test_medians_of_many_entries_count_in_integers():
    errors = np.zeros(2**24 + 3, np.float32)
    errors[: 2**23 + 1] = 1.0  # just under half of them
    assert float(metrics.median_absolute_error(errors, np.zeros_like(errors))) == 0.0
    errors[2**23 + 1] = 1.0  # just over
    assert float(metrics.median_absolute_error(errors, np.zeros_like(errors))) == 1.0
