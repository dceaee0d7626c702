"""Draws of every family against the distribution functions of scipy, over the whole range of parameters."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import Gamma, Laplace, LogNormal, Mixture, MultivariateNormal, NegativeBinomial, Normal, Poisson, StudentT

stats, special = pytest.importorskip("scipy.stats"), pytest.importorskip("scipy.special")

RATES = (1e-30, 1e-3, 0.5, 5, 9.99, 10.1, 100, 990, 1010, 1e4, 1e5, 1e6, 1.6e7, 2e7, 1e9, 1e12, 1e20)
SHAPES = (1e-4, 1e-2, 0.1, 0.5, 0.99, 1, 5, 100, 990, 1010, 1e4, 1e6, 1e8, 1e11)

CASES = [
    *((Normal, {"loc": loc, "scale": scale}) for loc, scale in ((0, 1), (1e6, 1), (-3, 1e-6), (0, 1e30))),
    *((Laplace, {"loc": loc, "scale": scale}) for loc, scale in ((0, 1), (1e6, 1), (-3, 1e-6), (0, 1e30))),
    *(
        (StudentT, {"df": df, "loc": loc, "scale": scale})
        for df in (1e-3, 0.1, 0.5, 1, 2.01, 5, 100, 1990, 2010, 1e5, 1e8)
        for loc, scale in ((0, 1), (-20, 3))
    ),
    *(
        (LogNormal, {"loc": loc, "scale": scale})
        for loc in (-40, 0, 3, 40)
        for scale in (1e-6, 1e-3, 1, 10, 50)
    ),
    *((Poisson, {"log_rate": np.log(rate)}) for rate in RATES),
    *(
        (NegativeBinomial, {"log_rate": np.log(rate), "concentration": shape})
        for rate in (1e-3, 5, 900, 1e5, 1.6e7, 1e9)
        for shape in (1e-3, 0.5, 3, 1010, 1e6, 1e11)
    ),
    *((Gamma, {"log_mean": mean, "concentration": shape}) for mean in (-40, 0, 40) for shape in SHAPES),
]  # fmt: skip
FEW = [
    (StudentT, {"df": 1e-3, "loc": 0, "scale": 1}),
    (LogNormal, {"loc": 40, "scale": 1e-6}),
    (Poisson, {"log_rate": np.log(5.0)}),
    (Poisson, {"log_rate": np.log(1e6)}),
    (Poisson, {"log_rate": np.log(1e12)}),
    (NegativeBinomial, {"log_rate": np.log(1e9), "concentration": 1e11}),
    (Gamma, {"log_mean": -40, "concentration": 1e-4}),
    (Gamma, {"log_mean": 40, "concentration": 1e11}),
]


def oracle(family, at):
    """The distribution function, of parameters in float64."""
    if family is Normal:
        return stats.norm(at["loc"], at["scale"]).cdf
    if family is Laplace:
        return stats.laplace(at["loc"], at["scale"]).cdf
    if family is StudentT:
        return lambda y: student_cdf((y - at["loc"]) / at["scale"], at["df"])
    if family is LogNormal:
        return stats.lognorm(at["scale"], scale=np.exp(at["loc"])).cdf
    if family is Poisson:
        return stats.poisson(np.exp(at["log_rate"])).cdf
    if family is NegativeBinomial:
        c, rate = at["concentration"], np.exp(at["log_rate"])
        return stats.nbinom(c, c / (c + rate)).cdf
    shape = at["concentration"]
    return functools.partial(gamma_cdf, shape=shape, log_scale=at["log_mean"] - np.log(shape))


def gamma_cdf(x, shape, log_scale):
    """That of a power law where x/scale, below 1e-199, may underflow."""
    log_x = np.log(x) - log_scale
    power = np.exp(shape * np.minimum(log_x, -460) - special.gammaln(shape + 1))
    return np.where(log_x < -460, power, stats.gamma(shape).cdf(np.exp(log_x)))


def student_cdf(z, df):
    """Of a power law past 1e50, for scipy's overflows from 1e154 on."""
    near, far = np.clip(z, -1e50, 1e50), np.maximum(np.abs(z), 1e50)
    tail = stats.t(df).sf(np.abs(near)) * (far / 1e50) ** -df
    return np.where(z > 0, 1 - tail, tail)


def distance(draws, cdf):
    """Kolmogorov's distance of draws from the law rounded to their type: halfway to the next float the law goes on.

    Draws at an end of the type's range stand for all that is beyond.
    """
    info = np.finfo(draws.dtype)
    values, counts = np.unique(draws, return_counts=True)
    above, below = (np.nextafter(values, side) for side in (np.inf, -np.inf))
    if draws.dtype == np.float32:
        wide = values.astype(np.float64)
        upper, lower = cdf((wide + above) / 2), cdf((wide + below) / 2)
    else:
        upper, lower = cdf(values), cdf(below)
    last = np.cumsum(counts) / len(draws)
    first = last - counts / len(draws)
    ends = np.abs(values) > 0.9 * info.max
    from_above = np.where(ends, 0, np.abs(last - upper))
    from_below = np.where(ends | ((values[0] > 0) & (values < 1.1 * info.tiny)), 0, np.abs(first - lower))
    return max(from_above.max(), from_below.max())


def check(family, parameters, dtype, count):
    """√count times the distance; draws must be finite and in the support."""
    with jax.enable_x64(dtype is np.float64):
        at = {name: dtype(value) for name, value in parameters.items()}
        dist = family(**{name: jnp.asarray(value) for name, value in at.items()})
        draws = np.asarray(drawn(dist, count))
    assert draws.dtype == dtype
    assert np.isfinite(draws).all()
    assert family.support.holds(draws).all()
    return distance(draws, oracle(family, {name: float(value) for name, value in at.items()})) * count**0.5


@functools.partial(jax.jit, static_argnums=1)
def drawn(dist, count):
    return dist.sample(jax.random.key(5), (count,))


def name_of(case):
    return f"{case[0].__name__}-" + "-".join(f"{value:.3g}" for value in case[1].values())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_million_draws_have_the_distribution(case, dtype):
    assert stats.kstwobign.sf(check(*case, dtype, 1_000_000)) > 1e-4


@pytest.mark.parametrize("case", FEW, ids=name_of)
def test_draws_have_the_distribution(case):
    assert stats.kstwobign.sf(check(*case, np.float32, 20_000)) > 1e-4


def test_mixtures_and_vectors_have_their_margins():
    weights, loc, scale = np.array([0.7, 0.299, 0.001]), np.array([0.0, 50.0, -2000.0]), np.array([1e-3, 1.0, 30.0])
    mixture = Mixture(jnp.log(weights)[None], Normal(jnp.asarray(loc)[None], jnp.asarray(scale)[None]))
    draws = np.asarray(drawn(mixture, 50_000))[:, 0]
    far = distance(draws, lambda at: (weights * stats.norm(loc, scale).cdf(at[:, None])).sum(1))
    assert stats.kstwobign.sf(far * 50_000**0.5) > 1e-4
    factor = np.array([[1e3, 0.0], [0.6e-3, 0.8e-3]])
    vectors = np.asarray(drawn(MultivariateNormal(jnp.array([1.0, 2.0]), jnp.asarray(factor)), 50_000), np.float64)
    for along in ([1.0, 0.0], [0.0, 1.0], [1e-6, 1.0]):
        spread = np.linalg.norm(along @ factor)
        far = stats.kstest((vectors @ along - along @ np.array([1.0, 2.0])) / spread, "norm")
        assert far.pvalue > 1e-4, along


def test_draws_at_the_ends_of_the_parameters():
    """No rate, a rate beyond floats, and NaN."""
    draws = drawn(Poisson(jnp.array([-jnp.inf, -200.0, 200.0, jnp.nan])), 100)
    assert (draws[:, :2] == 0).all()
    assert (draws[:, 2] > 3e38).all()
    assert jnp.isfinite(draws[:, 2]).all()
    assert jnp.isnan(draws[:, 3]).all()
