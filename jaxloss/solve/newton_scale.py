"""M-estimates with their scale: Σwψ(r/s)x = 0 and s = median|r|/0.6745 at once (Huber, Robust Statistics, 1981).

A few steps of the classical alternation, a median and a reweighted least-squares fit in turn, and then Newton's method
on both equations, which an accepted step must bring closer to zero; if it does not, the alternation goes on.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.numerics.order import median_places
from jaxloss.solve.design import Design, hessian, matmul, summed
from jaxloss.solve.median import NORMAL_MEDIAN, scale_of
from jaxloss.solve.newton import Point, Reached, gradient_share, graduated
from jaxloss.solve.term import Term

__all__ = ["descend_with_scale"]

Array = jax.Array
STEPS = 200


class _State(NamedTuple):
    best: Point
    majorants: Array
    """The weighted curvatures of the parabolas of reweighted least squares."""
    places: tuple[Array, Array]
    """The rows of the median."""
    times: Array
    """The scale as a multiple of the median's."""
    move: Array
    newton: Array
    """Whether the move is Newton's on both equations, which must bring them closer to 0."""
    number: Array
    done: Array


def descend_with_scale(term: Term, design: Design, target: Array, weights: Array, phi: Array) -> Reached:
    """The coordinates and the scale at the joint solution reached from `phi`."""
    eps, tiny = jnp.finfo(target.dtype).eps, jnp.finfo(target.dtype).tiny
    one, zero = jnp.ones((), target.dtype), jnp.zeros_like(target)
    largest = jnp.max(jnp.abs(target) * (weights > 0))

    def scale_at(residual: Array, places: tuple[Array, Array], times: Array) -> Array:
        return jnp.maximum(times * scale_of(residual, places), tiny)

    def step_from(state: _State) -> Array:
        """The next move: Newton's on both equations, or that of reweighted least squares."""
        best, residual = state.best, state.best.eta - target
        matrix = hessian(design, jnp.where(state.newton, best.bends, state.majorants))
        # What a change of the scale does to the gradient, and a change of the coordinates to the scale.
        unit = scale_at(residual, state.places, state.times)
        by_scale = summed(best.pulls - best.bends * residual, design.rows) / unit
        by_phi = sum(jnp.sign(residual[place]) * design.rows[place] for place in state.places)
        by_phi = by_phi * (0.5 / NORMAL_MEDIAN) * state.times
        matrix = matrix + jnp.where(state.newton, by_scale[:, None] * by_phi[None], 0)
        return -jnp.linalg.solve(matrix, best.gradient)

    def attempt(state: _State) -> _State:
        best, first = state.best, state.number == 0
        usable = jnp.all(jnp.isfinite(state.move))
        phi = best.phi + jnp.where(usable, state.move, 0)
        residual = matmul(design.rows, phi) - target
        places = median_places(jnp.abs(residual), weights)
        times = jnp.where(first, graduated(term, residual, zero, weights, scale_at(residual, places, one)), state.times)
        times = jnp.where(first | state.newton, times, jnp.maximum(0.5 * times, 1))
        unit = scale_at(residual, places, times)
        pulls = weights * term.slope(residual, zero, unit)
        # Past a dead zone ψ(r)/r rises, and a parabola of that curvature is not above the loss; one of the largest is.
        bend, parabola = term.curvature(residual, zero, unit), term.majorant(residual, zero, unit)
        least = jnp.max(jnp.where((weights > 0) & (bend > 1.001 * parabola), bend, 0))
        bends, majorants = weights * bend, weights * jnp.maximum(parabola, least)
        gradient = summed(pulls, design.rows) + design.penalty @ phi
        share = gradient_share(gradient, jnp.sqrt(pulls @ pulls))
        there = Point(phi, residual + target, best.value, pulls, bends, gradient, share, share, best.matrix)
        final = ~first & (state.times == 1)
        closer = jnp.max(jnp.abs(gradient)) <= 0.5 * jnp.max(jnp.abs(best.gradient))
        still = final & usable & (jnp.max(jnp.abs(state.move)) <= 4 * eps * jnp.max(jnp.abs(phi)))
        # A row's share is 1/√n of the length, of which a sum's rounding leaves a few dozen units.
        solved = final & (share <= eps * min(8, 64 / len(target) ** 0.5))
        rounding = final & (share <= eps**0.75) & (share > 0.5 * best.share)  # what is left no longer shrinks
        keep = ~state.newton | (usable & closer) | solved
        new = state._replace(best=there, majorants=majorants, places=places, times=times)
        after = jax.tree.map(lambda new, old: jnp.where(keep, new, old), new, state)
        perfect = scale_of(after.best.eta - target, after.places) <= 64 * eps * largest
        done = still | solved | rounding | (~first & perfect)
        after = after._replace(newton=keep & final & (state.number > 1), number=state.number + 1, done=done)
        return after._replace(move=step_from(after))

    def going(state: _State) -> Array:
        return ~state.done & (state.number <= STEPS)

    nowhere = jnp.asarray(jnp.inf, target.dtype)
    start = Point(phi, zero, nowhere, zero, zero, 0 * phi, nowhere, nowhere, design.penalty)
    nought, no = jnp.asarray(0), jnp.asarray(False)
    state = _State(start, zero, (nought, nought), one, 0 * phi, no, nought, no)
    state = lax.while_loop(going, attempt, state)
    best = state.best
    scale = scale_at(best.eta - target, state.places, one)
    value = jnp.sum(weights * term.value(best.eta, target, scale)) + 0.5 * best.phi @ design.penalty @ best.phi
    best = best._replace(value=value, matrix=hessian(design, best.bends))
    return Reached(best, scale, state.number - 1, state.done)
