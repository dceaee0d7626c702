"""Families on the real line, with a density, a location and a scale; z = (target − loc)/scale throughout."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import erf

from jaxloss.contract import POSITIVE, REAL
from jaxloss.likelihood.distribution import FREE, Distribution, above, family, parameter
from jaxloss.likelihood.draws import log_gamma_ratios
from jaxloss.likelihood.tails import hold_shape, student_log_peak, student_tails
from jaxloss.numerics import kink
from jaxloss.numerics.gamma import (
    half_step_correction,
    log_complement,
    log_normal_cdf,
    normal_cdf,
    normal_quantile,
    student_fall,
    student_rise,
    student_tail_fall,
)
from jaxloss.numerics.order import quantiles
from jaxloss.numerics.partials import ratio, with_partials

__all__ = ["SCALE", "Laplace", "Normal", "StudentT", "homogeneous"]

Array = jax.Array

SCALE = above(1e-6)
"""A scale from a network: in standard units, the floor is far below any noise."""

DF = above(2.01)
"""Degrees of freedom from a network: the variance is then finite, so every score and report exists."""


class LocationScale(Distribution):
    """What families with fields `loc` and `scale` share."""

    loc: Any
    scale: Any

    def _standard(self, target: Array) -> Array:
        return ratio(target - self.loc, self.scale)

    def _affine(self, shift: Any, scale: Any) -> Self:
        return dataclasses.replace(self, loc=shift + scale * self.loc, scale=scale * self.scale)  # pyright: ignore


def homogeneous(slopes: Callable) -> Callable:
    """Make a function of a distance and a scale, in their unit, from its derivatives in both.

    slopes: gives the derivatives in distance and scale, as functions of distance/scale and further arguments, without
        unit.

    By Euler's theorem a function in the unit of its arguments is distance·∂/∂distance + scale·∂/∂scale.
    """

    def at(distance: Array, scale: Array, *shapes: Array) -> tuple[Array, Array]:
        return slopes(ratio(distance, jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)), *shapes)

    def value(distance: Array, scale: Array, *shapes: Array) -> Array:
        by_distance, by_scale = at(distance, scale, *shapes)
        return distance * by_distance + scale * by_scale

    def by_shape(distance: Array, scale: Array, shape: Array) -> Array:
        return jax.jvp(lambda shape: value(distance, scale, shape), (shape,), (jnp.ones_like(shape),))[1]

    partials = [lambda *given: at(*given)[0], lambda *given: at(*given)[1]]
    return with_partials(value, *partials, *[by_shape] * (len(inspect.signature(slopes).parameters) - 1))


# The CRPS of each family. At a scale of 0 it is |target − loc|, as that of a point mass.


_laplace_pull = with_partials(lambda z: -jnp.sign(z) * jnp.expm1(-jnp.abs(z)), lambda z: jnp.exp(-jnp.abs(z)))


@homogeneous
def _laplace_score(z: Array) -> tuple[Array, Array]:
    size = jnp.abs(z)
    return _laplace_pull(z), (1 + size) * jnp.exp(-size) - 0.75


@homogeneous
def _normal_score(z: Array) -> tuple[Array, Array]:
    return erf(z / math.sqrt(2)), (2 * jnp.exp(-0.5 * z * z) - math.sqrt(2)) / math.sqrt(2 * math.pi)


@homogeneous
def _student_score(z: Array, df: Array) -> tuple[Array, Array]:
    fall = student_tail_fall(df, z) - student_rise(df, z)
    inside = df * jnp.exp(student_log_peak(df) - fall)  # (df + z²)·density
    spread = jnp.exp(2 * half_step_correction(0.5 * df) - half_step_correction(df - 0.5))
    spread = spread * df * jnp.sqrt(df / (math.pi * (df - 0.5)))
    return 2 * jnp.exp(student_tails(df, z)[0]) - 1, (2 * inside - spread) / (df - 1)


@family
class Laplace(LocationScale):
    """Laplace distribution of median `loc` and mean absolute deviation `scale` > 0, both in the target's units.

    log density −|z| − log(2·scale); its nll is mae, weighed and with the price of the scale. Kink at target = loc:
    slope 0 there.

    >>> float(Laplace(jnp.zeros(1), jnp.ones(1)).log_prob(jnp.zeros(1))[0])
    -0.6931471824645996
    """

    loc: Any = parameter(REAL, FREE)
    scale: Any = parameter(POSITIVE, SCALE)

    def _mean(self) -> Array:
        return self.loc

    def _variance(self) -> Array:
        return 2 * jnp.square(self.scale)

    def _log_prob(self, target: Array) -> Array:
        return -kink.absolute(self._standard(target)) - (jnp.log(self.scale) + math.log(2))

    def _cdf(self, target: Array) -> Array:
        z = self._standard(target)
        tail = 0.5 * jnp.exp(-jnp.abs(z))
        return jnp.where(z >= 0, 1 - tail, tail)

    def _log_tails(self, target: Array) -> tuple[Array, Array]:
        z = self._standard(target)
        tail = -jnp.abs(z) - math.log(2)
        other = log_complement(tail)
        return jnp.where(z >= 0, other, tail), jnp.where(z >= 0, tail, other)

    def _quantile(self, level: Array) -> Array:
        low = level < 0.5
        depth = jnp.log(2 * jnp.where(low, level, 1 - level))
        return self.loc + self.scale * jnp.where(low, depth, -depth)

    def _sample(self, key: Array) -> Array:
        return self.loc + self.scale * jax.random.laplace(key, self.shape, self.loc.dtype)

    def _crps(self, target: Array) -> Array:
        return _laplace_score(target - self.loc, self.scale)

    @classmethod
    def _of_moments(cls, mean: Array, variance: Array) -> tuple[Array, ...]:
        return mean, jnp.sqrt(0.5 * variance)

    @classmethod
    def _start(cls, column: Array, weights: Array) -> Array:
        """The likeliest itself: the median, and the mean distance from it."""
        median = quantiles(column, weights, jnp.full((1,), 0.5, column.dtype))[0]
        distance = jnp.average(jnp.abs(column - median), weights=weights)
        return cls._to_raw(median, distance)


@family
class Normal(LocationScale):
    """Normal distribution of mean `loc` and standard deviation `scale` > 0, both in the target's units.

    log density −½z² − log(scale) − ½log(2π).

    >>> float(Normal(jnp.zeros(1), jnp.ones(1)).log_prob(jnp.zeros(1))[0])
    -0.9189385175704956
    """

    loc: Any = parameter(REAL, FREE)
    scale: Any = parameter(POSITIVE, SCALE)

    def _mean(self) -> Array:
        return self.loc

    def _variance(self) -> Array:
        return jnp.square(self.scale)

    def _log_prob(self, target: Array) -> Array:
        return -0.5 * jnp.square(self._standard(target)) - (jnp.log(self.scale) + 0.5 * math.log(2 * math.pi))

    def _cdf(self, target: Array) -> Array:
        return normal_cdf(self._standard(target))

    def _log_tails(self, target: Array) -> tuple[Array, Array]:
        z = self._standard(target)
        return log_normal_cdf(z), log_normal_cdf(-z)

    def _quantile(self, level: Array) -> Array:
        return self.loc + self.scale * normal_quantile(level)

    def _sample(self, key: Array) -> Array:
        return self.loc + self.scale * jax.random.normal(key, self.shape, self.loc.dtype)

    def _crps(self, target: Array) -> Array:
        return _normal_score(target - self.loc, self.scale)

    @classmethod
    def _of_moments(cls, mean: Array, variance: Array) -> tuple[Array, ...]:
        return mean, jnp.sqrt(variance)


@family
class StudentT(LocationScale):
    """Student's t distribution with `df` > 0 degrees of freedom, about `loc` with `scale` > 0 in the target's units.

    log density log Γ((df + 1)/2) − log Γ(df/2) − ½log(π·df) − log(scale) − ½(df + 1)·log(1 + z²/df): the fewer
    degrees, the less an outlier counts; Cauchy at 1, near Normal past 100. The scale is not the standard deviation:
    the variance is scale²·df/(df − 2) for df > 2, infinite down to 1, and there is no mean at df ≤ 1. All methods can
    be differentiated in df. `crps` (Jordan, Krüger & Lerch, J. Stat. Softw. 2019, appendix A) is for df > 1, and NaN
    elsewhere; as df nears 1 its terms cancel. `from_raw` keeps df > 2.

    >>> float(StudentT(jnp.ones(1), jnp.zeros(1), jnp.ones(1)).log_prob(jnp.zeros(1))[0])
    -1.1447298526763916
    """

    df: Any = parameter(POSITIVE, DF)
    loc: Any = parameter(REAL, FREE)
    scale: Any = parameter(POSITIVE, SCALE)

    def _mean(self) -> Array:
        return jnp.where(self.df > 1, self.loc, jnp.nan)

    def _variance(self) -> Array:
        finite = self.df > 2
        df = jnp.where(finite, self.df, 3)
        without = jnp.where(self.df > 1, jnp.inf, jnp.nan)
        return jnp.where(finite, jnp.square(self.scale) * (df / (df - 2)), without)

    def _log_prob(self, target: Array) -> Array:
        return student_log_peak(self.df) - jnp.log(self.scale) - student_fall(self.df, self._standard(target))

    def _cdf(self, target: Array) -> Array:
        return jnp.exp(self._log_tails(target)[0])

    def _log_tails(self, target: Array) -> tuple[Array, Array]:
        return student_tails(self.df, self._standard(target))

    def _sample(self, key: Array) -> Array:
        one, two = jax.random.split(key)
        log_precision = log_gamma_ratios(one, 0.5 * self.df)
        normal = self.scale * jax.random.normal(two, self.shape, self.loc.dtype)
        # The precision is held where the draw is finite, and its root taken in two factors, so that each is finite too.
        most = jnp.log(jnp.finfo(normal.dtype).max) - 1e-3
        deepest = 2 * jnp.minimum(most - jnp.log(jnp.abs(lax.stop_gradient(normal))), 2 * most)
        factor = jnp.exp(-0.25 * jnp.maximum(log_precision, -deepest))
        return self.loc + normal * factor * factor

    def _crps(self, target: Array) -> Array:
        df = hold_shape(jnp.where(self.df > 1, self.df, 2))
        return jnp.where(self.df > 1, _student_score(target - self.loc, self.scale, df), jnp.nan)

    @classmethod
    def _of_moments(cls, mean: Array, variance: Array) -> tuple[Array, ...]:
        return jnp.full_like(mean, 5.0), mean, jnp.sqrt(0.6 * variance)
