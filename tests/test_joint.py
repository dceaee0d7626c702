"""Mixtures and multivariate normals against explicit sums, scipy.stats, integrals and their own samples."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from mpmath import exp, log, mp, mpf, pi
from support import refused

import jaxloss
from jaxloss import Laplace, Mixture, MultivariateNormal, Normal, Poisson, crps, loss_sum, nll, slope

RANDOM = np.random.default_rng(0)
K, D = 3, 3
LOGITS, LOC = RANDOM.standard_normal((2, 5, 4, K))
SCALE = np.exp(RANDOM.standard_normal((5, 4, K)))
TARGET = 2 * RANDOM.standard_normal((5, 4))
VECTORS, CENTRE = RANDOM.standard_normal((2, 5, 4, D))
FACTOR = np.tril(RANDOM.standard_normal((5, 4, D, D)), -1) + np.eye(D) * np.exp(RANDOM.standard_normal((5, 4, D, 1)))
WHERE = RANDOM.uniform(size=(5, 4)) < 0.6


def mixture(dtype=None, family=Normal):
    logits, loc, scale = (jnp.asarray(array, dtype) for array in (LOGITS, LOC, SCALE))
    return Mixture(logits, family(loc, scale))


def correlated(dtype=None):
    return MultivariateNormal(jnp.asarray(CENTRE, dtype), jnp.asarray(FACTOR, dtype))


WEIGHTS = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)


def summed(method, family="norm"):
    """Σ weight·method over the components, by scipy."""
    stats = pytest.importorskip("scipy.stats")
    each = getattr(getattr(stats, family)(LOC, SCALE), method)(TARGET[..., None])
    return (WEIGHTS * each).sum(-1)


def both(one_mixture, one_correlated):
    return pytest.mark.parametrize(
        ("make", "target"), [(one_mixture, TARGET), (one_correlated, VECTORS)], ids=["Mixture", "MultivariateNormal"]
    )


each = both(mixture, correlated)


@pytest.mark.parametrize(("family", "name"), [(Normal, "norm"), (Laplace, "laplace")])
def test_a_mixture_is_the_sum_of_its_components(family, name):
    with jax.enable_x64(True):
        dist = mixture(family=family)
        np.testing.assert_allclose(dist.log_prob(TARGET), np.log(summed("pdf", name)), rtol=1e-10)
        np.testing.assert_allclose(dist.cdf(TARGET), summed("cdf", name), rtol=1e-10)
        below, above = dist._log_tails(jnp.asarray(TARGET))
        np.testing.assert_allclose(below, np.log(summed("cdf", name)), rtol=1e-9)
        np.testing.assert_allclose(above, np.log(summed("sf", name)), rtol=1e-9)
        variance = SCALE**2 * (2 if family is Laplace else 1)
        mean = (WEIGHTS * LOC).sum(-1)
        np.testing.assert_allclose(dist.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(dist.variance, (WEIGHTS * (variance + LOC**2)).sum(-1) - mean**2, rtol=1e-10)
        level = np.random.default_rng(1).uniform(0.01, 0.99, TARGET.shape)
        np.testing.assert_allclose(dist.cdf(dist.quantile(level)), level, rtol=1e-9)
        np.testing.assert_allclose(dist.quantile(dist.cdf(TARGET)), TARGET, rtol=1e-8)


def test_the_variance_of_a_mixture_does_not_cancel():
    offset = 1e4
    dist = Mixture(jnp.zeros((1, 2)), Normal(offset + jnp.array([[-1.0, 1.0]]), jnp.full((1, 2), 0.5)))
    np.testing.assert_allclose(dist.variance, [1.25], rtol=1e-6)


@pytest.mark.slow
def test_far_out_the_tails_and_densities_of_a_mixture_are_finite():
    dist = Mixture(jnp.zeros((2, 2)), Normal(jnp.array([[0.0, 1.0]] * 2), jnp.ones((2, 2))))
    target = jnp.array([-100.0, 100.0])
    below, above = dist._log_tails(target)
    np.testing.assert_allclose(dist.log_prob(target), [-5000 - 1.612086, -4900.5 - 1.612086], rtol=1e-6)
    np.testing.assert_allclose(below, [-5006.217, 0], rtol=1e-6)
    np.testing.assert_allclose(above, [0, -4906.706 - 0.0], rtol=2e-6)
    for tail in (0, 1):
        gradient = jax.grad(lambda dist, tail=tail: dist._log_tails(target)[tail].sum())(dist)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_a_mixture_in_float32_equals_mpmath():
    random = np.random.default_rng(3)
    logits = np.float32(random.uniform(-30, 30, (200, K)))
    scale = np.float32(10 ** random.uniform(-3, 3, (200, K)))
    loc = np.float32(random.uniform(-8, 8, (200, K)) * scale)
    target = np.float32(random.uniform(-40, 40, 200) * scale[:, 0])
    got = Mixture(jnp.asarray(logits), Normal(jnp.asarray(loc), jnp.asarray(scale))).log_prob(jnp.asarray(target))
    with mp.workdps(40):
        for row in range(200):
            parts = [
                mpf(float(a))
                - ((mpf(float(target[row])) - mpf(float(m))) / mpf(float(s))) ** 2 / 2
                - log(mpf(float(s)))
                for a, m, s in zip(logits[row], loc[row], scale[row], strict=True)
            ]
            total = log(sum(exp(mpf(float(a))) for a in logits[row]))
            want = log(sum(map(exp, parts))) - total - log(2 * pi) / 2
            best = max(parts)
            size = max(abs(want), abs(best - total), max(abs(float(a)) for a in logits[row]))
            assert abs(mpf(float(got[row])) - want) <= 5e-6 * size, row


@pytest.mark.slow
def test_crps_of_a_mixture_of_normals_is_its_integral():
    integrate = pytest.importorskip("scipy.integrate")
    norm = pytest.importorskip("scipy.stats").norm
    with jax.enable_x64(True):
        got = np.asarray(crps(mixture(), TARGET, reduction="none"))
        for index in np.ndindex(2, 4):
            weights, loc, scale, y = WEIGHTS[index], LOC[index], SCALE[index], TARGET[index]

            def squared(x, weights=weights, loc=loc, scale=scale, y=y):
                return ((weights * norm.cdf(x, loc, scale)).sum() - (x >= y)) ** 2

            ends = [y, *loc, *(loc - 3 * scale), *(loc + 3 * scale), *(loc - 12 * scale), *(loc + 12 * scale)]
            want = sum(integrate.quad(squared, a, b, epsrel=1e-11)[0] for a, b in itertools.pairwise(sorted(ends)))
            np.testing.assert_allclose(got[index], want, rtol=1e-6)
        check_grads(lambda dist: crps(dist, TARGET), (mixture(),), order=2, rtol=1e-4)
    one = Mixture(jnp.zeros((5, 1)), Normal(jnp.arange(5.0)[:, None], jnp.ones((5, 1))))
    np.testing.assert_allclose(
        crps(one, jnp.zeros(5), reduction="none"),
        crps(Normal(jnp.arange(5.0), jnp.ones(5)), jnp.zeros(5), reduction="none"),
        rtol=1e-6,
    )
    with pytest.raises(TypeError, match="Mixture has no closed form of crps"):
        crps(mixture(family=Laplace), TARGET)


def test_a_mixture_of_counts_is_discrete():
    rates = jnp.log(jnp.array([[1.0, 20.0], [2.0, 5.0]]))
    dist = Mixture(jnp.zeros((2, 2)), Poisson(rates))
    assert dist.discrete
    target = jnp.array([3.0, 0.5])
    inside = np.log((np.exp(-1) / 6 + np.exp(-20) * 20**3 / 6) / 2)
    np.testing.assert_allclose(dist.log_prob(target), [inside, -np.inf], rtol=1e-6)
    gradient = jax.grad(lambda dist: dist.log_prob(target)[0])(dist)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert not np.any(jax.grad(lambda dist: dist.log_prob(target)[1])(dist).logits)
    np.testing.assert_array_equal(dist.quantile(dist.cdf(jnp.array([3.0, 4.0]))), [3, 4])
    with pytest.raises(ValueError, match=r"whole number.*got 0\.5"):
        nll(dist, np.array([3.0, 0.5]))


def test_multivariate_normal_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    with jax.enable_x64(True):
        dist = correlated()
        covariance = FACTOR @ np.swapaxes(FACTOR, -1, -2)
        np.testing.assert_allclose(dist.covariance, covariance, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(dist.variance, np.diagonal(covariance, axis1=-2, axis2=-1), rtol=1e-12)
        np.testing.assert_array_equal(dist.mean, CENTRE)
        want = [
            stats.multivariate_normal(CENTRE[index], covariance[index]).logpdf(VECTORS[index])
            for index in np.ndindex(5, 4)
        ]
        np.testing.assert_allclose(dist.log_prob(VECTORS), np.reshape(want, (5, 4)), rtol=1e-10)
        np.testing.assert_allclose(nll(dist, VECTORS, reduction="none"), -np.reshape(want, (5, 4)), rtol=1e-10)
        for name, call in (("cdf", dist.cdf), ("quantile", dist.quantile)):
            with pytest.raises(TypeError, match=f"MultivariateNormal has no closed form of {name}"):
                call(VECTORS)


def test_multivariate_normal_in_float32_equals_mpmath():
    random = np.random.default_rng(4)
    diagonal = 10 ** random.uniform(-3, 3, (200, D))
    factor = np.float32(np.tril(random.standard_normal((200, D, D)), -1) * diagonal[..., None])
    factor = factor + np.float32(np.eye(D) * diagonal[..., None])
    steps = np.round(random.uniform(-40, 40, (200, D)) * 32) / 32
    target = np.float32((factor.astype(np.float64) @ steps[..., None])[..., 0])
    got = MultivariateNormal(jnp.zeros((200, D)), jnp.asarray(factor)).log_prob(jnp.asarray(target))
    with mp.workdps(40):
        for row in range(200):
            z = []
            for i in range(D):
                rest = mpf(float(target[row, i])) - sum(mpf(float(factor[row, i, j])) * z[j] for j in range(i))
                z.append(rest / mpf(float(factor[row, i, i])))
            terms = [
                *(-x * x / 2 for x in z),
                *(-log(mpf(float(factor[row, i, i]))) for i in range(D)),
                -D * log(2 * pi) / 2,
            ]
            assert abs(mpf(float(got[row])) - sum(terms)) <= 5e-6 * max(map(abs, terms)), row


@pytest.mark.slow
@each
def test_derivatives(make, target):
    with jax.enable_x64(True):
        check_grads(lambda dist: nll(dist, target), (make(),), order=2, rtol=1e-4)
        check_grads(lambda target: nll(make(), target), (jnp.asarray(target),), order=2, rtol=1e-4)
        slopes = slope(nll)(make(), target)
        gradient = jax.grad(lambda dist: nll(dist, target, reduction="sum"))(make())
        assert type(slopes) is type(make())
        for left, right in zip(jax.tree.leaves(slopes), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-10, atol=1e-12)


@each
def test_losses_have_the_shape_of_the_targets(make, target):
    dist = make(jnp.float32)
    losses = np.asarray(nll(dist, target, reduction="none"))
    assert losses.shape == (5, 4)
    np.testing.assert_allclose(-dist.log_prob(target), losses, rtol=1e-5)
    weights = np.float32([[0.5, 1, 2, 3]])
    np.testing.assert_allclose(nll(dist, target), losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(nll(dist, target, axis=-1), losses.mean(-1), rtol=1e-5)
    np.testing.assert_allclose(nll(dist, target, where=WHERE), losses[WHERE].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        nll(dist, target, weights=weights, reduction="weighted_mean", axis=1),
        (losses * weights).sum(1) / 6.5,
        rtol=1e-5,
    )
    part = loss_sum(nll, dist, target, where=WHERE)
    np.testing.assert_allclose(part.total, losses[WHERE].sum(), rtol=1e-5)
    assert float(part.weight) == WHERE.sum()
    assert float(loss_sum(nll, dist, target, weights=weights, reduction="weighted_mean").weight) == 5 * 6.5
    per_row = jax.jit(jax.vmap(nll))(dist, jnp.asarray(target, jnp.float32))
    np.testing.assert_allclose(per_row, losses.mean(-1), rtol=1e-5)
    one = jax.tree.map(lambda leaf: leaf[2, 3], dist)
    np.testing.assert_allclose(nll(one, target[2, 3]), losses[2, 3], rtol=1e-5)


@each
def test_masked_targets_are_absent(make, target):
    dist, target = make(jnp.float32), jnp.asarray(target, jnp.float32)

    def spoil(leaf):
        return jnp.where(WHERE.reshape(WHERE.shape + (1,) * (leaf.ndim - 2)), leaf, jnp.nan)

    kept = jax.tree.map(lambda leaf: leaf[WHERE], dist)
    value, gradient = jax.value_and_grad(lambda dist: nll(dist, spoil(target), where=WHERE))(jax.tree.map(spoil, dist))
    want, full = jax.value_and_grad(lambda dist: nll(dist, target[WHERE]))(kept)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for got, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(got[WHERE], leaf, rtol=1e-4, atol=1e-6)
        assert not np.any(got[~WHERE])


@each
def test_half_precision_is_computed_in_float32(make, target):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), make(jnp.float32))
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    value, slopes = jax.value_and_grad(lambda dist: nll(dist, target))(half)
    assert value.dtype == jnp.float32
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(slopes))
    np.testing.assert_allclose(value, nll(whole, target), rtol=1e-6)


def test_samples_have_the_distribution():
    stats = pytest.importorskip("scipy.stats")
    dist = jax.tree.map(lambda leaf: leaf[:1, :2], mixture(jnp.float32))
    draws = np.asarray(dist.sample(jax.random.key(0), (20_000,)), np.float64)
    assert draws.shape == (20_000, 1, 2)
    for column in range(2):

        def cdf(x, column=column):
            return (WEIGHTS[0, column] * stats.norm.cdf(x[:, None], LOC[0, column], SCALE[0, column])).sum(-1)

        assert stats.kstest(draws[:, 0, column], cdf).pvalue > 1e-3
    joint = jax.tree.map(lambda leaf: leaf[0, :2], correlated(jnp.float32))
    draws = np.asarray(joint.sample(jax.random.key(1), (40_000,)), np.float64)
    assert draws.shape == (40_000, 2, D)
    for row in range(2):
        z = np.linalg.solve(FACTOR[0, row], (draws[:, row] - CENTRE[0, row]).T)
        np.testing.assert_allclose(np.cov(z), np.eye(D), atol=0.03)
        assert all(stats.kstest(coordinate, "norm").pvalue > 1e-3 for coordinate in z)


@pytest.mark.parametrize("full", [False, True])
def test_affine_is_the_distribution_of_the_scaled_value(full):
    with jax.enable_x64(True):
        random = np.random.default_rng(5)
        shift, scale = (random.standard_normal((5, 1)), np.exp(random.standard_normal((1, 4)))) if full else (3.0, 0.5)
        moved = mixture().affine(shift, scale)
        np.testing.assert_allclose(moved.log_prob(shift + scale * TARGET), mixture().log_prob(TARGET) - np.log(scale))
        np.testing.assert_allclose(moved.mean, shift + scale * mixture().mean)
        if full:
            shift, scale = random.standard_normal((1, 1, D)), np.exp(random.standard_normal((1, 4, D)))
        moved = correlated().affine(shift, scale)
        np.testing.assert_allclose(
            moved.log_prob(shift + scale * VECTORS),
            correlated().log_prob(VECTORS) - (np.log(scale) * np.ones(D)).sum(-1),
            rtol=1e-6,
        )
    with pytest.raises(TypeError, match="Poisson has no closed form of affine"):
        Mixture(jnp.zeros((1, 2)), Poisson(jnp.zeros((1, 2)))).affine(1.0, 2.0)


@pytest.mark.slow
def test_from_raw_is_valid_everywhere_and_alive():
    extremes = np.random.default_rng(6).uniform(-1e4, 1e4, (50, 9)).astype(np.float32)
    for raw in (extremes, extremes / 200, np.zeros((1, 9), np.float32)):
        dist = Mixture.from_raw(raw)
        assert dist.logits.shape == (len(raw), 3)
        assert np.all(np.asarray(dist.components.scale) > 0)
        assert np.all(np.isfinite(nll(dist, jnp.zeros(len(raw)), reduction="none")))
        joint = MultivariateNormal.from_raw(raw)
        assert joint.shape == (len(raw), 3)
        assert joint.domain["scale_tril"].holds(np.asarray(joint.scale_tril))
    for family in (Mixture, MultivariateNormal):
        moves = jax.vmap(jax.jacobian(lambda raw, family=family: ravel_pytree(family.from_raw(raw))[0]))(extremes / 200)
        assert np.all(np.isfinite(moves))
        assert np.all(np.any(np.asarray(moves) != 0, axis=1))
    assert isinstance(Mixture.from_raw(jnp.zeros((7, 4)), Poisson).components, Poisson)
    assert MultivariateNormal.from_raw(jnp.zeros(2)).scale_tril.shape == (1, 1)


BAD = {
    "a factor not square": (
        jaxloss.ShapeError,
        "loc has shape (5, 3) and scale_tril (5, 3, 2)",
        lambda: MultivariateNormal(jnp.zeros((5, 3)), jnp.ones((5, 3, 2))),
    ),
    "a factor of another batch": (
        jaxloss.ShapeError,
        "scale_tril",
        lambda: nll(MultivariateNormal(jnp.zeros((5, 3)), jnp.ones((1, 3, 3))), jnp.zeros((5, 3))),
    ),
    "a vector too long": (jaxloss.ShapeError, "(5, 4, 2)", lambda: nll(correlated(), VECTORS[..., :2])),
    "weights per coordinate": (jaxloss.ShapeError, "weights", lambda: nll(correlated(), VECTORS, weights=VECTORS)),
    "a factor not triangular": (
        ValueError,
        "scale_tril must be finite and lower triangular",
        lambda: MultivariateNormal(np.zeros(2), np.ones((2, 2))),
    ),
    "a diagonal of 0": (
        ValueError,
        "positive diagonal",
        lambda: MultivariateNormal(np.zeros(2), np.diag([1.0, 0.0])),
    ),
    "raw of no vector": (
        jaxloss.ShapeError,
        "2, 5, 9, 14",
        lambda: MultivariateNormal.from_raw(jnp.zeros((5, 6))),
    ),
    "raw of no mixture": (jaxloss.ShapeError, "3, 6, 9", lambda: Mixture.from_raw(jnp.zeros((5, 4)))),
    "raw of vectors": (TypeError, "one number", lambda: Mixture.from_raw(jnp.zeros((5, 6)), MultivariateNormal)),
    "components that differ in number": (
        jaxloss.ShapeError,
        "logits has shape (5, 2)",
        lambda: Mixture(jnp.zeros((5, 2)), Normal(jnp.zeros((5, 3)), jnp.ones((5, 3)))),
    ),
    "components of another batch": (
        jaxloss.ShapeError,
        "pred.components.loc",
        lambda: nll(Mixture(jnp.zeros((5, 2)), Normal(jnp.zeros((4, 2)), jnp.ones((4, 2)))), jnp.zeros(5)),
    ),
    "components of vectors": (TypeError, "one number", lambda: Mixture(jnp.zeros((5, 3)), correlated())),
    "components that are no family": (TypeError, "got float", lambda: Mixture(jnp.zeros((5, 3)), 1.0)),
    "a logit of NaN": (
        ValueError,
        "logits must be finite",
        lambda: Mixture(np.full(2, np.nan), Normal(*np.ones((2, 2)))),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_call_raises_one_line(case):
    kind, words, call = BAD[case]
    refused(kind, [words], call)


@pytest.mark.slow
def test_initial_bias_of_vectors_is_their_mean_and_covariance():
    random = np.random.default_rng(9)
    target = random.multivariate_normal([1, -2, 300], [[2, 1, 0], [1, 3, 5], [0, 5, 80]], 500).astype(np.float32)
    weights = random.uniform(0.5, 2, 500).astype(np.float32)
    dist = jaxloss.MultivariateNormal.from_raw(jaxloss.MultivariateNormal.initial_bias(target, weights))
    np.testing.assert_allclose(dist.loc, np.average(target, 0, weights), rtol=1e-4)
    want = np.cov(target.T.astype(np.float64), aweights=weights, ddof=0)
    np.testing.assert_allclose(dist.covariance, want, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_initial_bias_of_a_mixture_finds_both_modes():
    random = np.random.default_rng(10)
    target = np.concatenate([random.normal(-3, 0.5, 300), random.normal(8, 1, 100)]).astype(np.float32)
    bias = jaxloss.Mixture.initial_bias(target)
    dist = jaxloss.Mixture.from_raw(bias)
    np.testing.assert_allclose(dist.components.loc, [-3, 8], atol=0.3)
    np.testing.assert_allclose(jax.nn.softmax(dist.logits), [0.75, 0.25], atol=0.02)
    one = jaxloss.Normal.from_raw(jaxloss.Normal.initial_bias(target))
    assert jnp.mean(jax.vmap(dist.log_prob)(target)) > jnp.mean(jax.vmap(one.log_prob)(target)) + 0.5
