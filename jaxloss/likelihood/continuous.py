"""Families on the real line or its positive half, with a density."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtr, ndtri

from jaxloss.contract import POSITIVE, REAL
from jaxloss.likelihood.distribution import Distribution, family, positive, raw_of_positive

__all__ = ["Normal"]

Array = jax.Array

SCALE_FLOOR = 1e-6
"""Added to a scale from a network: in standard units, far below any noise."""


@family
class Normal(Distribution):
    """Normal distribution of mean `loc` and standard deviation `scale` > 0, both in the target's units.

    log density −½z² − log(scale) − ½log(2π), z = (target − loc)/scale.

    >>> float(Normal(jnp.zeros(1), jnp.ones(1)).log_prob(jnp.zeros(1))[0])
    -0.9189385175704956
    """

    loc: Any
    scale: Any

    domain: ClassVar = {"loc": REAL, "scale": POSITIVE}
    raw_size = 2

    def _standard(self, target: Array) -> Array:
        return (target - self.loc) / self.scale

    def _mean(self) -> Array:
        return self.loc

    def _variance(self) -> Array:
        return jnp.square(self.scale)

    def _log_prob(self, target: Array) -> Array:
        return -0.5 * jnp.square(self._standard(target)) - (jnp.log(self.scale) + 0.5 * math.log(2 * math.pi))

    def _cdf(self, target: Array) -> Array:
        return ndtr(self._standard(target))

    def _log_tails(self, target: Array) -> tuple[Array, Array]:
        z = self._standard(target)
        return log_ndtr(z), log_ndtr(-z)

    def _quantile(self, level: Array) -> Array:
        return self.loc + self.scale * ndtri(level)

    def _sample(self, key: Array) -> Array:
        return self.loc + self.scale * jax.random.normal(key, self.shape, self.loc.dtype)

    def _crps(self, target: Array) -> Array:
        z = self._standard(target)
        density = jnp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return self.scale * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))

    def _affine(self, shift: Any, scale: Any) -> Self:
        return type(self)(shift + scale * self.loc, scale * self.scale)

    @classmethod
    def _from_raw(cls, *raw: Array) -> Self:
        loc, scale = raw
        return cls(loc, positive(scale, SCALE_FLOOR))

    @classmethod
    def _raw_of(cls, mean: Array, variance: Array) -> tuple[Array, ...]:
        return mean, raw_of_positive(jnp.sqrt(variance), SCALE_FLOOR)
