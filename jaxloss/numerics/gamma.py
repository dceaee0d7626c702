"""Logarithms of gamma functions, and what belongs to them, where differences of large ones would lose all digits.

Each works in float32 and float64, from arguments near 0 to the largest, and so do its first and second derivatives.
Sums have terms of one sign.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import log_ndtr, ndtr, ndtri

from jaxloss.numerics.pairs import quotient
from jaxloss.numerics.partials import with_partials
from jaxloss.numerics.series import atanh_tail, polynomial, terms_for

__all__ = [
    "exp_excess",
    "half_step_correction",
    "log",
    "log_complement",
    "log_difference",
    "log_normal_cdf",
    "normal_cdf",
    "normal_quantile",
    "stirling_correction",
    "stirling_slope",
    "student_fall",
    "student_rise",
    "student_tail_fall",
]

Array = jax.Array

BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
"""The second, fourth, … Bernoulli number."""


def _sizes(a: Array) -> tuple[int, int]:
    """How many steps up the series asks for, and how many terms it then has, in the type of a."""
    return (5, 5) if jnp.finfo(a.dtype).bits <= 32 else (9, 10)


def _series(a: Array, first: int, coefficients: list[float]) -> Array:
    """Σₖ coefficientₖ·a^−(first + 2k)."""
    inverse = 1 / a
    square = inverse * inverse
    return polynomial(square, coefficients) * inverse**first


def _numbered(count: int) -> list[tuple[int, float]]:
    """2, 4, … with their Bernoulli numbers."""
    return [(2 * k + 2, number) for k, number in enumerate(BERNOULLI[:count])]


def _split(a: Array) -> tuple[Array, Array, Array]:
    """Whether a < 1; such an a, else ½; and a number ≥ 1, one step up from a where a < 1.

    Sums over steps from a to a + 1 have closed terms in s = 1/(2a + 1), for log(1 + 1/a) is 2·artanh(s).
    """
    small = a < 1
    return small, jnp.where(small, a, 0.5), jnp.where(small, a + 1, a)


def _curvature(a: Array) -> Array:
    steps, terms = _sizes(a)
    total = _series(a + steps, 3, [number for _, number in _numbered(terms)])
    for step in range(steps):
        x = a + step
        total = total + 0.5 / jnp.square(x * (x + 1))
    return total


def _slope(a: Array) -> Array:
    steps, terms = _sizes(a)
    small, low, high = _split(a)
    total = -_series(high + steps, 2, [number / n for n, number in _numbered(terms)])
    for step in range(steps):
        s = 1 / (2 * (high + step) + 1)
        square = s * s
        total = total - 2 * s * square * (1 / (1 - square) - atanh_tail(square))
    first = jnp.log1p(low) - jnp.log(low) - (low + 0.5) / (low * (low + 1))
    return total + jnp.where(small, first, 0)


def _stirling_correction(a: Array) -> Array:
    """log Γ(a) − [(a − ½)·log a − a + ½·log 2π], for a > 0: about 1/(12a), and −½·log(2πa) near 0."""
    steps, terms = _sizes(a)
    small, low, high = _split(a)
    total = _series(high + steps, 1, [number / (n * (n - 1)) for n, number in _numbered(terms)])
    for step in range(steps):
        square = jnp.square(1 / (2 * (high + step) + 1))
        total = total + square * atanh_tail(square)
    first = (low + 0.5) * (jnp.log1p(low) - jnp.log(low)) - 1
    return total + jnp.where(small, first, 0)


def _half_step_correction(a: Array) -> Array:
    """log Γ(a + ½) − log Γ(a) − ½·log a, for a > 0: about −1/(8a), and ½·log(πa) near 0."""
    steps, terms = _sizes(a)
    small, low, high = _split(a)
    total = _series(high + steps, 1, [(2.0 ** (1 - n) - 2) * number / (n * (n - 1)) for n, number in _numbered(terms)])
    lost = jnp.zeros_like(a)  # 1 − Π(1 − s²)
    for step in range(steps):
        lost = lost + (1 - lost) * jnp.square(1 / (2 * (high + step) + 1))
    total = total + 0.5 * jnp.log1p(-lost)
    first = 0.5 * jnp.log(low * (low + 1) / jnp.square(low + 0.5))
    return total + jnp.where(small, first, 0)


def _half_step_slope(a: Array) -> Array:
    steps, terms = _sizes(a)
    total = -_series(a + steps, 2, [(2.0 ** (1 - n) - 2) * number / n for n, number in _numbered(terms)])
    for step in range(steps):
        x = a + step
        total = total + 0.5 / (x * (x + 1) * (2 * x + 1))
    return total


def _exp_excess(x: Array) -> Array:
    """eˣ − 1 − x."""
    near = jnp.abs(x) < 1
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    series = polynomial(small, [1 / math.factorial(k + 2) for k in range(terms_for(x, 10, 18))])
    return jnp.where(near, small * small * series, jnp.expm1(large) - large)


def _log_difference(x: Array, log_y: Array) -> Array:
    """log(x) − log_y for x ≥ 0, where the two are close with an error far below that of the logarithm."""
    finite = jnp.where(x < jnp.inf, x, 1)
    mantissa, exponent = jnp.frexp(finite)
    halved = mantissa < math.sqrt(0.5)
    mantissa = jnp.where(halved, 2 * mantissa, mantissa)
    octaves = (exponent - halved).astype(x.dtype)
    digits = 2.0 ** (12 if jnp.finfo(x.dtype).bits <= 32 else 26)
    leading = round(math.log(2) * digits) / digits  # so few digits that its product with the octaves is exact
    ratio = (mantissa - 1) / (mantissa + 1)  # artanh of it is half the mantissa's logarithm
    info = jnp.finfo(x.dtype)
    leading_mantissa = lax.reduce_precision(mantissa, info.nexp, info.nmant // 2)  # to which 1 is added exactly
    high, low = quotient(mantissa - 1, -ratio * (mantissa - leading_mantissa), leading_mantissa + 1)
    rest = octaves * (math.log(2) - leading) + 2 * (low + ratio * (ratio * ratio) * atanh_tail(ratio * ratio))
    logarithm = ((octaves * leading - log_y) + 2 * high) + rest
    return jnp.where((x == jnp.inf) | (x == 0), jnp.log(x), jnp.where(x > 0, logarithm, jnp.nan))


def _below_zero(x: Array) -> Array:
    return jnp.minimum(x, -jnp.finfo(x.dtype).eps)


def _log_complement(x: Array) -> Array:
    """log(1 − eˣ) for x < 0: from the logarithm of a probability, that of its complement."""
    x = _below_zero(x)
    return jnp.where(x > -0.5, jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


def _saturating(w: Array) -> Array:
    """w/(1 + w²), half the slope of log(1 + w²); its square does not overflow."""
    near = jnp.abs(w) < 1e9
    small, large = jnp.where(near, w, 0), jnp.where(near, 1, w)
    return jnp.where(near, small / (1 + small * small), 1 / large)


def _log1p_square_value(w: Array) -> Array:
    near = jnp.abs(w) < 1e9
    return jnp.where(near, jnp.log1p(jnp.square(jnp.where(near, w, 0))), 2 * jnp.log(jnp.abs(w)))


_log1p_square = with_partials(_log1p_square_value, lambda w: 2 * _saturating(w))


def _log1p_square_excess_value(w: Array) -> Array:
    """log(1 + w²) − w²/(1 + w²)."""
    near = jnp.abs(w) < 1
    square = jnp.square(jnp.where(near, w, 0))
    s = square / (2 + square)
    small = s * s * (2 / (1 + s) + 2 * s * atanh_tail(s * s))
    return jnp.where(near, small, _log1p_square(w) - w * _saturating(w))


_log1p_square_excess = with_partials(_log1p_square_excess_value, lambda w: 2 * w * jnp.square(_saturating(w)))


def _student_ratio(df: Array, z: Array) -> Array:
    """z/√df, held finite."""
    most = jnp.finfo(z.dtype).max
    return jnp.clip(z / jnp.sqrt(df), -most, most)


def _log1p_square_over(df: Array, z: Array) -> Array:
    """log(1 + z²/df), also where z/√df is beyond the floats, of which the logarithm need not be."""
    beyond = jnp.isinf(z / jnp.sqrt(df))
    return jnp.where(beyond, 2 * jnp.log(jnp.abs(z)) - jnp.log(df), _log1p_square(_student_ratio(df, z)))


def _student_fall(df: Array, z: Array) -> Array:
    """½(df + 1)·log(1 + z²/df): what the log density of Student's t loses from its peak to z."""
    return 0.5 * (df + 1) * _log1p_square_over(df, z)


def _student_fall_by_df(df: Array, z: Array) -> Array:
    w = _student_ratio(df, z)
    return 0.5 * (_log1p_square_excess(w) - w * _saturating(w) / df)


def _student_fall_by_z(df: Array, z: Array) -> Array:
    return (df + 1) / jnp.sqrt(df) * _saturating(_student_ratio(df, z))


def _student_rise(df: Array, z: Array) -> Array:
    """½·log(1 + z²/df)."""
    return 0.5 * _log1p_square_over(df, z)


def _student_rise_by_df(df: Array, z: Array) -> Array:
    w = _student_ratio(df, z)
    return -0.5 * (w * _saturating(w)) / df


def _normal_density(z: Array) -> Array:
    return jnp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _log_normal_cdf_slope(z: Array) -> Array:
    """density/cdf; far below 0 from the series cdf = density/|z|·(1 − 1/z² + 3/z⁴ − 15/z⁶ …)."""
    far = z < (-10 if jnp.finfo(z.dtype).bits <= 32 else -30)
    near, below = jnp.where(far, 0, z), jnp.where(far, z, -1)
    square, series = jnp.square(1 / below), jnp.ones_like(z)
    for odd in (13, 11, 9, 7, 5, 3, 1):
        series = 1 - odd * square * series
    log_cdf = jnp.where(far, 0, log_normal_cdf(z))  # of z itself, as the value is
    return jnp.where(far, -below / series, _normal_density(near) * jnp.exp(-log_cdf))


normal_cdf = with_partials(ndtr, _normal_density)
log_normal_cdf = with_partials(lambda z: log_ndtr(z), _log_normal_cdf_slope)
log_normal_cdf.__doc__ = """log Φ(z), whose slope keeps its digits far below 0."""
normal_quantile = with_partials(ndtri, lambda level: 1 / _normal_density(ndtri(level)))
stirling_slope = with_partials(_slope, _curvature)
stirling_slope.__doc__ = """The derivative of `stirling_correction`."""
stirling_correction = with_partials(_stirling_correction, stirling_slope)
half_step_correction = with_partials(_half_step_correction, _half_step_slope)
exp_excess = with_partials(_exp_excess, with_partials(jnp.expm1, jnp.exp))
log_difference = with_partials(_log_difference, lambda x, _: 1 / x, lambda x, _: -jnp.ones_like(x))
log_complement = with_partials(_log_complement, lambda x: -1 / jnp.expm1(-_below_zero(x)))
student_fall = with_partials(_student_fall, _student_fall_by_df, _student_fall_by_z)
student_rise = with_partials(
    _student_rise, _student_rise_by_df, lambda df, z: _saturating(_student_ratio(df, z)) / jnp.sqrt(df)
)
student_tail_fall = with_partials(
    lambda df, z: df * student_rise(df, z),
    lambda df, z: 0.5 * _log1p_square_excess(_student_ratio(df, z)),
    lambda df, z: jnp.sqrt(df) * _saturating(_student_ratio(df, z)),
)
student_tail_fall.__doc__ = """½df·log(1 + z²/df)."""
log = with_partials(jnp.log, lambda x: 1 / x)
