"""Unit deviances of the exponential family: losses of a mean pred > 0 against a target, as in scikit-learn.

How each is called, weighted, masked and reduced is the contract of every loss (`jaxloss.lift.Loss`, and the README).
Each is twice the log-likelihood ratio of a perfect fit to the prediction, and estimates the mean, as mse does, with
rows weighed by the inverse of the variance that the family gives a mean μ: μ for Poisson, μ² for gamma, μ^power for
Tweedie. Outside its domain a prediction or target gives NaN; make predictions positive by a link, such as
`pred = jnp.exp(raw)`. Where pred and target are close the formula would cancel, and is taken from
s = (target − pred)/(target + pred), by log(target/pred) = 2·artanh(s).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import NONNEGATIVE, POSITIVE, Domain
from jaxloss.lift import Traits, pointwise
from jaxloss.numerics.pairs import Pair, exp_sum, log_pair, split, times, two_sum
from jaxloss.numerics.series import atanh_tail, exp_difference, exprel, exprel_near

__all__ = ["gamma_deviance", "poisson_deviance", "tweedie_deviance"]

Array = jax.Array

TWEEDIE_POWER = Domain("finite, and at most 0 or at least 1", lambda p: ((p <= 0) | (p >= 1)) & np.isfinite(p), 1.5)


def _nonnegative(x: Array) -> Array:
    return jnp.where(x >= 0, x, jnp.nan)


def _held(x: Array) -> Array:
    """x, at least the smallest and at most the largest normal number."""
    info = jnp.finfo(x.dtype)
    return jnp.clip(x, info.tiny, info.max)


def _ratio_parts(pred: Array, target: Array) -> tuple[Array, Array, Array]:
    """Whether target is within a factor 2 of pred; s, held there; log(target/pred), also where the ratio overflows.

    The roots make all of it NaN outside the domain.
    """
    root = jnp.sqrt(target) * (1 / jnp.sqrt(pred))
    near = (root > math.sqrt(0.5)) & (root < math.sqrt(2))
    excess = jnp.maximum(jnp.minimum((target - pred) / pred, 1), -0.5)
    return near, excess * (1 / (2 + excess)), 2 * jnp.log(root)


def _poisson_slope(pred: Array, target: Array) -> Array:
    pred, target = _held(_nonnegative(pred)), _nonnegative(target)
    return jnp.where(target == 0, 2 + 0 * pred, 2 * ((pred - target) / pred))


def _poisson_curvature(pred: Array, target: Array) -> Array:
    pred, target = _held(_nonnegative(pred)), _nonnegative(target)
    inverse = 1 / pred
    return jnp.where(target == 0, 0 * pred, 2 * (target * inverse) * inverse)


def _poisson_by_target(pred: Array, target: Array) -> Array:
    near, s, log_ratio = _ratio_parts(_held(_nonnegative(pred)), target)
    return jnp.where(near, 4 * s * (1 + s * s * atanh_tail(s * s)), 2 * log_ratio)


@pointwise(
    slope=_poisson_slope,
    curvature=_poisson_curvature,
    partials={"target": _poisson_by_target},
    traits=Traits(convex=True, estimates="mean", pred=POSITIVE, target=NONNEGATIVE),
)
def poisson_deviance(pred: Array, target: Array) -> Array:
    """Poisson deviance 2·(target·log(target/pred) − target + pred), and 2·pred for a target of 0.

    pred > 0, target ≥ 0: counts and rates. Estimates the mean; tweedie_deviance(power=1). Up to terms in the target
    alone it is twice the negative log-likelihood.
    Smooth: slope 2(pred − target)/pred, curvature 2·target/pred².

    >>> round(float(poisson_deviance(jnp.array([2.0]), jnp.array([1.0]))), 6)
    0.613706
    """
    near, s, log_ratio = _ratio_parts(pred, target)
    close = 2 * (target - pred) * (s * (1 + s * (1 + s) * atanh_tail(s * s)))
    log_ratio = jnp.maximum(log_ratio, -2 * math.log(jnp.finfo(pred.dtype).max))  # a target of 0: 0·log 0 is 0
    deviance = jnp.where(near, close, 2 * (target * (log_ratio - 1) + pred))
    return jnp.where((pred == 0) & (target == 0), 0, deviance)


def _gamma_slope(pred: Array, target: Array) -> Array:
    pred, target = _held(_nonnegative(pred)), _nonnegative(target)
    inverse = _held(1 / pred)
    return 2 * ((pred - target) * inverse) * inverse


def _gamma_curvature(pred: Array, target: Array) -> Array:
    pred, target = _held(_nonnegative(pred)), _nonnegative(target)
    inverse = 1 / pred
    return 2 * (2 * (target * inverse) - 1) * inverse * inverse


def _gamma_by_target(pred: Array, target: Array) -> Array:
    pred, target = _held(_nonnegative(pred)), _held(_nonnegative(target))
    return 2 * ((target - pred) / jnp.maximum(pred, target)) / jnp.minimum(pred, target)


@pointwise(
    slope=_gamma_slope,
    curvature=_gamma_curvature,
    partials={"target": _gamma_by_target},
    traits=Traits(estimates="mean", pred=POSITIVE, target=POSITIVE),
)
def gamma_deviance(pred: Array, target: Array) -> Array:
    """Gamma deviance 2·(log(pred/target) + target/pred − 1).

    pred > 0, target > 0: waiting times, claims, powers. Depends on their ratio alone, so the unit does not matter;
    estimates the mean; tweedie_deviance(power=2), and the Itakura–Saito distance times 2.
    Smooth: slope 2(pred − target)/pred², curvature 2(2·target − pred)/pred³; not convex where pred > 2·target.

    >>> round(float(gamma_deviance(jnp.array([2.0]), jnp.array([1.0]))), 6)
    0.386294
    """
    near, s, log_ratio = _ratio_parts(pred, target)
    close = 4 * s * s * (1 / (1 - s) - s * atanh_tail(s * s))
    log_ratio = jnp.minimum(log_ratio, 2 * math.log(jnp.finfo(pred.dtype).max))  # ∞ − log ∞ is ∞
    deviance = jnp.where(near, close, 2 * (target / pred - (1 + log_ratio)))
    return jnp.where((pred == 0) & (target == 0), jnp.inf, deviance)


_MOST = 2.0**40
"""Of the size of a power: further out every mean but 1 raised to it is 0 or infinite."""


def _within(power: Array | float) -> Array:
    return jnp.clip(power, -_MOST, _MOST)


def _mean_of(pred: Array, power: Array | float) -> Array:
    """pred as a positive finite number; NaN below 0, and 1 at power 0, where nothing is raised to a power."""
    return jnp.where(power == 0, 1, _held(_nonnegative(pred)))


def _log(x: Array) -> Pair:
    return log_pair(x, 0 * x, 0 * x)


def _power(first: tuple[Pair, Array], *others: tuple[Pair, Array]) -> Array:
    """The product of the powers, each given by its base's logarithm and its exponent."""
    main, rest = times(split(first[1]), first[0])
    for log_base, exponent in others:
        more, low = times(split(exponent), log_base)
        main, lost = two_sum(main, more)
        rest = rest + (lost + low)
    power = exp_sum(jnp.clip(main, -1e4, 1e4), jnp.clip(rest, -1e4, 1e4))  # of which the exponential is 0 or infinite
    return jnp.minimum(power, jnp.finfo(power.dtype).max)


def _tweedie_slope(pred: Array, target: Array, *, power: Array) -> Array:
    power = _within(power)
    root = _power((_log(_mean_of(pred, power)), -0.5 * power))
    root = jnp.where(target == jnp.inf, _held(root), root)  # ∞·0 would be NaN
    return 2 * ((jnp.minimum(pred, jnp.finfo(pred.dtype).max) - target) * root) * root


def _tweedie_curvature(pred: Array, target: Array, *, power: Array) -> Array:
    power = _within(power)
    mean = _mean_of(pred, power)
    root = _power((_log(mean), -0.5 * (power + 1)))
    small = jnp.where(jnp.abs(power) < 2.0**10, 2.0**-12, jnp.full_like(mean, 2.0**-50))
    unit = jnp.where(jnp.maximum(mean, target) > 1, small, 1)  # or the balance might overflow
    balance = (1 - power) * (unit * mean) + power * (unit * target)
    return jnp.where(power == 0, 2, (2 * balance * root) * jnp.minimum(root / unit, jnp.finfo(root.dtype).max))


def _log_ratio(pred: Array, target: Array, log_pred: Pair, log_target: Pair) -> Array:
    """log(target/pred), to all digits also where they are close."""
    excess = jnp.minimum((target - pred) / pred, 1e30)
    s = excess * (1 / (2 + excess))
    far = (log_target[0] - log_pred[0]) + (log_target[1] - log_pred[1])
    return jnp.where(jnp.abs(s) < 1 / 3, 2 * s * (1 + s * s * atanh_tail(s * s)), far)


def _growth(exponent: Array, ratio: Array) -> Array:
    """(e^exponent − 1)·ratio/exponent for exponents up to 1."""
    return ratio * exprel_near(jnp.clip(exponent, -1, 1))


class _Terms(NamedTuple):
    """The terms target₊^(2−p), target·pred^(1−p) and pred^(2−p) of the Tweedie deviance, over the largest of them."""

    ratio: Array
    """log(|target|/pred)."""
    root: Array
    """The root of the largest."""
    top: Array
    mixed: Array
    bottom: Array
    regular: Array
    """Whether target and pred are positive and finite."""


def _terms(mean: Array, pred: Array, target: Array, power: Array | float) -> _Terms:
    amount, positive, two = _held(jnp.where(target == 0, mean, jnp.abs(target))), target > 0, 2 - power
    log_mean, log_amount = _log(mean), _log(amount)
    ratio = _log_ratio(mean, amount, log_mean, log_amount)
    # The largest is amount^x·mean^(two − x).
    x = jnp.where(ratio > 0, jnp.where(positive & (power < 1), two, 1), jnp.where(power < 2, 0, two))
    root = _power((log_amount, 0.5 * x), (log_mean, 0.5 * (two - x)))
    end = (pred == 0) | (pred == jnp.inf)
    top = jnp.where(positive, jnp.exp((two - x) * ratio), 0)
    mixed = jnp.where(end, 0, jnp.sign(target) * jnp.exp((1 - x) * ratio))
    bottom = jnp.where(end, 0, jnp.exp(-x * ratio))
    return _Terms(ratio, root, top, mixed, bottom, positive & ~end)


def _half_share(terms: _Terms, power: Array | float) -> Array:
    """top/(one·two) − mixed/one + bottom/two: half the deviance, over the largest term."""
    ratio, _, top, mixed, bottom, regular = terms
    one, two = 1 - power, 2 - power
    # It is (steep − straight)/last, in a spelling for powers near 1 and one for others. Both are differences of
    # powers, by exprel where these are alike; where all are, so is the whole.
    low = (power >= 1) & (power < 1.5)
    first, start, last = jnp.where(low, one, two), jnp.where(low, mixed, bottom), jnp.where(low, two, one)
    alike = regular & (jnp.abs(first * ratio) < 1)
    steep = jnp.where(alike, start * _growth(first * ratio, ratio), (top - start) / jnp.where(first == 0, 1, first))
    straight = jnp.where(regular & (jnp.abs(ratio) < 1), bottom * _growth(ratio, ratio), mixed - bottom)
    close = regular & (jnp.abs(ratio) < 0.5) & (jnp.abs(two * ratio) < 1)
    small = jnp.where(close, ratio, 0)
    series = bottom * (small * small) * exp_difference(small, two * small, single=12, double=20)
    return jnp.where(close, series, (steep - straight) / last)


def _tweedie_by_target(pred: Array, target: Array, *, power: Array) -> Array:
    """2·(target₊^(1−p) − pred^(1−p))/(1−p), from the larger of the powers."""
    power = _within(power)
    mean, one, positive = _mean_of(pred, power), 1 - power, target > 0
    amount = _held(jnp.where(positive, target, mean))
    ratio = _log_ratio(mean, amount, _log(mean), _log(amount))
    root = _power((_log(jnp.where(one * ratio > 0, amount, mean)), 0.5 * one))
    share = jnp.where(positive, ratio * exprel(-jnp.abs(one * ratio)), -1 / jnp.where(power < 1, one, 1))
    slope = jnp.where(positive | (power < 1), 2 * (root * share) * root, -jnp.inf)
    return jnp.where(power == 0, 2 * (target - pred), jnp.where((target < 0) & (power >= 1), jnp.nan, slope))


def _moment(y: Array, start: Array, end: Array) -> Array:
    """start·∫τ·e^(yτ)dτ over τ from 0 to 1, with end = start·eʸ."""
    near = jnp.abs(y) < 1
    small, large = jnp.where(near, y, 0), jnp.where(near, 1, y)
    series = start * exp_difference(small, small, single=11, double=20)
    return jnp.where(near, series, (start + (large - 1) * end) / (large * large))


def _mean_power(y: Array, start: Array, end: Array) -> Array:
    """start·∫e^(yτ)dτ over τ from 0 to 1, with end = start·eʸ."""
    near = jnp.abs(y) < 1
    return jnp.where(near, start * exprel_near(jnp.where(near, y, 0)), (end - start) / jnp.where(near, 1, y))


def _tweedie_by_power(pred: Array, target: Array, *, power: Array) -> Array:
    """−log(pred)·deviance − 2·∫(target − y)·log(y/pred)·y^(−p)dy, y from pred to target; 0 where there is none."""
    power, none = _within(power), (power == 0) & (pred <= 0)
    mean = jnp.where(none, 1, _held(_nonnegative(pred)))
    terms = _terms(mean, pred, target, power)
    ratio, root, top, mixed, bottom, regular = terms
    one, two = 1 - power, 2 - power
    # The integral over the largest term; its three spellings are each for where they do not cancel.
    near = jnp.abs(two * ratio) < 1
    close = near & (jnp.abs(ratio) < 0.5)
    small = jnp.where(close, ratio, 0)
    series = bottom * (small * small * small) * exp_difference(small, two * small, two * small, single=12, double=20)
    steep = ratio * ratio * _moment(one * ratio, mixed, top)
    apart = steep - ratio * ratio * _moment(two * ratio, bottom, top)
    grown = _mean_power(one * ratio, mixed, top) - _mean_power(ratio, bottom, mixed)
    divisor = jnp.where(near, 1, two)
    far = (steep - ratio / divisor * grown) / divisor
    integral = jnp.where(close, series, jnp.where(near, apart, far))
    rest = mixed / jnp.where(one == 0, 1, one * one) - bottom / jnp.where(two == 0, 1, two * two)
    integral = jnp.where(regular, integral, rest)
    slope = -2 * (root * (jnp.log(mean) * _half_share(terms, power) + integral)) * root
    return jnp.where(none, 0, slope)


@pointwise(
    slope=_tweedie_slope,
    curvature=_tweedie_curvature,
    partials={"target": _tweedie_by_target, "power": _tweedie_by_power},
    domain={"power": TWEEDIE_POWER},
    traits=Traits(estimates="mean", pred=POSITIVE, target=NONNEGATIVE),
)
def tweedie_deviance(pred: Array, target: Array, *, power: Array | float) -> Array:
    """Tweedie deviance 2·(target₊^(2−p)/((1−p)(2−p)) − target·pred^(1−p)/(1−p) + pred^(2−p)/(2−p)), p = power.

    target₊ is max(target, 0). Its limit at p = 1 is poisson_deviance, at p = 2 gamma_deviance; mse at p = 0; 3 is
    inverse Gaussian. Between 1 and 2 it is the compound Poisson–gamma: sums of a random number of positive amounts,
    so often exactly 0.
    p ≤ 0 or ≥ 1. pred > 0, except that p = 0 takes any number; target > 0 for p ≥ 2, ≥ 0 for 1 ≤ p < 2, any for p ≤ 0.
    Estimates the mean. Smooth: slope 2(pred − target)/pred^p, curvature 2(1 − p + p·target/pred)/pred^p.

    >>> round(float(tweedie_deviance(jnp.array([4.0]), jnp.array([1.0]), power=1.5)), 6)
    2.0
    """
    power = _within(power)
    terms, positive = _terms(_mean_of(pred, power), pred, target, power), target > 0
    deviance = 2 * (terms.root * _half_share(terms, power)) * terms.root
    outside = (target < 0) & (power >= 1)
    infinite = (target == jnp.inf) | ((pred == jnp.inf) & (power <= 2)) | ((target == 0) & (power >= 2))
    infinite = infinite | ((pred == 0) & positive & (power >= 1))
    deviance = jnp.where(outside, jnp.nan, jnp.where(infinite, jnp.inf, deviance))
    return jnp.where(power == 0, jnp.square(pred - target), deviance)
