"""Where the search for the minimum of a smooth loss starts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxloss.lift import traits
from jaxloss.numerics.stages import unless
from jaxloss.solve.design import Design, matmul
from jaxloss.solve.interior_point import interior_point
from jaxloss.solve.newton import Reached, regress
from jaxloss.solve.preprocessing import sample
from jaxloss.solve.term import Kind, Term
from jaxloss.solve.vertex import Bounded

__all__ = ["start_of"]

Array = jax.Array
START_ROWS = 4000
"""As many rows as a start looks at; the fit of a sample is near that of all."""
MANY_ROWS = 30_000
"""From here on a start that saves a Newton step of all rows is worth its own compilation."""


def start_of(
    minimise: Callable[..., Reached], term: Term, design: Design, target: Array, weights: Array, kind: Kind
) -> Array:
    """Coordinates to start from: those of a sample, if there are many rows."""
    if len(target) <= (START_ROWS if kind is Kind.REDESCENDING else MANY_ROWS) or (
        kind is Kind.CONVEX and term.residual
    ):
        return _first(term, design, target, weights, kind, 0.0)
    part = _sample(term, design, target, weights)
    phi = _first(*part, kind, 1e-4)
    if kind is Kind.REDESCENDING:
        return phi
    few, basis, targets, heavy = part
    bend = jnp.sum(heavy * few.majorant(matmul(basis.rows, phi), targets)) / len(targets)
    basis = _with_ridge(basis, 1e-3 * bend * jnp.mean(jnp.sum(basis.rows * basis.rows, axis=0)))
    phi = minimise(few, basis, targets, heavy, phi).point.phi

    def total(eta: Array) -> Array:
        return jnp.sum(jnp.where(weights == 0, 0, weights * term.value(eta, target)))

    # It is absurd if it is worse than a constant: the sample can lack the one row that matters.
    mean = jnp.sum(weights * target) / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)
    fine = total(matmul(design.rows, phi)) <= total(_linked(term, jnp.broadcast_to(mean, target.shape)))
    return unless(fine, phi, lambda bad: _first(term, design, target, weights * bad, kind, 0.0))


def _first(term: Term, design: Design, target: Array, weights: Array, kind: Kind, ridge: float) -> Array:
    """From regression; for a loss that is not convex from least absolute deviations.

    ridge: a little of it holds, in a sample, the directions of which it says nothing.
    """
    if not term.residual:  # the logarithm of means halfway between each target and that of all
        mean = jnp.sum(weights * target) / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)
        return regress(design, _linked(term, 0.5 * (target + mean)), (weights > 0).astype(target.dtype))
    phi = regress(design, target, weights)
    if kind is Kind.CONVEX:
        return phi
    size, large = jnp.sum(weights * jnp.abs(matmul(design.rows, phi) - target)), phi @ phi + jnp.sum(target * target)
    held = _with_ridge(design._replace(penalty=0 * design.penalty), ridge * size / jnp.where(large > 0, large, 1))
    return interior_point(held, Bounded(target, -weights, weights), 1e-3, False).phi


def _linked(term: Term, mean: Array) -> Array:
    """The linear predictor of a mean, kept inside the link's domain."""
    return jnp.log(jnp.maximum(mean - (traits(term.loss).pred.above or 0.0), jnp.finfo(mean.dtype).eps))


def _with_ridge(design: Design, size: Array) -> Design:
    return design._replace(penalty=design.penalty + size * jnp.eye(len(design.active), dtype=design.penalty.dtype))


def _sample(term: Term, design: Design, target: Array, weights: Array) -> tuple[Term, Design, Array, Array]:
    """So many of the present rows, and their share of the ridge."""
    chosen, share = sample(weights > 0, START_ROWS, target.dtype)
    settings = {name: value[chosen] if value.ndim else value for name, value in term.settings.items()}
    design = design._replace(rows=design.rows[chosen], penalty=share * design.penalty)
    return term._replace(settings=settings), design, target[chosen], weights[chosen]
