"""Continuous families where they are hard: extreme shapes, far tails, outside the support, float32 derivatives."""

from __future__ import annotations

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from families import FAMILIES, spread
from mpmath import erfc, exp, expm1, log, log1p, loggamma, mpf, pi, psi, sqrt
from test_families import made

import jaxloss
from jaxloss.numerics import gamma

pytestmark = pytest.mark.slow  # every gradient compiles a loop; the table of families has the fast checks

CONTINUOUS = [row for row in FAMILIES if not row.family.discrete]
each_continuous = pytest.mark.parametrize("row", CONTINUOUS, ids=[row.name for row in CONTINUOUS])
POSITIVE = [row for row in CONTINUOUS if row.name in ("Gamma", "LogNormal")]
each_positive = pytest.mark.parametrize("row", POSITIVE, ids=[row.name for row in POSITIVE])


def shapes(random):
    return [spread(random, 40, 1e-3, 1e6)]


def anywhere(random):
    return [random.choice([-1, 1], 40) * spread(random, 40, 1e-4, 50)]


def close_logarithms(random):
    x = np.float32(spread(random, 40, 1e-20, 1e20))
    return [x, np.log(x) + random.choice([-1, 1], 40) * spread(random, 40, 1e-1, 10)]


def below_zero(random):
    return [-spread(random, 40, 1e-4, 60)]


def shape_and_distance(random):
    return [spread(random, 40, 1e-3, 1e6), random.choice([-1, 1], 40) * spread(random, 40, 1e-2, 1e2)]


SPECIAL = [
    (gamma.stirling_correction, lambda a: loggamma(a) - ((a - 0.5) * log(a) - a + log(2 * pi) / 2), shapes),
    (gamma.half_step_correction, lambda a: loggamma(a + 0.5) - loggamma(a) - log(a) / 2, shapes),
    (gamma.exp_excess, lambda x: expm1(x) - x, anywhere),
    (gamma.log_difference, lambda x, log_y: log(x) - log_y, close_logarithms),
    (gamma.log_complement, lambda x: log1p(-exp(x)), below_zero),
    (gamma.student_fall, lambda df, z: (df + 1) / 2 * log1p(z * z / df), shape_and_distance),
]


def orders(count):
    """Every derivative of up to the second order: how often each of `count` arguments is differentiated."""
    return [order for order in itertools.product(range(3), repeat=count) if sum(order) <= 2]


@pytest.mark.parametrize(("function", "exact", "draw"), SPECIAL, ids=[row[0].__name__.strip("_") for row in SPECIAL])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_functions_and_two_derivatives_equal_mpmath(function, exact, draw, dtype):
    with jax.enable_x64(dtype == "float64"), mpmath.workdps(60):
        arguments = [np.asarray(each, dtype) for each in draw(np.random.default_rng(0))]
        for order in orders(len(arguments)):
            derived = function
            for index, times in enumerate(order):
                for _ in range(times):
                    derived = jax.grad(derived, index)
            got = np.asarray(jax.jit(jax.vmap(derived))(*map(jnp.asarray, arguments)), np.float64)
            for number, *given in zip(got, *arguments, strict=True):
                point = tuple(mpf(float(each)) for each in given)
                whole = len(point) > 1
                want = float(mpmath.diff(exact, point if whole else point[0], order if whole else order[0]))
                if abs(want) < 1e37:
                    # A derivative of student_fall is a difference of two; all the rest have terms of one sign.
                    np.testing.assert_allclose(number, want, 3e-4 if dtype == "float32" else 1e-9, 1e-18, err_msg=given)


def exact_tails(name, y, parameters):
    """P(Y ≤ y), P(Y > y)."""
    given = {key: mpf(float(value)) for key, value in parameters.items()}
    if name == "Gamma":
        a = given["concentration"]
        x = a * y / exp(given["log_mean"])
        return mpmath.gammainc(a, 0, x, regularized=True), mpmath.gammainc(a, x, mpmath.inf, regularized=True)
    z = ((log(y) if name == "LogNormal" else y) - given["loc"]) / given["scale"]
    if name == "StudentT":
        df = given["df"]
        tail = mpmath.betainc(df / 2, mpf(1) / 2, 0, df / (df + z * z), regularized=True) / 2
    else:
        tail = exp(-abs(z)) / 2 if name == "Laplace" else erfc(abs(z) / sqrt(2)) / 2
    return (1 - tail, tail) if z > 0 else (tail, 1 - tail)


def moderate(row, count=60, seed=8):
    """Shapes of 1e-3 to 1e3, and targets up to 40 sd out, exactly in float32."""
    parameters, target = row.extreme(np.random.default_rng(seed), 4 * count)
    shape = parameters.get("df", parameters.get("concentration", np.ones(4 * count)))
    kept = np.flatnonzero((shape < 1e3) & (target != 0))[:count]
    return {name: np.float32(value[kept]) for name, value in parameters.items()}, np.float32(target[kept])


@each_continuous
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_tails_equal_mpmath_far_out(row, dtype):
    parameters, target = moderate(row)
    with jax.enable_x64(dtype == "float64"), mpmath.workdps(60):
        tails = made(row, parameters, dtype)._log_tails(jnp.asarray(target, dtype))
        for index, y in enumerate(target):
            given = {name: value[index] for name, value in parameters.items()}
            for got, want in zip(tails, exact_tails(row.name, mpf(float(y)), given), strict=True):
                error = abs(mpf(float(got[index])) - log(want)) / max(1, abs(log(want)))
                assert error < (4e-5 if dtype == "float32" else 1e-10), (y, given, got[index], log(want))


@each_continuous
def test_cdf_in_float32_equals_scipy(row):
    parameters, target = moderate(row, count=400)
    exact = row.scipy(**{name: value.astype(np.float64) for name, value in parameters.items()})
    got = np.asarray(made(row, parameters).cdf(jnp.asarray(target)))
    # log(target) is only as near as the tails take it; Normal's and LogNormal's are those of jax.
    np.testing.assert_allclose(got, exact.cdf(target.astype(np.float64)), rtol=0, atol=5e-6)


def along(function, arguments, random):
    """The function on a line through its arguments, in a random direction."""
    start, unravel = jax.flatten_util.ravel_pytree(arguments)
    direction = jnp.abs(start) * random.standard_normal(start.shape)
    return lambda step: function(*unravel(start + step * direction))


def check_derivatives(function, arguments, random, order):
    """The first derivatives, backward, and the second, forward, along a line against central differences."""
    line = jax.jit(along(function, arguments, random))
    slope = jax.jit(jax.grad(line))
    np.testing.assert_allclose(slope(0.0), (line(1e-5) - line(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-7)
    if order == 2:
        bend = jax.jit(jax.jacfwd(jax.jacfwd(line)))(0.0)
        np.testing.assert_allclose(bend, (slope(1e-5) - slope(-1e-5)) / 2e-5, rtol=1e-5, atol=1e-6)


def ordinary(row, count, seed):
    random = np.random.default_rng(seed)
    parameters = row.draw(random, count)
    return made(row, parameters), jnp.asarray(row.sampled(row.scipy(**parameters), random)), random


@each_continuous
def test_tails_and_quantile_have_right_derivatives_in_everything(row):
    with jax.enable_x64(True):
        dist, target, random = ordinary(row, 5, seed=9)
        check_derivatives(lambda dist, y: jnp.sum(jnp.stack(dist._log_tails(y))), (dist, target), random, order=2)
        check_derivatives(lambda dist, y: jnp.sum(dist._cdf(y)), (dist, target), random, order=1)
        check_derivatives(lambda dist: jnp.sum(dist._quantile(jnp.linspace(0.1, 0.9, 5))), (dist,), random, order=1)


@pytest.mark.slow
@each_continuous
def test_crps_has_right_second_derivatives_in_everything(row):
    with jax.enable_x64(True):
        dist, target, random = ordinary(row, 5, seed=13)
        check_derivatives(lambda dist, y: jnp.sum(dist._crps(y)), (dist, target), random, order=2)


@each_continuous
def test_derivatives_of_tails_in_float32_are_those_in_float64(row):
    parameters, target = moderate(row, count=200)

    def derivatives(dtype):
        dist, y = made(row, parameters, dtype), jnp.asarray(target, dtype)
        sums = jax.jacrev(lambda dist, y: jnp.stack([tail.sum() for tail in dist._log_tails(y)]), (0, 1))(dist, y)
        return {**vars(sums[0]), "target": sums[1]}

    got = derivatives(jnp.float32)
    with jax.enable_x64(True):
        want = derivatives(jnp.float64)
        for name in want:
            exact = np.clip(np.asarray(want[name]), -3e38, 3e38)
            bar = 1e-8 if name == "df" else 1e-18  # in df it is next to nothing where the family is near Normal
            np.testing.assert_allclose(got[name], exact, rtol=1e-3, atol=bar, err_msg=name)


def gamma_shape_slope(y, log_mean, concentration):
    ratio = y / exp(log_mean)
    return [log(concentration) - psi(0, concentration), -(ratio - 1 - log(ratio))]


def student_shape_slope(y, df, loc, scale):
    square = ((y - loc) / scale) ** 2 / df
    peak = (psi(0, (df + 1) / 2) - psi(0, df / 2) - 1 / df) / 2
    return [peak, -(log1p(square) - square / (1 + square)) / 2, square / (1 + square) / (2 * df)]


@pytest.mark.parametrize(
    ("name", "shape", "terms"),
    [("Gamma", "concentration", gamma_shape_slope), ("StudentT", "df", student_shape_slope)],
)
def test_the_slope_in_the_shape_in_float32_equals_mpmath(name, shape, terms):
    row = next(row for row in FAMILIES if row.name == name)
    parameters, target = row.extreme(np.random.default_rng(10), 300)
    parameters, target = {key: np.float32(value) for key, value in parameters.items()}, np.float32(target)
    slopes = jax.grad(lambda dist: dist.log_prob(jnp.asarray(target)).sum())(made(row, parameters))
    with mpmath.workdps(40):
        for index, y in enumerate(target):
            given = {key: mpf(float(value[index])) for key, value in parameters.items()}
            parts = terms(mpf(float(y)), **given)
            error = abs(mpf(float(getattr(slopes, shape)[index])) - sum(parts)) / max(map(abs, parts))
            assert error < 5e-6, (y, given)


def test_moments_are_nan_or_infinite_where_there_are_none():
    df = jnp.array([0.5, 1.0, 1.5, 2.0, 3.0])
    dist = jaxloss.StudentT(df, jnp.ones(5), jnp.ones(5))
    np.testing.assert_array_equal(dist.mean, [np.nan, np.nan, 1, 1, 1])
    np.testing.assert_array_equal(dist.variance, [np.nan, np.nan, np.inf, np.inf, 3])
    scores = jaxloss.crps(dist, jnp.ones(5), reduction="none")
    np.testing.assert_array_equal(np.isnan(scores), [True, True, False, False, False])
    slopes = jax.grad(lambda df: jaxloss.StudentT(df, jnp.ones(5), jnp.ones(5)).variance[4])(df)
    np.testing.assert_allclose(slopes, [0, 0, 0, 0, -2], rtol=1e-6)


@each_positive
def test_outside_the_support_nothing_is_nan(row):
    parameters = row.draw(np.random.default_rng(11), 4)
    dist = made(row, parameters, jnp.float32)

    @jax.jit
    def everything(dist, y):
        def total(dist, y):
            numbers = dist._log_prob(y), dist._cdf(y), *dist._log_tails(y)
            return sum(map(jnp.sum, numbers)), numbers

        return jax.grad(total, (0, 1), has_aux=True)(dist, y)

    inside = dist.mean
    slopes, numbers = everything(dist, jnp.where(jnp.arange(4) < 2, jnp.array([-2.0, 0.0, 1.0, 1.0]), inside))
    np.testing.assert_array_equal(np.stack(numbers)[:, :2], [[-np.inf] * 2, [0] * 2, [-np.inf] * 2, [0] * 2])
    kept, numbers_kept = everything(dist, inside)
    for got, want in zip(jax.tree.leaves((slopes, numbers)), jax.tree.leaves((kept, numbers_kept)), strict=True):
        np.testing.assert_array_equal(got[2:], want[2:])
    assert all(np.all(leaf[:2] == 0) for leaf in jax.tree.leaves(slopes))
    assert np.isnan(everything(dist, jnp.full(4, jnp.nan))[1]).all()


@each_positive
def test_crps_of_targets_outside_the_support_equals_its_integral(row):
    integrate = pytest.importorskip("scipy.integrate")
    with jax.enable_x64(True):
        parameters = row.draw(np.random.default_rng(12), 4)
        dist, target = made(row, parameters), jnp.array([-3.0, -0.5, 0.0, -1.0])
        got = jaxloss.crps(dist, target, reduction="none")
        for index, y in enumerate(np.asarray(target)):
            one = row.scipy(**{name: value[index] for name, value in parameters.items()})
            edges = [0, *one.ppf([0.01, 0.5, 0.9, 0.999, 1 - 1e-6]), one.ppf(1 - 1e-13)]
            want = -y + sum(
                integrate.quad(lambda x, one=one: one.sf(x) ** 2, a, b, epsabs=1e-12)[0]
                for a, b in itertools.pairwise(edges)
            )
            np.testing.assert_allclose(got[index], want, rtol=1e-7)
        slopes = jax.jit(jax.grad(lambda dist, y: jnp.mean(dist._crps(y)), (0, 1)))(dist, target)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))
        np.testing.assert_allclose(slopes[1], np.full(4, -0.25))


@each_continuous
def test_crps_in_float32_is_that_in_float64(row):
    random = np.random.default_rng(14)
    parameters = {name: np.float32(value) for name, value in row.draw(random, 200).items()}
    target = np.float32(row.sampled(row.scipy(**{k: v.astype(np.float64) for k, v in parameters.items()}), random))

    def scores(dtype):
        dist, y = made(row, parameters, dtype), jnp.asarray(target, dtype)
        grad = jax.grad(lambda dist: (jnp.sum(values := dist._crps(y)), values), has_aux=True)
        slopes, values = jax.jit(grad)(dist)
        return [values, *(getattr(slopes, name) for name in (row.location, row.scale))]

    single = scores(jnp.float32)
    with jax.enable_x64(True):
        exact = scores(jnp.float64)
        unit = np.asarray(exact[0]) / (1 if row in POSITIVE else np.minimum(parameters["scale"], 1))
        for got, want in zip(single, exact, strict=True):
            size = np.abs(np.asarray(want)) + unit
            np.testing.assert_array_less(np.abs(np.asarray(got, np.float64) - want) / size, 3e-5)


PEERS = {
    "Normal": lambda peer, y, d: peer.crps_normal(y, d.loc, d.scale),
    "Laplace": lambda peer, y, d: peer.crps_laplace(y, d.loc, d.scale),
    "StudentT": lambda peer, y, d: peer.crps_t(y, d.df, d.loc, d.scale),
    "LogNormal": lambda peer, y, d: peer.crps_lognormal(y, d.loc, d.scale),
    "Gamma": lambda peer, y, d: peer.crps_gamma(y, d.concentration, d.concentration / jnp.exp(d.log_mean)),
}


@each_continuous
def test_crps_equals_that_of_scoringrules(row):
    peer = pytest.importorskip("scoringrules")
    with jax.enable_x64(True):
        random = np.random.default_rng(15)
        parameters = row.draw(random, 40)
        target = row.sampled(row.scipy(**parameters), random)
        dist = made(row, parameters)
        got = jaxloss.crps(dist, jnp.asarray(target), reduction="none")
        numbers = jax.tree.map(np.asarray, dist)
        np.testing.assert_allclose(got, np.asarray(PEERS[row.name](peer, target, numbers)), rtol=1e-8)


@each_continuous
def test_affine_is_the_distribution_of_the_scaled_number(row):
    with jax.enable_x64(True):
        random = np.random.default_rng(16)
        parameters = row.draw(random, 5)
        dist, target = made(row, parameters), jnp.asarray(row.sampled(row.scipy(**parameters), random))
        shift, scale = (0, 2.5) if row in POSITIVE else (-1.5, 2.5)
        np.testing.assert_allclose(dist.affine(shift, scale).cdf(shift + scale * target), dist.cdf(target), rtol=1e-9)
        moved = dist.affine(shift, scale).log_prob(shift + scale * target)
        np.testing.assert_allclose(moved, dist.log_prob(target) - np.log(scale), rtol=1e-9)
        if row in POSITIVE:
            for wrong in (1.0, np.ones(5), jnp.zeros(())):
                with pytest.raises(ValueError, match=f"{row.name}.affine: shift must be the number 0"):
                    dist.affine(wrong, scale)


def test_laplace_is_at_rest_at_its_location():
    dist = jaxloss.Laplace(jnp.array([1.0]), jnp.array([2.0]))
    assert jax.grad(jaxloss.nll)(dist, jnp.array([1.0])).loc[0] == 0
    assert jax.grad(jaxloss.crps)(dist, jnp.array([1.0])).loc[0] == 0
    bend = jax.hessian(lambda loc: jaxloss.crps(jaxloss.Laplace(loc, dist.scale), jnp.array([1.0])))(dist.loc)
    np.testing.assert_allclose(bend, [[0.5]])


def test_what_is_trained_from_raw_numbers_has_all_its_moments():
    raw = jnp.asarray(np.random.default_rng(17).uniform(-50, 50, (100, 3)), jnp.float32)
    dist = jaxloss.StudentT.from_raw(raw)
    assert np.all(np.isfinite(dist.mean) & np.isfinite(dist.variance))
    for family in (jaxloss.Gamma, jaxloss.LogNormal):
        bounds = family.from_raw(jnp.array([[-1e4, -1e4], [1e4, -1e4]]))
        assert np.all(np.isfinite(bounds.mean) & (bounds.mean > 0))


@each_continuous
def test_samples_carry_derivatives(row):
    dist = made(row, row.draw(np.random.default_rng(18), 3), jnp.float32)
    slopes = jax.grad(lambda dist: dist.sample(jax.random.key(0), (50,)).sum())(dist)
    assert all(np.all(np.isfinite(leaf) & (np.asarray(leaf) != 0)) for leaf in jax.tree.leaves(slopes))


@each_continuous
def test_every_platform_gets_a_program(row):
    dist = made(row, row.draw(np.random.default_rng(19), 3), jnp.float32)

    @jax.jit
    def program(dist, target):
        scores = jax.grad(lambda dist: jaxloss.nll(dist, target) + jaxloss.crps(dist, target))(dist)
        return jax.tree.leaves(scores), dist._log_tails(target), dist.quantile(0.3), dist.sample(jax.random.key(0))

    exported = jax.export.export(program, platforms=("cpu", "cuda", "tpu"))
    assert exported(dist, jnp.ones(3)).platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("z", [1e37, 1e38, 3e38, -3e38])
def test_tails_of_student_past_the_root_of_the_degrees(z):
    """z/√df is beyond float32, and half of the distribution still further out."""
    df, z = np.float32(1e-3), np.float32(z)
    dist = jaxloss.StudentT(jnp.asarray(df), jnp.zeros(()), jnp.ones(()))
    exact, far = mpf(float(df)), abs(mpf(float(z)))
    tail = mpmath.betainc(exact / 2, mpf(1) / 2, 0, exact / (exact + far * far), regularized=True) / 2
    np.testing.assert_allclose(dist.cdf(z), float(tail if z < 0 else 1 - tail), rtol=2e-6)
    peak = loggamma((exact + 1) / 2) - loggamma(exact / 2) - log(exact * pi) / 2
    np.testing.assert_allclose(dist.log_prob(z), float(peak - (exact + 1) / 2 * log1p(far * far / exact)), rtol=2e-6)
