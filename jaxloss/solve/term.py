"""What a row adds to the objective, as a function of its linear predictor, and what kind of function that is."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.lift import curvature, irls_weight, slope, traits
from jaxloss.numerics.order import bisect, float_of_rank, rank_of_float

__all__ = ["Kind", "Kinks", "Term", "at_probes", "kind_of", "mean_of"]

Array = jax.Array


_SIDE = np.array([1e-12, 1e-6, 1e-2, 0.3, 1, 3, 30, 300, 1e6], np.float32)
PROBES = np.concatenate([-_SIDE[::-1], [0], _SIDE]).astype(np.float32)


class Kind(enum.Enum):
    """Which algorithm minimises a loss; found from its traits and its curvature, not from its name."""

    QUADRATIC = "least squares"
    LINEAR = "piecewise linear: a linear program"
    CONVEX = "convex and smooth"
    REDESCENDING = "not convex: a graduated start"


class Kinks(NamedTuple):
    """Where the slope of a loss jumps, in ascending order, and the slopes below and above: each (kinks,), or of that
    many rows where a setting has an entry for each element.
    """

    place: Array
    below: Array
    above: Array


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

    def kinks(self, target: Array) -> Kinks:
        """The kinks of a piecewise-linear loss; with derivatives in its settings.

        The outer two are found from the slope by bisection, then those between from left to right.
        """
        shape = jnp.broadcast_shapes(*(value.shape for value in self.settings.values()))
        zero = jnp.zeros(shape, target.dtype)
        far = zero + jnp.finfo(zero.dtype).max ** 0.5
        count, at_zero = _kinks_inside(self.loss)
        if at_zero:
            return Kinks(zero[None], self.slope(-far, zero)[None], self.slope(far, zero)[None])
        still = Term(self.loss, lax.stop_gradient(self.settings))
        bottom, top = still.slope(-far, zero), still.slope(far, zero)
        apart = 1e-5 * (top - bottom)

        def first_above(level: Array) -> Array:
            return _least_float(lambda at: still.slope(at, zero) > level + apart, far)

        places = [first_above(bottom)]
        last = -_least_float(lambda at: still.slope(-at, zero) < top - apart, far)
        step = 1e-4 * jnp.maximum(jnp.abs(places[0]), jnp.abs(last)) + 4 * jnp.finfo(zero.dtype).tiny
        for _ in range(count - 2):
            places.append(jnp.minimum(first_above(still.slope(places[-1] + step, zero)), last))
        place = jnp.stack([*places, last][:count])
        between = jnp.concatenate([-far[None], 0.5 * (place[1:] + place[:-1]), far[None]])
        slopes = jax.vmap(lambda at: self.slope(at, zero))(between)
        below, above = slopes[:-1], slopes[1:]
        # A kink is where two lines meet, and moves as they do.
        left, right = (jax.vmap(lambda at: self.value(at, zero))(place + side) for side in (-step, step))
        move = (left - right) / lax.stop_gradient(jnp.where(above > below, above - below, jnp.inf))
        return Kinks(place + move - lax.stop_gradient(move), below, above)

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
    bends = at_probes(curvature(loss), loss)
    if not known.convex:
        return Kind.REDESCENDING
    if not bends.any():
        return Kind.LINEAR
    square = known.symmetric and not loss.lifted.defaults and np.ptp(bends) <= 1e-6 * bends.max()
    return Kind.QUADRATIC if square else Kind.CONVEX


def at_probes(function: Any, loss: Any, probes: np.ndarray = PROBES) -> np.ndarray:
    """The loss's function at a few residuals, with settings from inside their domains."""
    lifted = loss.lifted
    inside = {
        name: lifted.domain[name].inside if name in lifted.domain
        else 1.0 if default is inspect.Parameter.empty else default
        for name, default in lifted.defaults.items()
    }  # fmt: skip
    with jax.ensure_compile_time_eval():
        return np.asarray(function(probes, np.zeros_like(probes), **inside))


@functools.cache
def _kinks_inside(loss: Any) -> tuple[int, bool]:
    """How many kinks a piecewise-linear loss has, for settings from inside their domains; whether its only one is at 0.

    Kinks nearer to one another than 4 % of their distance from 0 are taken for one.
    """
    sizes = np.geomspace(1.037e-9, 1.037e9, 1001)
    jumps = np.diff(at_probes(slope(loss), loss, np.concatenate([-sizes[::-1], sizes]).astype(np.float32)))
    found = np.flatnonzero(jumps > 1e-5 * jumps.sum())
    return len(found), len(found) == 1 and found[0] == len(sizes) - 1


def _least_float(holds: Callable[[Array], Array], far: Array) -> Array:
    """The least float from −far to far at which a condition holds that holds from there on."""
    top = rank_of_float(far)
    _, least = bisect(lambda rank: holds(float_of_rank(rank, far.dtype)), -top, top)
    return float_of_rank(least, far.dtype)
