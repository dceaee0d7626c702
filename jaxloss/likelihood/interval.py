"""Predictions that are intervals or several quantiles at once, in order by construction."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import OPEN_UNIT, Prediction, ShapeError, is_host_value
from jaxloss.lift import pointwise
from jaxloss.likelihood.distribution import family
from jaxloss.numerics import kink

__all__ = ["Interval", "interval_score", "ordered"]

Array = jax.Array


@family
class Interval(Prediction):
    """A prediction that the target lies between `lower` and `upper`, both of its shape and in its units; a pytree.

    >>> Interval.from_raw(jnp.array([1.0, 0.0])).upper > 1
    Array(True, dtype=bool)
    """

    lower: Any
    upper: Any

    def __post_init__(self) -> None:
        if is_host_value(self.lower) and is_host_value(self.upper):
            lower, upper = np.asarray(self.lower), np.asarray(self.upper)
            if lower.shape == upper.shape and np.any(lower > upper):
                index = np.argmax(lower > upper)
                raise ValueError(
                    f"Interval: lower must not be above upper, got {lower.flat[index]} above {upper.flat[index]}"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the target."""
        return jnp.shape(self.lower)

    @classmethod
    def from_raw(cls, raw: Any) -> Self:
        """From a network's last axis of size 2: lower = raw₀, upper = lower + softplus(raw₁)."""
        if jnp.ndim(raw) == 0 or jnp.shape(raw)[-1] != 2:
            raise ShapeError(f"Interval.from_raw: raw has shape {jnp.shape(raw)}; its last axis must be 2")
        ends = ordered(raw)
        return cls(ends[..., 0], ends[..., 1])

    def affine(self, shift: Any, scale: Any) -> Self:
        """The interval from shift + scale·lower to shift + scale·upper, for scale > 0."""
        return type(self)(shift + scale * self.lower, shift + scale * self.upper)


def ordered(raw: Any) -> Array:
    """raw₀, raw₀ + softplus(raw₁), … along the last axis: numbers that rise, for several quantile levels at once.

    >>> levels = jnp.array([0.1, 0.5, 0.9])
    >>> pred = ordered(jnp.array([[-1.0, 0.5, 0.5]]))                # one row, three levels
    >>> float(quantile(pred, jnp.zeros((1, 3)), level=levels)) > 0
    True
    """
    raw = jnp.asarray(raw)
    return jnp.cumsum(jnp.concatenate([raw[..., :1], jax.nn.softplus(raw[..., 1:])], -1), -1)


@pointwise(domain={"coverage": OPEN_UNIT})
def interval_score(pred: Interval, target: Array, *, coverage: Array | float) -> Array:
    """Winkler's score (upper − lower) + 2/α·(max(lower − target, 0) + max(target − upper, 0)), α = 1 − coverage.

    Winkler, JASA 1972; Gneiting & Raftery, JASA 2007, eq. 43. In the target's units; least for the central interval of
    that coverage, from the quantile of level α/2 to that of 1 − α/2.
    Kinks where the target is an end: there the subgradient of least magnitude, as if it were inside.

    >>> pred = Interval(jnp.array([0.0, 0.0]), jnp.array([2.0, 2.0]))
    >>> interval_score(pred, jnp.array([1.0, 3.0]), coverage=0.5, reduction="none").tolist()
    [2.0, 6.0]
    """
    outside = kink.positive_part(pred.lower - target) + kink.positive_part(target - pred.upper)
    return (pred.upper - pred.lower) + outside * (2 / (1 - coverage))
