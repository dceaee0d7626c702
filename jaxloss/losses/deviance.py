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

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import NONNEGATIVE, POSITIVE, Domain
from jaxloss.lift import Traits, pointwise
from jaxloss.losses.special import atanh_tail, exp_difference, exp_sum, exprel, log_pair, split, times

__all__ = ["gamma_deviance", "poisson_deviance", "tweedie_deviance"]

Array = jax.Array

TWEEDIE_POWER = Domain("finite, and at most 0 or at least 1", lambda p: ((p <= 0) | (p >= 1)) & np.isfinite(p), 1.5)


def _nonnegative(x: Array) -> Array:
    return jnp.where(x >= 0, x, jnp.nan)


def _finite(x: Array) -> Array:
    return jnp.minimum(x, jnp.finfo(x.dtype).max)


def _half_log_ratio(pred: Array, target: Array) -> tuple[Array, Array]:
    """Whether target is within a factor 2 of pred, and then s, else 0."""
    excess = jnp.minimum((target - pred) / pred, 1e30)
    s = excess / (2 + excess)
    near = jnp.abs(s) < 1 / 3
    return near, jnp.where(near, s, 0)


def _ratio_parts(pred: Array, target: Array) -> tuple[Array, Array, Array]:
    """Whether target is within a factor 2 of pred; s, held there; log(target/pred), also where the ratio overflows.

    The roots make all of it NaN outside the domain.
    """
    root = jnp.sqrt(target) / jnp.sqrt(pred)
    near = (root > math.sqrt(0.5)) & (root < math.sqrt(2))
    excess = jnp.maximum(jnp.minimum((target - pred) / pred, 1), -0.5)
    return near, excess / (2 + excess), 2 * jnp.log(root)


def _poisson_slope(pred: Array, target: Array) -> Array:
    pred, target = _finite(_nonnegative(pred)), _nonnegative(target)
    return jnp.where(target == 0, 2 + 0 * pred, 2 * ((pred - target) / pred))


def _poisson_curvature(pred: Array, target: Array) -> Array:
    pred, target = _finite(_nonnegative(pred)), _nonnegative(target)
    inverse = 1 / pred
    return jnp.where(target == 0, 0 * pred, 2 * (target * inverse) * inverse)


@pointwise(
    slope=_poisson_slope,
    curvature=_poisson_curvature,
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
    return jnp.where(near, close, 2 * (target * (log_ratio - 1) + pred))


def _gamma_slope(pred: Array, target: Array) -> Array:
    pred, target = _finite(_nonnegative(pred)), _nonnegative(target)
    inverse = 1 / pred
    return 2 * ((pred - target) * inverse) * inverse


def _gamma_curvature(pred: Array, target: Array) -> Array:
    pred, target = _finite(_nonnegative(pred)), _nonnegative(target)
    inverse = 1 / pred
    return 2 * (2 * (target * inverse) - 1) * inverse * inverse


@pointwise(
    slope=_gamma_slope,
    curvature=_gamma_curvature,
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
    return jnp.where(near, close, 2 * (target / pred - (1 + log_ratio)))


def _mean_of(pred: Array, power: Array | float) -> Array:
    """pred as a positive finite number; NaN below 0, and 1 at power 0, where nothing is raised to a power."""
    mean = jnp.clip(_nonnegative(pred), jnp.finfo(pred.dtype).tiny, jnp.finfo(pred.dtype).max)
    return jnp.where(power == 0, 1, mean)


def _power(log_base: tuple[Array, Array], exponent: Array) -> Array:
    """base**exponent, held where it is finite."""
    power = exp_sum(*times(split(exponent), log_base))
    return jnp.minimum(power, jnp.finfo(power.dtype).max)


def _log(x: Array) -> tuple[Array, Array]:
    return log_pair(x, 0 * x, 0 * x)


def _tweedie_slope(pred: Array, target: Array, *, power: Array) -> Array:
    root = _power(_log(_mean_of(pred, power)), -0.5 * power)
    return 2 * ((_finite(pred) - target) * root) * root


def _tweedie_curvature(pred: Array, target: Array, *, power: Array) -> Array:
    mean = _mean_of(pred, power)
    root = _power(_log(mean), -0.5 * (power + 1))
    unit = jnp.where(mean > 1, 2.0**-12, jnp.ones_like(mean))  # or the balance might overflow
    balance = (1 - power) * (unit * mean) + power * (unit * target)
    return jnp.where(power == 0, 2, (2 * balance * root) * (root / unit))


@pointwise(
    slope=_tweedie_slope,
    curvature=_tweedie_curvature,
    domain={"power": TWEEDIE_POWER},
    traits=Traits(estimates="mean", pred=POSITIVE, target=NONNEGATIVE),
)
def tweedie_deviance(pred: Array, target: Array, *, power: Array | float) -> Array:
    """Tweedie deviance 2·(target₊^(2−p)/((1−p)(2−p)) − target·pred^(1−p)/(1−p) + pred^(2−p)/(2−p)), p = power.

    target₊ is max(target, 0). Its limit at p = 1 is poisson_deviance, at p = 2 gamma_deviance; mse at p = 0; 3 is
    inverse Gaussian. Between 1 and 2 it is the
    compound Poisson–gamma: sums of a random number of positive amounts, so often exactly 0.
    p ≤ 0 or ≥ 1. pred > 0, except that p = 0 takes any number; target > 0 for p ≥ 2, ≥ 0 for 1 ≤ p < 2, any for p ≤ 0.
    Estimates the mean. Smooth: slope 2(pred − target)/pred^p, curvature 2(1 − p + p·target/pred)/pred^p.

    >>> round(float(tweedie_deviance(jnp.array([4.0]), jnp.array([1.0]), power=1.5)), 6)
    2.0
    """
    mean = _mean_of(pred, power)
    positive = (target > 0) & (power != 0)
    amount = jnp.where(positive, _finite(target), 1)
    log_mean, log_amount = _log(mean), _log(amount)
    near, s = _half_log_ratio(mean, amount)
    far_ratio = (log_amount[0] - log_mean[0]) + (log_amount[1] - log_mean[1])
    log_ratio = jnp.where(near, 2 * s * (1 + s * s * atanh_tail(s * s)), far_ratio)
    one, two = 1 - power, 2 - power
    # Close: the deviance is a divided difference of exp, whatever the power. Else there are two spellings.
    close = (jnp.abs(log_ratio) < 0.5) & (jnp.abs(two * log_ratio) < 1)
    low = (power >= 1) & (power < 1.5) & positive & ~close
    other = positive & ~close & ~low
    root = _power(log_mean, 0.5 * jnp.where(low | ~positive, one, two))
    small = jnp.where(close, log_ratio, 0)
    step = root * small
    series = step * (2 * exp_difference(small, two * small, single=12, double=20)) * step
    # Powers from 1 to 1.5: (a·ℓ·exprel((1−p)ℓ) − (a − μ))·μ^(1−p)/(2−p), with ℓ = log(a/μ).
    growth = amount * (log_ratio * exprel(jnp.where(low, one * log_ratio, 0)))
    from_one = (jnp.where(low, growth - (amount - mean), 0) * root) * (root / jnp.where(low, two, 1))
    # Others: ((a^(2−p) − μ^(2−p))/(2−p) − μ^(1−p)(a − μ))/(1−p), the first ratio by exprel where p is near 2.
    one_or = jnp.where(other, one, 1)
    mild = ~other | (jnp.abs(two * log_ratio) < 1)
    product = jnp.where(mild, 1, one * two)
    peak = _power(log_amount, jnp.where(mild, 0, 0.5 * two))
    lift = jnp.where(jnp.maximum(root, peak) < 1e-8, 2.0**30, jnp.ones_like(root))  # or the squares might underflow
    high, peak = lift * jnp.where(other, root, 1), lift * peak
    rise = peak * (peak / product) - high * (high / product)
    mildly = high * ((high / one_or) * (log_ratio * exprel(jnp.where(mild & other, two * log_ratio, 0))))
    wide = other & (amount > 1e30 * mean)  # or amount/mean might overflow
    gap = jnp.where(other, amount - mean, 0) / jnp.where(other & ~wide, mean, 1)
    tangent = high * ((high / jnp.where(wide, mean, 1)) / one_or) * gap
    general = 2 * (jnp.where(mild, mildly, rise) - tangent) / (lift * lift)
    regular = jnp.where(close, series, jnp.where(low, 2 * from_one, general))
    regular = jnp.where(jnp.isnan(regular) & ~jnp.isnan(mean), jnp.inf, regular)  # ∞ − ∞, past all bounds
    # A target of 0 or less has no power.
    root, mean = jnp.where(positive, 1, root), jnp.where(positive, 1, mean)
    slant = jnp.where(target == 0, 0, target / jnp.where(power == 1, 1, one))
    bare = root * (root * (mean / jnp.where(power < 2, two, 1) - slant))
    outside = jnp.where(target == 0, jnp.inf, jnp.full_like(target, jnp.nan))
    bare = jnp.where((power < 2) & ((target == 0) | (power < 1)), bare, outside)
    deviance = jnp.where(positive, regular, 2 * bare)
    infinite = ((pred == jnp.inf) & (power <= 2)) | (target == jnp.inf)
    return jnp.where(power == 0, jnp.square(pred - target), jnp.where(infinite, jnp.inf, deviance))
