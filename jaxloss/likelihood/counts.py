"""Families on the whole numbers 0, 1, 2, …, by the logarithm of their mean, the rate.

What is not a whole number of at least 0 has probability 0.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import i0e, i1e

from jaxloss.contract import POSITIVE, REAL, Domain
from jaxloss.likelihood.distribution import Distribution, above, family, parameter, within
from jaxloss.likelihood.draws import log_gamma_ratios, poisson_counts
from jaxloss.likelihood.saddle_point import (
    excess,
    negative_binomial_log_mass,
    negative_binomial_tails,
    poisson_log_mass,
    poisson_tails,
)
from jaxloss.numerics.partials import with_partials

__all__ = ["NegativeBinomial", "Poisson"]

Array = jax.Array

COUNT = Domain("a whole number of at least 0", lambda y: (y >= 0) & (y < math.inf) & (y == y // 1), 1.0)
LOG_RATE = within(80.0)
"""The logarithm of a rate from a network: its exponential is finite in float32."""
CONCENTRATION = above(1e-3)
"""A concentration from a network: below the floor, all but a thousandth of the counts are 0."""


class _Counts(Distribution):
    """What the families here share: what they write is on whole numbers of at least 0."""

    support = COUNT
    discrete = True

    def _mass(self, count: Array) -> Array:
        raise NotImplementedError

    def _tails(self, count: Array) -> tuple[Array, Array]:
        raise NotImplementedError

    def _log_prob(self, target: Array) -> Array:
        inside = (target >= 0) & (target < jnp.inf) & (target == jnp.floor(target))
        log_mass = self._mass(jnp.where(inside, target, 0))
        return jnp.where(inside, log_mass, jnp.where(jnp.isnan(target), jnp.nan, -jnp.inf))

    def _log_tails(self, target: Array) -> tuple[Array, Array]:
        most = 2.0**-30 * jnp.finfo(target.dtype).max  # past it no family here has anything left
        count = lax.stop_gradient(jnp.clip(jnp.floor(target), 0, most))
        below, above = self._tails(count)
        none = target < 0
        return jnp.where(none, -jnp.inf, below), jnp.where(none, 0, above)

    def _cdf(self, target: Array) -> Array:
        return jnp.exp(self._log_tails(target)[0])


@family
class Poisson(_Counts):
    """Poisson distribution of counts, of mean and variance rate = exp(log_rate).

    log probability count·log_rate − rate − log(count!), in counts per what the rate is per; as a function of log_rate
    it has slope count − rate. poisson_deviance of the rate is 2·(nll − that of a perfect prediction). Where counts
    vary more than their mean, use NegativeBinomial.

    >>> dist = Poisson(jnp.log(jnp.array([2.0, 3.0])))
    >>> [round(x, 6) for x in nll(dist, jnp.array([0.0, 3.0]), reduction="none").tolist()]
    [2.0, 1.495923]
    """

    log_rate: Any = parameter(REAL, LOG_RATE)

    def _mean(self) -> Array:
        return jnp.exp(self.log_rate)

    def _variance(self) -> Array:
        return jnp.exp(self.log_rate)

    def _mass(self, count: Array) -> Array:
        return poisson_log_mass(count, self.log_rate)

    def _tails(self, count: Array) -> tuple[Array, Array]:
        return poisson_tails(count, self.log_rate)

    def _sample(self, key: Array) -> Array:
        return poisson_counts(key, self.log_rate)

    def _crps(self, target: Array) -> Array:
        return _poisson_score(target, self.log_rate)

    @classmethod
    def _of_moments(cls, mean: Array, variance: Array) -> tuple[Array, ...]:
        return (jnp.log(mean),)


@family
class NegativeBinomial(_Counts):
    """Negative binomial distribution of counts, of mean rate = exp(log_rate) and variance rate + rate²/concentration.

    A Poisson distribution whose rate varies by a gamma distribution of shape `concentration` > 0; as that grows,
    Poisson. log probability log Γ(y + c) − log Γ(c) − log(y!) + y·log(rate/(rate + c)) + c·log(c/(rate + c)), in which
    statsmodels writes α for 1/c and scipy n, p for c, c/(rate + c). cdf and tails are integrals done by a Gauss rule,
    and have derivatives in both parameters. There is no closed form of its CRPS.

    >>> dist = NegativeBinomial(jnp.zeros(2), jnp.array([1.0, 1e6]))    # the first is geometric
    >>> [round(x, 4) for x in dist.log_prob(jnp.array([1.0, 1.0])).tolist()]
    [-1.3863, -1.0]
    """

    log_rate: Any = parameter(REAL, LOG_RATE)
    concentration: Any = parameter(POSITIVE, CONCENTRATION)

    def _mean(self) -> Array:
        return jnp.exp(self.log_rate)

    def _variance(self) -> Array:
        rate = jnp.exp(self.log_rate)
        return rate * (1 + rate / self.concentration)

    def _mass(self, count: Array) -> Array:
        return negative_binomial_log_mass(count, self.log_rate, self.concentration)

    def _tails(self, count: Array) -> tuple[Array, Array]:
        return negative_binomial_tails(count, self.log_rate, self.concentration)

    def _sample(self, key: Array) -> Array:
        vary, count = jax.random.split(key)
        return poisson_counts(count, self.log_rate, log_gamma_ratios(vary, self.concentration))

    @classmethod
    def _of_moments(cls, mean: Array, variance: Array) -> tuple[Array, ...]:
        return jnp.log(mean), mean * mean / jnp.maximum(variance - mean, 0.01 * mean)


def _poisson_parts(target: Array, log_rate: Array) -> tuple[Array, Array, Array]:
    """The rate, 2F − 1 with F the cdf at the target, and twice the probability of the count there."""
    pred = Poisson(log_rate)
    return jnp.exp(log_rate), 2 * pred._cdf(target) - 1, 2 * jnp.exp(pred._log_prob(jnp.floor(target)))


def _poisson_crps(target: Array, log_rate: Array) -> Array:
    """(y − λ)(2F(y) − 1) + 2λf(y) − λe^(−2λ)(I₀(2λ) + I₁(2λ)): Wei & Held, Test 2014."""
    rate, side, mass = _poisson_parts(target, log_rate)
    return rate * (mass - (i0e(2 * rate) + i1e(2 * rate))) - excess(target, log_rate) * side


def _poisson_crps_by_log_rate(target: Array, log_rate: Array) -> Array:
    rate, side, mass = _poisson_parts(target, log_rate)
    return rate * (mass * (1 - (target - jnp.floor(target))) - side - i0e(2 * rate))


_poisson_score = with_partials(_poisson_crps, lambda *at: _poisson_parts(*at)[1], _poisson_crps_by_log_rate)
