"""Losses of a prediction that is a distribution, all called like any loss (`jaxloss.lift.Loss`, and the README).

Scores for minimising: each is least, in expectation, for the true distribution.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.contract import NONNEGATIVE, Domain
from jaxloss.lift import pointwise
from jaxloss.likelihood.distribution import Distribution
from jaxloss.likelihood.ensemble import Ensemble
from jaxloss.numerics import kink
from jaxloss.numerics.gamma import log, log_complement, log_difference

__all__ = ["beta_nll", "censored_nll", "crps", "energy_score", "nll"]

Array = jax.Array

CENSORING = Domain("−1 (left), 0 (observed) or 1 (right)", lambda code: (code == -1) | (code == 0) | (code == 1), 0.0)
UPPER = Domain("a number, or inf", lambda upper: ~np.isnan(upper), math.inf)


@pointwise
def nll(pred: Distribution, target: Array) -> Array:
    """Negative log-likelihood −log pred.log_prob(target), constants included, so that families compare.

    For Normal of constant scale it is mse/(2·scale²) plus a constant, and minimised by the same predictions.

    >>> float(nll(Normal(jnp.zeros(1), jnp.ones(1)), jnp.zeros(1)))
    0.9189385175704956
    """
    return -pred._log_prob(target)


@pointwise(domain={"beta": NONNEGATIVE})
def beta_nll(pred: Distribution, target: Array, *, beta: Array | float = 0.5) -> Array:
    """nll·variance^β, through whose weight variance^β no gradient flows (Seitzer et al., ICLR 2022, eq. 5).

    β = 0 is nll; at β = 1 the mean is trained as by mse/2, whatever the variance: rows that are not yet fitted are not
    written off as noise. β ≥ 0; needs a family with a finite variance.

    >>> pred, target = Normal(jnp.zeros(1), 2 * jnp.ones(1)), jnp.ones(1)
    >>> float(jax.grad(beta_nll)(pred, target, beta=1.0).loc[0])
    -1.0
    """
    return lax.stop_gradient(pred._variance() ** beta) * -pred._log_prob(target)


@pointwise
def crps(pred: Distribution, target: Array) -> Array:
    """Continuous ranked probability score ∫(F(y) − 1{y ≥ target})² dy, in the target's units.

    Gneiting & Raftery, JASA 2007, eq. 20; closed forms as in Jordan, Krüger & Lerch, J. Stat. Softw. 2019. It is
    |pred − target| for a certain prediction: mae for distributions, and finite where nll is not. For an `Ensemble` it
    is the fair estimate from its samples. A family without closed form is a `TypeError`: score samples of it.

    >>> round(float(crps(Normal(jnp.zeros(1), jnp.ones(1)), jnp.zeros(1))), 6)
    0.233695
    """
    return pred._crps(target)


@pointwise(domain={"censoring": CENSORING, "upper": UPPER})
def censored_nll(
    pred: Distribution, target: Array, *, censoring: Array | float, upper: Array | float = math.inf
) -> Array:
    """Negative log-likelihood of targets of which some are known only to be below, above or between numbers.

    censoring = 0: the target was observed: nll. −1: all that is known is Y ≤ target: −log P(Y ≤ target).
    1: target < Y ≤ upper: −log P(target < Y ≤ upper); with upper = inf, the default, it is right-censored.
    Tails are computed in logarithms: far out the gradient is alive. Tobit regression with Normal (Tobin, Econometrica
    1958), survival times with LogNormal or Gamma.

    >>> lifetimes, ended = jnp.array([2.0, 5.0]), jnp.array([0, 1])
    >>> pred = Normal(jnp.array([2.0, 5.0]), jnp.ones(2))
    >>> [round(x, 4) for x in censored_nll(pred, lifetimes, censoring=ended, reduction="none").tolist()]
    [0.9189, 0.6931]
    """
    observed, left = jnp.asarray(censoring == 0), jnp.asarray(censoring < 0)
    bounded = ~observed & ~left & (upper < jnp.inf)
    # Tails have finite derivatives everywhere; a density that is not used is that of a standard distribution.
    below, above = pred._log_tails(target)
    high_below, high_above = pred._log_tails(jnp.where(bounded, upper, target))
    in_upper_tail = above < below
    most, rest = jnp.where(in_upper_tail, above, high_below), jnp.where(in_upper_tail, high_above, below)
    ratio = jnp.where(bounded, jnp.minimum(rest - most, 0), -1)
    narrow = (ratio > -0.01) & (not pred.discrete)  # there the difference of two tails would cancel
    dense = observed | narrow
    dense_pred, start = pred._where(dense), jnp.where(dense, target, pred.support.inside)
    exact = dense_pred._log_prob(start)
    between = most + log_complement(jnp.where(narrow, -1, ratio))
    if not pred.discrete:
        between = jnp.where(narrow, _log_mass_of_narrow(dense_pred, exact, narrow, start, jnp.asarray(upper)), between)
    return -jnp.where(observed, exact, jnp.where(left, below, jnp.where(bounded, between, above)))


def _log_mass_of_narrow(pred: Distribution, at_low: Array, narrow: Array, low: Array, high: Array) -> Array:
    """log P(low < Y ≤ high) by Simpson's rule, of positive numbers in their logarithm; some number where not narrow.

    at_low: the log density there.
    """
    high = jnp.where(narrow, high, low)
    if pred.support.above == 0:
        start, end = jnp.where(narrow, low, 1), jnp.where(narrow, high, 2)
        width, middle = log_difference(end, log(start)), jnp.where(narrow, jnp.sqrt(start) * jnp.sqrt(end), low)
        units = log(start), log(jnp.where(narrow, middle, 1)), log(end)
    else:
        width, units = jnp.where(narrow, high - low, 1), (0, 0, 0)
        middle = jnp.where(narrow, low + 0.5 * width, low)
    densities = [
        jnp.where(narrow, density + unit, 0)
        for density, unit in zip((at_low, pred._log_prob(middle), pred._log_prob(high)), units, strict=True)
    ]
    most = lax.stop_gradient(densities[1])
    total = sum(
        share * jnp.exp(density - most) for share, density in zip((1 / 6, 4 / 6, 1 / 6), densities, strict=True)
    )
    return most + (jnp.log(total) + log(width))


@pointwise(event_ndim=1)
def _energy(pred: Ensemble, target: Array) -> Array:
    errors = jax.vmap(lambda draw: kink.norm(draw - target), -1)(pred.values)
    pairs = jax.vmap(lambda one: jax.vmap(lambda other: kink.norm(one - other), -1)(pred.values), -1)(pred.values)
    count = pred.values.shape[-1]
    return errors.mean() - 0.5 * pairs.sum() / (count * (count - 1))


def energy_score(samples: Any, target: Any, **shared: Any) -> Array:
    """Energy score E‖X − target‖ − ½E‖X − X′‖ of vectors (the last axis), from samples; in the target's units.

    Gneiting & Raftery, JASA 2007, eq. 22, by the fair (unbiased) estimate over pairs of different samples, so that its
    expectation does not depend on their number m ≥ 2; O(m²). With vectors of one number it is crps.
    samples: of shape (m, *target.shape), as `sample(key, (m,))` draws them. The rest is as for any loss with
    event_ndim = 1: weights, where, axis and reduction refer to target.shape[:-1].

    >>> samples = jnp.array([[[0.0, 0.0]], [[0.0, 2.0]]])
    >>> float(energy_score(samples, jnp.array([[0.0, 1.0]])))
    0.0
    """
    return _energy(Ensemble.of(samples), target, **shared)
