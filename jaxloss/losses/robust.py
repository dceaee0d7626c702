"""Robust losses: quadratic for small residuals, slower or constant for large ones. r = pred − target, q = |r|/scale.

How each is called, weighted, masked and reduced is the contract of every loss (`jaxloss.lift.Loss`, and the README).
Each is ≈ ½r² near 0, so that they can be exchanged for one another and for huber; `scale` > 0, in the units of r, is
about where they leave the parabola. The scale in the docstring, in standard deviations of the noise, makes the
estimate 95 % as efficient as squared error on normal errors. All but fair are redescending: their slope goes back to
0, so that a gross error counts for nothing, at the price of convexity: start the fit near the answer.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxloss.contract import POSITIVE
from jaxloss.lift import Traits, pointwise
from jaxloss.numerics.pairs import exp_sum, quotient
from jaxloss.numerics.series import atanh_tail, exp_difference

__all__ = ["cauchy", "fair", "geman_mcclure", "tukey", "welsch"]

Array = jax.Array

_REDESCENDING = Traits(residual=True, symmetric=True, bounded_influence=True, estimates="M-estimate")


def _held(residual: Array, scale: Array | float, bound: float | None = None) -> Array:
    """r held within ±bound·scale; by default where the square of r/scale is still finite."""
    limit = (0.55 * float(jnp.finfo(residual.dtype).max) ** 0.5 if bound is None else bound) * scale
    return jnp.clip(residual, -limit, limit)


_TINY = 1e-18
"""Below this q² the losses are ½r² to the last bit."""


def _least(square: Array) -> Array:
    """q², but not so small that it underflows."""
    return jnp.maximum(square, _TINY)


def _half_square(residual: Array, scale: Array | float) -> Array:
    """½r²/_least(q²): ½·scale², but where q² is held above itself ½r²/_TINY."""
    return jnp.minimum(0.5 * scale * scale, (0.5 / _TINY) * jnp.square(residual))


def _cauchy_slope(pred: Array, target: Array, *, scale: Array) -> Array:
    residual, inverse = pred - target, 1 / scale
    return 1 / (1 / residual + (residual * inverse) * inverse)  # q² would overflow


def _cauchy_curvature(pred: Array, target: Array, *, scale: Array) -> Array:
    ratio = _held(pred - target, scale) / scale
    square = ratio * ratio
    weight = 1 / (1 + square)
    return (1 - square) * weight * weight


def _log1p_square(ratio: Array) -> Array:
    """log(1 + q²), also where q² overflows."""
    return jnp.log1p(_least(jnp.square(jnp.minimum(ratio, 1e18)))) + 2 * jnp.log(jnp.maximum(ratio * 1e-18, 1))


def _cauchy_by_scale(pred: Array, target: Array, *, scale: Array) -> Array:
    """scale·(log(1 + q²) − q²/(1 + q²)), near 0 from s = q²/(2 + q²), by log(1 + q²) = 2·artanh(s)."""
    ratio = jnp.abs(pred - target) / scale
    square = jnp.square(jnp.minimum(ratio, 1e18))
    sine = square / (2 + square)
    near = (scale * sine) * (2 * sine) * (1 / (1 + sine) + sine * atanh_tail(sine * sine))
    return jnp.where(square < 1, near, scale * (_log1p_square(ratio) - square / (1 + square)))


@pointwise(
    slope=_cauchy_slope,
    curvature=_cauchy_curvature,
    partials={"scale": _cauchy_by_scale},
    domain={"scale": POSITIVE},
    traits=_REDESCENDING,
)
def cauchy(pred: Array, target: Array, *, scale: Array | float = 1.0) -> Array:
    """Cauchy (Lorentzian) loss ½·scale²·log(1 + q²), by way of log1p.

    The least redescending of the family: it still grows, as log |r|, and 2/scale² of it is the negative log-likelihood
    of Cauchy noise of that scale, up to a constant. scale = 2.385 for 95 % efficiency.
    Smooth: slope r/(1 + q²), curvature (1 − q²)/(1 + q²)². cauchy(scale) = scale²·barron(alpha=0, scale/√2)/2.

    >>> round(float(cauchy(jnp.array([3.0]), jnp.zeros(1), scale=3.0)), 6)
    3.119162
    """
    residual = pred - target
    return _log1p_square(jnp.abs(residual) * (1 / scale)) * _half_square(residual, scale)


def _decay(residual: Array, scale: Array) -> Array:
    """exp(−½q²), whose square is the weight of Welsch's loss where that would underflow; 0 for |r| ≥ 64·scale."""
    high, low = quotient(residual, 0, scale)
    return exp_sum(-0.5 * high * high, -0.5 * low * (2 * high + low))


def _welsch_slope(pred: Array, target: Array, *, scale: Array) -> Array:
    residual = _held(pred - target, scale, 64)
    decay = _decay(residual, scale)
    return residual * decay * decay


def _welsch_curvature(pred: Array, target: Array, *, scale: Array) -> Array:
    residual = _held(pred - target, scale, 64)
    decay = _decay(residual, scale)
    return (1 - 2 * jnp.square(residual / scale)) * decay * decay


def _welsch_by_scale(pred: Array, target: Array, *, scale: Array) -> Array:
    """scale·(1 − (1 + q²)·exp(−q²)), near 0 by its series."""
    square = jnp.square(_held(pred - target, scale, 64) / scale)
    small = -jnp.minimum(square, 1)
    near = (scale * square) * (square * exp_difference(small, small, single=11, double=20))
    return jnp.where(square < 1, near, scale * (1 - (1 + square) * jnp.exp(-square)))


@pointwise(
    slope=_welsch_slope,
    curvature=_welsch_curvature,
    partials={"scale": _welsch_by_scale},
    domain={"scale": POSITIVE},
    traits=_REDESCENDING,
)
def welsch(pred: Array, target: Array, *, scale: Array | float = 1.0) -> Array:
    """Welsch (Leclerc, correntropy) loss ½·scale²·(1 − exp(−q²)), by way of expm1.

    Bounded by ½·scale². scale = 2.985 for 95 % efficiency (Dennis and Welsch, Comm. Stat. B 1978).
    Smooth: slope r·exp(−q²), curvature (1 − 2q²)·exp(−q²). welsch(scale) = scale²·barron(alpha=−∞, scale/√2)/2.

    >>> round(float(welsch(jnp.array([3.0]), jnp.zeros(1), scale=3.0)), 6)
    2.844543
    """
    residual = pred - target
    return -jnp.expm1(-_least(jnp.square(residual * (1 / scale)))) * _half_square(residual, scale)


def _geman_mcclure_parts(pred: Array, target: Array, scale: Array) -> tuple[Array, Array, Array]:
    residual = _held(pred - target, scale)
    square = jnp.square(residual / scale)
    return residual, square, 1 / (1 + square)


def _geman_mcclure_slope(pred: Array, target: Array, *, scale: Array) -> Array:
    residual, _, weight = _geman_mcclure_parts(pred, target, scale)
    return residual * weight * weight


def _geman_mcclure_curvature(pred: Array, target: Array, *, scale: Array) -> Array:
    _, square, weight = _geman_mcclure_parts(pred, target, scale)
    return (1 - 3 * square) * weight * weight * weight


def _geman_mcclure_by_scale(pred: Array, target: Array, *, scale: Array) -> Array:
    """scale·(q²/(1 + q²))²."""
    square = jnp.square(_held(pred - target, scale, 1e9) / scale)  # there the share is 1 to the last bit, or more
    share = square / (1 + square)
    return scale * share * share


@pointwise(
    slope=_geman_mcclure_slope,
    curvature=_geman_mcclure_curvature,
    partials={"scale": _geman_mcclure_by_scale},
    domain={"scale": POSITIVE},
    traits=_REDESCENDING,
)
def geman_mcclure(pred: Array, target: Array, *, scale: Array | float = 1.0) -> Array:
    """Geman–McClure loss ½r²/(1 + q²) (Geman and McClure, Bull. ISI 1987).

    Bounded by ½·scale², which it nears as 1/q²: a Welsch loss with a heavier tail, without an exponential.
    Smooth: slope r/(1 + q²)², curvature (1 − 3q²)/(1 + q²)³. It is scale²·barron(alpha=−2, scale/2)/4.

    >>> float(geman_mcclure(jnp.array([3.0]), jnp.zeros(1), scale=3.0))
    2.25
    """
    return 0.5 / (1 / jnp.square(pred - target) + 1 / (scale * scale))


def _tukey_parts(pred: Array, target: Array, scale: Array) -> tuple[Array, Array]:
    """r held within ±scale, and 1 − q² from the gap scale − |r|, which is exact where it is small."""
    residual, inverse = _held(pred - target, scale, 1), 1 / scale
    size = jnp.abs(residual)
    return residual, ((scale - size) * inverse) * (1 + size * inverse)


def _tukey_slope(pred: Array, target: Array, *, scale: Array) -> Array:
    residual, gap = _tukey_parts(pred, target, scale)
    return residual * gap * gap


def _tukey_curvature(pred: Array, target: Array, *, scale: Array) -> Array:
    residual, gap = _tukey_parts(pred, target, scale)
    return (1 - 5 * jnp.square(residual / scale)) * gap


def _tukey_by_scale(pred: Array, target: Array, *, scale: Array) -> Array:
    """scale·q⁴·(1 − ⅔q²) for q ≤ 1, then scale/3."""
    square = jnp.square(_held(pred - target, scale, 1) / scale)
    return (scale * square) * square * (1 - (2 / 3) * square)


@pointwise(
    slope=_tukey_slope,
    curvature=_tukey_curvature,
    partials={"scale": _tukey_by_scale},
    domain={"scale": POSITIVE},
    traits=_REDESCENDING,
)
def tukey(pred: Array, target: Array, *, scale: Array | float = 4.685) -> Array:
    """Tukey's biweight scale²/6·(1 − (1 − q²)³) for q ≤ 1, then scale²/6 (Beaton and Tukey, Technometrics 1974).

    Computed as ½r²·(1 − q² + q⁴/3), with r² held at scale². Past the scale a row has no influence whatever, so a start
    with every residual out there stays there. scale = 4.685, the default, for 95 % efficiency.
    The slope r(1 − q²)² for q ≤ 1, then 0, and the curvature (1 − q²)(1 − 5q²) for q ≤ 1, then 0, are continuous.

    >>> tukey(jnp.array([3.0]), jnp.zeros(1), scale=6.0).tolist()
    3.46875
    """
    bound = scale * scale
    square = jnp.minimum(jnp.square(pred - target), bound)
    share = square * (1 / (math.sqrt(6) * bound))  # q²/√6
    return square * (0.5 - share * (math.sqrt(1.5) - share))


def _fair_slope(pred: Array, target: Array, *, scale: Array) -> Array:
    residual = _held(pred - target, scale)
    return residual / (1 + jnp.abs(residual) / scale)


def _fair_curvature(pred: Array, target: Array, *, scale: Array) -> Array:
    weight = 1 / (1 + jnp.abs(_held(pred - target, scale)) / scale)
    return weight * weight


def _fair_by_scale(pred: Array, target: Array, *, scale: Array) -> Array:
    """scale·(q − 2·log(1 + q) + q/(1 + q)), near 0 from s = q/(2 + q), by log(1 + q) = 2·artanh(s)."""
    size = jnp.abs(pred - target)
    inner = jnp.minimum(size / scale, 1)
    sine = inner / (2 + inner)
    near = (scale * sine) * (4 * sine) * sine * (1 / (1 - sine * sine) - atanh_tail(sine * sine))
    ratio = jnp.minimum(size / scale, jnp.finfo(size.dtype).max)
    return jnp.where(size < scale, near, size - scale * (2 * jnp.log1p(ratio) - ratio / (1 + ratio)))


@pointwise(
    slope=_fair_slope,
    curvature=_fair_curvature,
    partials={"scale": _fair_by_scale},
    domain={"scale": POSITIVE},
    traits=Traits(residual=True, convex=True, symmetric=True, bounded_influence=True, estimates="M-estimate"),
)
def fair(pred: Array, target: Array, *, scale: Array | float = 1.0) -> Array:
    """Fair's loss scale²·(q − log(1 + q)), by the series of artanh near 0 (Fair, J. Res. NBS 1974).

    Convex, and ≈ scale·|r| far out, like huber, with a slope that leaves the parabola at once. scale = 1.400 for 95 %
    efficiency.
    The slope r/(1 + q) and the curvature 1/(1 + q)² are continuous; the latter has its corner, and maximum, at r = 0.

    >>> round(float(fair(jnp.array([3.0]), jnp.zeros(1), scale=3.0)), 6)
    2.761675
    """
    size = jnp.abs(pred - target)
    inner = jnp.minimum(size, scale)
    sine = inner * (1 / (2 * scale + inner))
    series = jnp.square(math.sqrt(2) * inner / (2 + inner / scale)) * (1 / (1 - sine) - sine * atanh_tail(sine * sine))
    ratio = jnp.minimum(size / scale, jnp.finfo(size.dtype).max)
    return jnp.where(size < 0.5 * scale, series, scale * (size - scale * jnp.log1p(ratio)))
