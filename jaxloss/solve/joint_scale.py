"""M-estimates with their scale: Σwψ(r/s)x = 0 and s = median|r|/0.6745 at once (Huber, Robust Statistics, 1981).

A few steps of the classical alternation, a median and a reweighted least-squares fit in turn, and then Newton's method
on both equations, which an accepted step must bring closer to zero; if it does not, the alternation goes on.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.solve.descent import gradient_share, graduated
from jaxloss.solve.design import Design, hessian, matmul, summed
from jaxloss.solve.term import Term

__all__ = ["NORMAL_MEDIAN", "descend_with_scale", "median_rows"]

Array = jax.Array
NORMAL_MEDIAN = 0.674489750196
STEPS = 200


def median_rows(sizes: Array, weights: Array) -> tuple[Array, Array]:
    """The rows of the lower and the upper weighted median of non-negative sizes; a weight of 2 is a row twice.

    The bits of non-negative floats are in the order of the floats: the median is found bit by bit, which takes a tenth
    of the time of sorting.
    """
    info = jnp.finfo(sizes.dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    bits = jnp.where(weights > 0, lax.bitcast_convert_type(sizes, integer), jnp.iinfo(integer).max)
    half = 0.5 * jnp.sum(weights)

    def narrower(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(bits <= middle, weights, 0)) >= half
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    top = lax.bitcast_convert_type(jnp.asarray(jnp.inf, sizes.dtype), integer)
    found = lax.fori_loop(0, info.bits, narrower, (jnp.zeros((), integer), top))[1]
    even = jnp.sum(jnp.where(bits <= found, weights, 0)) <= half
    upper = jnp.where(even, jnp.min(jnp.where(bits > found, bits, jnp.iinfo(integer).max)), found)
    return jnp.argmax(bits == found), jnp.argmax(bits == upper)


def scale_of(residual: Array, rows: tuple[Array, Array]) -> Array:
    """median|r|/0.6745, for the rows of the median."""
    lower, upper = rows
    return (jnp.abs(residual[lower]) + jnp.abs(residual[upper])) * (0.5 / NORMAL_MEDIAN)


class _State(NamedTuple):
    phi: Array
    residual: Array
    rows: tuple[Array, Array]
    times: Array
    newton: Array
    pulls: Array
    gradient: Array
    number: Array
    done: Array
    good: Array


def descend_with_scale(
    term: Term, design: Design, target: Array, weights: Array, phi: Array
) -> tuple[Array, Array, Array, Array]:
    """Coordinates and scale at the joint solution reached from `phi`, the steps taken, and whether it is one."""
    eps = jnp.finfo(target.dtype).eps
    tiny = jnp.finfo(target.dtype).tiny

    def residual_of(phi: Array) -> tuple[Array, tuple[Array, Array]]:
        residual = matmul(design.rows, phi) - target
        return residual, median_rows(jnp.abs(residual), weights)

    def unit_of(residual: Array, rows: tuple[Array, Array], times: Array) -> Array:
        return jnp.maximum(times * scale_of(residual, rows), tiny)

    def pulled(phi: Array, residual: Array, rows: tuple[Array, Array], times: Array) -> tuple[Array, Array]:
        unit = unit_of(residual, rows, times)
        pulls = weights * term.slope(residual, jnp.zeros_like(residual), unit)
        return pulls, summed(pulls, design.rows) + design.penalty @ phi

    def step(state: _State) -> _State:
        residual, zero, unit = state.residual, jnp.zeros_like(target), unit_of(state.residual, state.rows, state.times)
        bend = term.curvature(residual, zero, unit)
        # Past a dead zone ψ(r)/r rises, and a parabola of that curvature is not above the loss; one of the largest is.
        parabola = term.majorant(residual, zero, unit)
        parabola = jnp.maximum(parabola, jnp.max(jnp.where((weights > 0) & (bend > 1.001 * parabola), bend, 0)))
        matrix = hessian(design, weights * jnp.where(state.newton, bend, parabola))
        # What a change of the scale does to the gradient, and a change of the coordinates to the scale.
        by_scale = summed(state.pulls - weights * bend * residual, design.rows) / unit
        by_phi = (
            sum(jnp.sign(residual[row]) * design.rows[row] for row in state.rows) * (0.5 / NORMAL_MEDIAN) * state.times
        )
        matrix = matrix + jnp.where(state.newton, by_scale[:, None] * by_phi[None], 0)
        move = -jnp.linalg.solve(matrix, state.gradient)
        usable = jnp.all(jnp.isfinite(move))
        phi = state.phi + jnp.where(usable, move, 0)
        residual, rows = residual_of(phi)
        times = jnp.where(state.newton, state.times, jnp.maximum(0.5 * state.times, 1))
        pulls, gradient = pulled(phi, residual, rows, times)
        closer = jnp.max(jnp.abs(gradient)) <= 0.5 * jnp.max(jnp.abs(state.gradient))
        share = gradient_share(gradient, jnp.linalg.norm(pulls))
        final = state.times == 1
        still = final & usable & (jnp.max(jnp.abs(move)) <= 4 * eps * jnp.max(jnp.abs(phi)))
        solved = final & (share <= 8 * eps)
        keep = ~state.newton | (usable & closer) | solved
        new = (phi, residual, rows, times, final & (state.number > 0), pulls, gradient)
        old = (*state[:4], jnp.asarray(False), *state[5:7])
        phi, residual, rows, times, newton, pulls, gradient = jax.tree.map(
            lambda one, other: jnp.where(keep, one, other), new, old
        )
        perfect = scale_of(residual, rows) <= 64 * eps * jnp.max(jnp.abs(target) * (weights > 0))
        good = still | solved | (final & (gradient_share(gradient, jnp.linalg.norm(pulls)) <= eps**0.75))
        rounding = (
            final & (share <= eps**0.75) & (share > 0.5 * gradient_share(state.gradient, jnp.linalg.norm(state.pulls)))
        )
        done = still | solved | perfect | rounding
        return _State(phi, residual, rows, times, newton, pulls, gradient, state.number + 1, done, good | perfect)

    def going(state: _State) -> Array:
        return ~state.done & (state.number < STEPS)

    residual, rows = residual_of(phi)
    unit = jnp.maximum(scale_of(residual, rows), tiny)
    times = graduated(term, residual, jnp.zeros_like(target), weights, unit)
    no = jnp.asarray(False)
    start = _State(phi, residual, rows, times, no, *pulled(phi, residual, rows, times), jnp.asarray(0), no, no)
    state = lax.while_loop(going, step, start)
    return state.phi, jnp.maximum(scale_of(state.residual, state.rows), tiny), state.number, state.good
