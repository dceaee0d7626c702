"""What a row adds to the objective, as a function of its linear predictor, and what kind of function that is."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.lift import curvature, irls_weight, slope, traits

__all__ = ["Kind", "Term", "has_dead_zone", "kind_of", "mean_of"]

Array = jax.Array


_SIDE = np.array([1e-12, 1e-6, 1e-2, 0.3, 1, 3, 30, 300, 1e6], np.float32)
PROBES = np.concatenate([-_SIDE[::-1], [0], _SIDE]).astype(np.float32)


class Kind(enum.Enum):
    """Which algorithm minimises a loss; found from its traits and its curvature, not from its name."""

    QUADRATIC = "least squares"
    LINEAR = "piecewise linear: a linear program"
    CONVEX = "convex and smooth"
    REDESCENDING = "not convex: a graduated start"


class Term(NamedTuple):
    """A loss with its settings. With scale s it is s²·ℓ(pred/s, target/s): the settings are in units of s."""

    loss: Any
    settings: Mapping[str, Any]

    @property
    def residual(self) -> bool:
        """Whether pred and target enter as pred − target."""
        return traits(self.loss).residual

    @property
    def convex(self) -> bool:
        """Whether the curvature is a safe start: of a convex loss, or of one with a link."""
        return traits(self.loss).convex or not self.residual

    def value(self, eta: Array, target: Array, scale: Array | float = 1.0) -> Array:
        """The loss of each row."""
        if self.residual:
            return scale * scale * self._call(self.loss, eta / scale, target / scale, reduction="none")
        return self._call(self.loss, mean_of(self.loss, eta), target, reduction="none")

    def slope(self, eta: Array, target: Array, scale: Array | float = 1.0) -> Array:
        """Its derivative in the linear predictor."""
        if self.residual:
            return scale * self._call(slope(self.loss), eta / scale, target / scale)
        mean, growth, _ = _link(self.loss, eta)
        return self._call(slope(self.loss), mean, target) * growth

    def curvature(self, eta: Array, target: Array, scale: Array | float = 1.0) -> Array:
        """Its second derivative in the linear predictor."""
        if self.residual:
            return self._call(curvature(self.loss), eta / scale, target / scale)
        mean, growth, bend = _link(self.loss, eta)
        first, second = self._call(slope(self.loss), mean, target), self._call(curvature(self.loss), mean, target)
        return second * growth * growth + first * bend

    def majorant(self, eta: Array, target: Array, scale: Array | float = 1.0) -> Array:
        """A positive stand-in for the curvature: that of the parabola through the row's loss and slope (IRLS).

        Where a link is between, the curvature expected at this mean, which is that of a perfect fit (Fisher scoring).
        """
        if self.residual:
            weight = self._call(irls_weight(self.loss), eta / scale, target / scale)
            return jnp.clip(weight, 0, 1 / jnp.finfo(weight.dtype).eps)
        mean, growth, _ = _link(self.loss, eta)
        return self._call(curvature(self.loss), mean, mean) * growth * growth

    def width(self, target: Array) -> Array:
        """Where a piecewise-linear loss leaves 0, by Newton's method from far out, which is exact on a line."""
        zero, eps = jnp.zeros_like(target), jnp.finfo(target.dtype).eps
        far, edge = zero + 1e-2 / eps, zero
        for _ in range(3):
            edge = jnp.maximum(far - self.value(far, zero) / self.slope(far, zero), 0)
            far = 2 * edge + 4 * eps * far
        return edge

    def _call(self, function: Any, pred: Array, target: Array, **more: Any) -> Array:
        return function(pred, target, **self.settings, **more)


def _link(loss: Any, eta: Array) -> tuple[Array, Array, Array | int]:
    """The mean and its first two derivatives in the linear predictor."""
    above = traits(loss).pred.above
    if above is None:
        return eta, jnp.ones_like(eta), 0
    growth = jnp.exp(eta)
    return (jnp.expm1(eta) if above == -1 else growth + above), growth, growth


def mean_of(loss: Any, eta: Array) -> Array:
    """The prediction: the linear predictor, or its exp where the loss takes only positive predictions."""
    return _link(loss, eta)[0]


@functools.cache
def kind_of(loss: Any) -> Kind:
    """The kind of the loss, from its traits and from its curvature at a few residuals."""
    known = traits(loss)
    if not known.residual:
        return Kind.CONVEX
    bends = _at_probes(curvature(loss), loss)
    if not known.convex:
        return Kind.REDESCENDING
    if not bends.any():
        return Kind.LINEAR
    square = known.symmetric and not loss.lifted.defaults and np.ptp(bends) <= 1e-6 * bends.max()
    return Kind.QUADRATIC if square else Kind.CONVEX


def _at_probes(function: Any, loss: Any) -> np.ndarray:
    """The loss's function at a few residuals, with settings from inside their domains."""
    lifted = loss.lifted
    inside = {
        name: lifted.domain[name].inside if name in lifted.domain
        else 1.0 if default is inspect.Parameter.empty else default
        for name, default in lifted.defaults.items()
    }  # fmt: skip
    with jax.ensure_compile_time_eval():
        return np.asarray(function(PROBES, np.zeros_like(PROBES), **inside))


@functools.cache
def has_dead_zone(loss: Any) -> bool:
    """Whether a small residual costs nothing."""
    return not _at_probes(functools.partial(loss, reduction="none"), loss)[len(PROBES) // 2 + 2]
