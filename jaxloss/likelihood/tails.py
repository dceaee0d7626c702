"""Logarithms of the tails of the gamma and Student's t distributions, with derivatives in the shape as well.

A tail beyond a point is the density there times ∫₀^∞ exp(−fall(h)) dh. In the right coordinate (the logarithm for the
gamma distribution, the hyperbolic arcsine for Student's) `fall` is a convex sum of terms of one sign, and one Gauss
rule serves every shape and every point, from the centre to where the tail itself is far below the least float.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.numerics.gamma import (
    exp_excess,
    half_step_correction,
    log_complement,
    stirling_correction,
    stirling_slope,
    student_tail_fall,
)
from jaxloss.numerics.partials import with_partials

__all__ = [
    "gamma_log_density",
    "gamma_tails",
    "hold_shape",
    "log_integral",
    "student_log_peak",
    "student_tails",
]

Array = jax.Array


def _settings(dtype: jnp.dtype) -> tuple[int, float]:
    """The number of nodes that the type needs, and the fall past which exp(−fall) is below its precision."""
    return (28, 18.0) if jnp.finfo(dtype).bits <= 32 else (64, 40.0)


def log_integral(fall: Callable[[Array], Array], reach: Array) -> Array:
    """log ∫₀^reach exp(−fall(h)) dh, by a Gauss rule in the cube root of h: nodes crowd near 0, where fall may bend."""
    nodes, weights = np.polynomial.legendre.leggauss(_settings(reach.dtype)[0])
    nodes = 0.5 * (nodes + 1)
    rule = jnp.asarray(nodes**3, reach.dtype), jnp.asarray(1.5 * nodes**2 * weights, reach.dtype)
    info = jnp.finfo(reach.dtype)
    reach = lax.stop_gradient(jnp.clip(reach, info.tiny, 0.25 * info.max))

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        place, weight = node
        return total + weight * jnp.exp(-fall(place * reach)), None

    # A loop: in one kernel for all nodes, XLA computes what they share once for each.
    total, _ = lax.scan(add, jnp.zeros_like(reach), rule)
    return jnp.log(reach) + jnp.log(total)


def hold_shape(shape: Array) -> Array:
    """The shape, away from the ends of its type, where its square, and what it is multiplied by here, overflows."""
    info = jnp.finfo(shape.dtype)
    least, most = (jnp.asarray(bound, shape.dtype) for bound in (2.0**30 * info.tiny, 2.0**-30 * info.max))
    return lax.clamp(least, shape, most)  # whose derivative past them is 0 whatever it is multiplied by


def _both(tail: Array, upper: Array) -> tuple[Array, Array]:
    """The lower and the upper of the tail and its complement."""
    other = log_complement(tail)
    return jnp.where(upper, other, tail), jnp.where(upper, tail, other)


def _by_shape(tail: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """Its derivative in the shape, forward: no sum over nodes is ever transposed, and none of their terms kept."""
    return lambda shape, point: jax.jvp(lambda shape: tail(shape, point), (shape,), (jnp.ones_like(shape),))[1]


def _gamma_log_density(a: Array, log_ratio: Array) -> Array:
    """The log density of the logarithm of a gamma variable of shape a, at log_ratio = log(y/mean).

    log(aᵃe⁻ᵃ/Γ(a)), its peak, less half the unit deviance.
    """
    peak = 0.5 * jnp.log(a) - 0.5 * math.log(2 * math.pi) - stirling_correction(a)
    return peak - a * exp_excess(log_ratio)


def _gamma_log_density_by_shape(a: Array, log_ratio: Array) -> Array:
    return 0.5 / a - stirling_slope(a) - exp_excess(log_ratio)


gamma_log_density = with_partials(
    _gamma_log_density, _gamma_log_density_by_shape, lambda a, log_ratio: -a * jnp.expm1(log_ratio)
)


def _gamma_integral(a: Array, log_ratio: Array) -> Array:
    _, enough = _settings(a.dtype)
    upper = log_ratio >= 0
    side = jnp.where(upper, 1, -1).astype(a.dtype)
    near = jnp.clip(log_ratio, -1e3, 60)  # further out the integral, but not the density, is that of the bound
    rate = side * jnp.expm1(near)

    def fall(h: Array) -> Array:
        return a * (rate * (side * jnp.expm1(side * h)) + exp_excess(side * h))

    # Bounds of where fall is `enough`, each near for some shapes: from its slope and bend at 0, and from far out.
    slope, bend, inverse = a * rate, a * jnp.exp(near), jnp.exp(-near)
    above = 2 * enough / (slope + jnp.hypot(slope, jnp.sqrt(2 * enough * bend)))
    far_above = jnp.log1p(0.25 * jnp.square(inverse + jnp.sqrt(inverse * inverse + 4 * enough / bend)))
    below = jnp.minimum(enough / slope, (enough + jnp.sqrt(enough * (enough + 8 * a))) / (2 * a))
    return log_integral(fall, jnp.where(upper, jnp.minimum(above, far_above), below))


def _gamma_tail_value(a: Array, log_ratio: Array) -> Array:
    """log P(Y > y) where y is past the mean, else log P(Y ≤ y)."""
    return gamma_log_density(a, jnp.minimum(log_ratio, 1e3)) + _gamma_integral(a, log_ratio)


def _gamma_tail_slope(a: Array, log_ratio: Array) -> Array:
    rate = jnp.exp(-_gamma_integral(a, log_ratio))
    return jnp.where(log_ratio >= 0, -rate, rate)


_gamma_tail = with_partials(_gamma_tail_value, _by_shape(_gamma_tail_value), _gamma_tail_slope)


@jax.jit
def gamma_tails(a: Array, log_ratio: Array) -> tuple[Array, Array]:
    """log P(Y ≤ y), log P(Y > y) for Y gamma of shape a, with log_ratio = log(y/mean)."""
    return _both(_gamma_tail(hold_shape(a), log_ratio), log_ratio >= 0)


def student_log_peak(df: Array) -> Array:
    """log of the density of Student's t at 0."""
    return half_step_correction(0.5 * df) - 0.5 * math.log(2 * math.pi)


def _student_size(df: Array, z: Array) -> Array:
    return jnp.minimum(jnp.abs(z) / jnp.sqrt(df), 1e9)  # beyond, the rate is 1


def _student_rate_value(df: Array, z: Array) -> Array:
    """w/√(1 + w²) with w = |z|/√df."""
    size = _student_size(df, z)
    return size / jnp.sqrt(1 + size * size)


def _student_rate_by_df(df: Array, z: Array) -> Array:
    size = _student_size(df, z)
    share = 1 / (1 + size * size)
    return -0.5 * size * share * jnp.sqrt(share) / df


def _student_rate_by_z(df: Array, z: Array) -> Array:
    share = 1 / (1 + jnp.square(_student_size(df, z)))
    return jnp.where(z >= 0, share, -share) * jnp.sqrt(share) / jnp.sqrt(df)


_student_rate = with_partials(_student_rate_value, _student_rate_by_df, _student_rate_by_z)


def _student_integral(df: Array, z: Array) -> Array:
    _, enough = _settings(df.dtype)
    rate = _student_rate(df, z)

    def fall(h: Array) -> Array:
        """df·log(cosh h + rate·sinh h)."""
        u, near = -jnp.expm1(-h), jnp.minimum(h, 40)
        return df * (jnp.log1p(0.5 * u * (u + rate * (2 - u)) * jnp.exp(near)) + (h - near))

    reach = jnp.minimum(enough / (df * rate), (enough + jnp.sqrt(enough * (enough + 8 * df))) / (2 * df))
    return log_integral(fall, reach)


def _student_tail_value(df: Array, z: Array) -> Array:
    """log P(T > |z|)."""
    start = student_log_peak(df) + 0.5 * jnp.log(df) - student_tail_fall(df, z)
    return start + _student_integral(df, z)


def _student_tail_slope(df: Array, z: Array) -> Array:
    rate = jnp.exp(-_student_integral(df, z)) / jnp.hypot(jnp.sqrt(df), z)
    return jnp.where(z >= 0, -rate, rate)


_student_tail = with_partials(_student_tail_value, _by_shape(_student_tail_value), _student_tail_slope)


@jax.jit
def student_tails(df: Array, z: Array) -> tuple[Array, Array]:
    """log P(T ≤ z), log P(T > z) for Student's t."""
    df = jnp.where(df < 2.0**-60, 2.0**-60, hold_shape(df))  # whose inverse square is finite
    return _both(_student_tail(df, z), z >= 0)
