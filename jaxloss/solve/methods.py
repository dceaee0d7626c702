"""How each kind of loss is minimised in a basis of the columns: a `Method` a kind.

In comes a design, a well-conditioned basis, with the weights, the targets and the settings of the loss; out goes what
was `Found`. A new kind of loss is a new method here, and a row of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxloss.numerics.stages import stage
from jaxloss.solve.design import Design, matmul
from jaxloss.solve.found import Ended, Found
from jaxloss.solve.interior_point import Dual
from jaxloss.solve.newton import Reached, certified, descend
from jaxloss.solve.newton_scale import descend_with_scale
from jaxloss.solve.preprocessing import solve_piecewise_linear
from jaxloss.solve.start import start_of
from jaxloss.solve.term import Kind, Term, kind_of
from jaxloss.solve.vertex import Bounded

__all__ = ["METHODS", "Method", "bounds_of", "largest_gap"]


Array = jax.Array


class Method(Protocol):
    """Minimises Σwℓ + ½φᵀ·penalty·φ over the coordinates φ of a basis."""

    def __call__(
        self, loss: Any, scaled: bool, design: Design, weights: Array, target: Array, settings: Mapping[str, Array]
    ) -> Found:
        """From the rows of the design; scaled: whether the scale of the residuals is estimated with the coordinates."""
        ...


def search(
    loss: Any, scaled: bool, design: Design, weights: Array, target: Array, settings: Mapping[str, Array]
) -> Found:
    """The minimum of a smooth loss."""
    phi = _start(loss, scaled, design, weights, target, settings)
    reached = _descend(loss, scaled, design, weights, target, settings, phi)
    return _end_of_search(loss, design, target, settings, reached)


@stage(0, 1, light=True)
def _start(
    loss: Any, scaled: bool, design: Design, weights: Array, target: Array, settings: Mapping[str, Array]
) -> Array:
    minimise = descend_with_scale if scaled else descend
    return start_of(minimise, Term(loss, settings), design, target, weights, kind_of(loss))


@stage(0, 1)
def _descend(
    loss: Any, scaled: bool, design: Design, weights: Array, target: Array, settings: Mapping[str, Array], phi: Array
) -> Reached:
    return (descend_with_scale if scaled else descend)(Term(loss, settings), design, target, weights, phi)


@stage(0, light=True)
def _end_of_search(loss: Any, design: Design, target: Array, settings: Mapping[str, Array], reached: Reached) -> Found:
    point, scale = reached.point, reached.scale
    good = reached.done & certified(Term(loss, settings), design, target, point)
    return Found(point.phi, reached.number, good, Ended(scale, jnp.zeros_like(scale), point.value))


def solve_linear_program(
    loss: Any, scaled: bool, design: Design, weights: Array, target: Array, settings: Mapping[str, Array]
) -> Found:
    """The minimum of a piecewise-linear loss."""
    eps = float(jnp.finfo(target.dtype).eps)
    wide, bounded = _as_bounded(loss, design, weights, target, settings)
    dual = solve_piecewise_linear(wide, bounded, max(2e-11, 4 * eps))
    return _end_of_program(loss, design, weights, target, settings, dual)


@stage(0, light=True)
def _as_bounded(
    loss: Any, design: Design, weights: Array, target: Array, settings: Mapping[str, Array]
) -> tuple[Design, Bounded]:
    """The rows as bounds of dual variables: once for each kink of the loss."""
    bounded = bounds_of(Term(loss, settings), target, weights)
    copies = len(bounded.target) // len(target)
    return design._replace(rows=jnp.tile(design.rows, (copies, 1))), bounded


@stage(0, light=True)
def _end_of_program(
    loss: Any, design: Design, weights: Array, target: Array, settings: Mapping[str, Array], dual: Dual
) -> Found:
    losses = Term(loss, settings).value(matmul(design.rows, dual.phi), target)
    value = jnp.sum(jnp.where(weights == 0, 0, weights * losses)) + 0.5 * dual.phi @ design.penalty @ dual.phi
    good = dual.proved & (dual.gap <= largest_gap(target.dtype))
    return Found(dual.phi, dual.number, good, Ended(jnp.ones_like(value), dual.gap, value, dual))


def largest_gap(dtype: Any) -> float:
    """How large the gap to the dual may be at a minimum."""
    return max(1e-10, 64 * float(jnp.finfo(dtype).eps))


def bounds_of(term: Term, target: Array, weights: Array) -> Bounded:
    """The loss as the largest of y·r over bounds of y, a row for each kink, where the slope turns its share of them.

    Of kinks at one place the first takes all: two rows that are met at once would leave open which of them pulls.
    """
    place, below, above = term.kinks(target)
    low = jnp.minimum(below, 0) - jnp.minimum(above, 0)
    high = jnp.maximum(above, 0) - jnp.maximum(below, 0)
    for k in range(len(place) - 1, 0, -1):
        same = place[k] == place[k - 1]
        low, high = (part.at[k - 1].add(jnp.where(same, part[k], 0)).at[k].multiply(~same) for part in (low, high))
    each = [(target + place[k], weights * low[k], weights * high[k]) for k in range(len(place))]
    return Bounded(*(jnp.concatenate(parts) for parts in zip(*each, strict=True)))


METHODS: dict[Kind, Method] = {
    Kind.LINEAR: solve_linear_program,
    Kind.CONVEX: search,
    Kind.REDESCENDING: search,
}
"""Least squares (Kind.QUADRATIC) makes its own basis, in `jaxloss.solve.least_squares`."""
