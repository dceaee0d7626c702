"""The exact losses and their derivatives, in mpmath, from their definitions, with no jax.

Each takes exact numbers: a prediction and a target, or a residual r, and the settings. At a kink they follow the
library's convention: the slope is the subgradient of least magnitude, the curvature the one on the side of the smaller
|residual|. An oracle may return a list of terms: it stands for their sum, and the error of the library is measured
against the largest of them, as where a formula changes sign no float32 can do better.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mpmath import exp, inf, log, mp, mpf, sign

mp.dps = 120  # log cosh(1e-30) is 5e-61: the oracle's own cancellation must leave digits

Oracle = Callable[..., Any]


def summed(oracle: Oracle) -> Oracle:
    """The oracle with its terms added up."""

    def total(pred, target, **settings):
        terms = oracle(pred, target, **settings)
        return sum(terms) if isinstance(terms, list) else terms

    return total


def largest(oracle: Oracle) -> Oracle:
    """The size of the oracle's largest term."""

    def size(pred, target, **settings):
        terms = oracle(pred, target, **settings)
        return max(map(abs, terms)) if isinstance(terms, list) else abs(terms)

    return size


def of_residual(function: Oracle) -> Oracle:
    """An oracle of (pred, target) from one of the residual."""
    return lambda pred, target, **settings: function(pred - target, **settings)


def derivative(function: Callable[[Any], Any], at: Any) -> Any:
    """By central differences with a step of 10⁻⁶⁰, correct to about 60 digits at twice the working precision."""
    step = (abs(at) if at else mpf(1)) * mpf(10) ** -60
    with mp.workdps(250):
        return (function(at + step) - function(at - step)) / (2 * step)


# Losses of the residual


def huber(r, delta):
    return r**2 / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)


def huber_slope(r, delta):
    return r if abs(r) <= delta else delta * sign(r)


def huber_curvature(r, delta):
    return mpf(abs(r) <= delta)


def far(r) -> bool:
    """Where cosh r is e^|r|/2 to all digits, and needs no number of 10³⁰ digits."""
    return abs(r) > 1000


def excess(r, epsilon):
    return max(abs(r) - epsilon, mpf(0))


def pseudo_huber_delta_slope(r, delta):
    root = mp.sqrt(1 + (r / delta) ** 2)
    return delta * (root - 1) ** 2 / root


def tukey(r, scale):
    return scale**2 / 6 * (1 - (1 - min((r / scale) ** 2, mpf(1))) ** 3)


def tukey_slope(r, scale):
    return r * (1 - (r / scale) ** 2) ** 2 if abs(r) < scale else mpf(0)


def tukey_curvature(r, scale):
    square = (r / scale) ** 2
    return [1 - square, -5 * square * (1 - square)] if square < 1 else mpf(0)


def tukey_scale_slope(r, scale):
    square = min((r / scale) ** 2, mpf(1))
    return scale * square**2 * (1 - 2 * square / 3)


def cauchy_scale_slope(r, scale):
    square = (r / scale) ** 2
    return scale * (log(1 + square) - square / (1 + square))


def welsch_scale_slope(r, scale):
    square = (r / scale) ** 2
    return scale * (1 - (1 + square) * exp(-square))


def geman_mcclure_scale_slope(r, scale):
    square = (r / scale) ** 2
    return scale * (square / (1 + square)) ** 2


def fair_scale_slope(r, scale):
    ratio = abs(r) / scale
    return scale * (ratio - 2 * log(1 + ratio) + ratio / (1 + ratio))


def cauchy_curvature(r, scale):
    square = (r / scale) ** 2
    return [1 / (1 + square) ** 2, -square / (1 + square) ** 2]


def welsch_curvature(r, scale):
    square = (r / scale) ** 2
    return [exp(-square), -2 * square * exp(-square)]


def geman_mcclure_curvature(r, scale):
    square = (r / scale) ** 2
    return [1 / (1 + square) ** 3, -3 * square / (1 + square) ** 3]


# Quantiles


def weight(r, level):
    return 1 - level if r > 0 else level


def least_weight(r, level):
    return min(level, 1 - level) if r == 0 else weight(r, level)


# Relative errors


def log_ratio(pred, target):
    return log(1 + pred) - log(1 + target)


def msle_curvature(pred, target):
    return [2 / (1 + pred) ** 2, -2 * log_ratio(pred, target) / (1 + pred) ** 2]


def mape_target_slope(pred, target, epsilon):
    inner = -sign(pred - target) / epsilon
    if abs(target) < epsilon:
        return inner
    outer = -sign(pred - target) * pred / (target * abs(target))
    if abs(target) > epsilon:
        return outer
    return mpf(0) if inner * outer < 0 else min(inner, outer, key=abs)


def smape_slope(pred, target, epsilon):
    size, direction = abs(pred) + abs(target), sign(pred - target)
    inner = 2 * direction / epsilon
    outer = 4 * abs(target) * direction / size**2 if sign(pred) * sign(target) > 0 else mpf(0)
    if size == epsilon:
        return min(inner, outer, key=abs)
    return outer if size > epsilon else inner


def smape_curvature(pred, target, epsilon):
    size = abs(pred) + abs(target)
    # At pred = 0 the smaller |residual| is on the target's side, where the signs agree.
    same = sign(pred) * sign(target) > 0 or (pred == 0 and target != 0)
    inside = size < epsilon or (size == epsilon and abs(pred) > abs(target))
    if not same or inside:
        return mpf(0)
    return (8 if abs(pred) < abs(target) else -8) * abs(target) / size**3


# Deviances


def tweedie(pred, target, power):
    if power == 0:
        return (target - pred) ** 2
    if power == 1:
        return 2 * ((target * log(target / pred) if target else 0) - target + pred)
    if power == 2:
        return 2 * (log(pred / target) + target / pred - 1)
    top = target ** (2 - power) if target > 0 else mpf(0)
    tangent = target * pred ** (1 - power) / (1 - power)
    return 2 * (top / ((1 - power) * (2 - power)) - tangent + pred ** (2 - power) / (2 - power))


def tweedie_slope(pred, target, power):
    return 2 * (pred - target) * pred**-power


def tweedie_curvature(pred, target, power):
    return [2 * (1 - power) * pred**-power, 2 * power * target * pred ** (-power - 1)]


def tweedie_target_slope(pred, target, power):
    if power == 0:
        return 2 * (target - pred)
    if power == 1:
        return 2 * log(target / pred) if target else -inf
    if target == 0 and power > 1:
        return -inf
    top = target ** (1 - power) if target > 0 else mpf(0)
    return 2 * (top - pred ** (1 - power)) / (1 - power)


def tweedie_power_slope(pred, target, power):
    """By how the unit of both enters, and by the rest."""
    if pred == target:
        return mpf(0)
    unit = -log(pred) * tweedie(pred, target, power)
    return [unit, derivative(lambda p: tweedie(pred, target, p), power) - unit]


# Barron's general loss


def barron(r, alpha, scale):
    x = (r / scale) ** 2
    if alpha == 2:
        return x / 2
    if alpha == 0:
        return log(1 + x / 2)
    if alpha == -inf:
        return 1 - exp(-x / 2)
    beta = 2 - alpha
    return beta / alpha * ((1 + x / beta) ** (alpha / 2) - 1)


def barron_weight(r, alpha, scale):
    x = (r / scale) ** 2
    if alpha == 2:
        return mpf(1)
    if alpha == -inf:
        return exp(-x / 2)
    return (1 + x / (2 - alpha)) ** (alpha / 2 - 1)


def barron_slope(r, alpha, scale):
    return r / scale**2 * barron_weight(r, alpha, scale)


def barron_curvature(r, alpha, scale):
    x, steep = (r / scale) ** 2, barron_weight(r, alpha, scale) / scale**2
    if alpha == 2:
        return steep
    if alpha == -inf:
        return [steep, -steep * x]
    z = x / (2 - alpha)
    return [steep / (1 + z), steep * (alpha - 1) * z / (1 + z)]


def barron_alpha_slope(r, alpha, scale):
    """∂/∂α; at 2, where it is infinite, that of the float32 before 2."""
    if alpha == -inf:
        return mpf(0)
    return derivative(lambda a: barron(r, a, scale), min(alpha, 2 - mpf(2) ** -23))


def barron_scale_slope(r, alpha, scale):
    return -r / scale * barron_slope(r, alpha, scale)


CUTS = [-70, -40, -20, -10, -5, -2, 0, 1, 2, 3, 5, 10, 20, 40, 70, 100]
"""Of log r, for quadrature."""


@functools.cache
def log_partition(alpha):
    """log ∫ exp(−barron(r, α, 1)) dr, by quadrature in log r."""
    with mp.workdps(30):
        return log(2 * mp.quad(lambda t: exp(t - barron(exp(t), alpha, mpf(1))), CUTS))


@functools.cache
def log_partition_slope(alpha):
    """∂/∂α of it: minus the mean of barron's under the density."""

    def weighed(t):
        r = exp(t)
        return exp(t - barron(r, alpha, mpf(1)) - log_partition(alpha)) * barron_alpha_slope(r, alpha, mpf(1))

    with mp.workdps(30):
        return -2 * mp.quad(weighed, CUTS)


def barron_nll(r, alpha, scale):
    return [barron(r, alpha, scale), log(scale), log_partition(alpha)]


def barron_nll_alpha_slope(r, alpha, scale):
    return [barron_alpha_slope(r, alpha, scale), log_partition_slope(alpha)]


def barron_nll_scale_slope(r, alpha, scale):
    return [barron_scale_slope(r, alpha, scale), 1 / scale]
