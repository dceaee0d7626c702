"""Piecewise-linear losses: a primal–dual interior-point method, and from its end a step to the exact vertex.

A row's loss is the largest of y·r over low ≤ y ≤ high, so the dual problem has one bounded variable to a row and one
equation to a coefficient (Portnoy and Koenker, Stat. Sci. 1997); each step solves one weighted least-squares problem,
with Mehrotra's corrector. At the solution as many rows as coefficients are met exactly: these rows, found by
elimination among those whose dual variables lie inside their bounds, give the solution to the last digit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.solve.design import Design, hessian, matmul, summed
from jaxloss.solve.newton import regress
from jaxloss.solve.stages import stage
from jaxloss.solve.vertex import Bounded, independent_rows

__all__ = ["Dual", "Rest", "interior_point"]

Array = jax.Array
STEPS = 80


class Rest(NamedTuple):
    """What rows that are left out add to the objective: pull·φ + constant."""

    pull: Array
    constant: Array


class Dual(NamedTuple):
    """How it ended: coordinates, the dual variables, how far each gives way to its residual, and the relative gap.

    proved: whether the gap, which cannot see rows of small weight, is all that can be said, or the vertex has dual
    variables inside the bounds of every row that it meets, each in its own unit and by more than rounding.
    """

    phi: Array
    y: Array
    give: Array
    gap: Array
    number: Array
    proved: Array


class _State(NamedTuple):
    phi: Array
    y: Array
    above: Array  # the parts of the residual, above and below 0, each held positive
    below: Array
    value: Array
    gap: Array
    number: Array
    done: Array


@stage(2, 3)
def interior_point(
    design: Design,
    rows: Bounded,
    tolerance: float,
    exact: bool = True,
    phi: Array | None = None,
    rest: Rest | None = None,
) -> Dual:
    """Minimise Σ max y·r + ½φᵀ·penalty·φ until the gap to the dual is `tolerance` of the objective.

    exact: whether to go on to the vertex, which is right to the last digit. phi: where to start, else from least
    squares. rest: what is added to the objective.
    """
    matrix, dtype = design.rows, rows.target.dtype
    eps, tiny = jnp.finfo(dtype).eps, jnp.finfo(dtype).tiny
    width = rows.high - rows.low
    present = width > 0
    phi = regress(design, rows.target, present.astype(dtype)) if phi is None else phi
    residual = matmul(matrix, phi) - rows.target
    number = jnp.maximum(jnp.sum(present), 1)
    sizes = jnp.where(present, jnp.abs(rows.target), 0)
    unit = jnp.sum(jnp.where(present, jnp.abs(residual), 0)) / number
    unit = jnp.maximum(jnp.maximum(unit, eps * jnp.max(sizes)), tiny)
    weight = jnp.max(width)
    weight = jnp.where(weight > 0, weight, 1)
    # In units of the mean residual and the largest weight; absent rows are rows of zeros.
    matrix = jnp.where(present[:, None], matrix, 0)
    target, low, high = jnp.where(present, rows.target / unit, 0), rows.low / weight, rows.high / weight
    low, high = jnp.where(present, low, -0.5), jnp.where(present, high, 0.5)
    inside = design._replace(rows=matrix, penalty=design.penalty * (unit / weight))
    tied = jnp.any(inside.penalty != 0)
    pull, constant = (0 * phi, 0 * unit) if rest is None else (rest.pull / weight, rest.constant / (unit * weight))

    def objective(phi: Array, residual: Array) -> Array:
        total = jnp.sum(jnp.maximum(high * residual, low * residual)) + 0.5 * phi @ inside.penalty @ phi
        return total + (pull @ phi + constant)

    def balance_of(phi: Array, y: Array) -> Array:
        return summed(y, inside.rows) + inside.penalty @ phi + pull

    # Below this an objective is rounding, and a fit perfect.
    floor = jnp.maximum(8 * eps / tolerance * jnp.sum((high - low) * jnp.abs(target)), tiny)

    def gap_of(phi: Array, residual: Array, value: Array, y: Array) -> Array:
        gap = jnp.sum(jnp.where(residual > 0, residual * (high - y), residual * (low - y)))
        off = jnp.max(jnp.abs(balance_of(phi, y))) * jnp.max(jnp.abs(phi))
        return (gap + off) / jnp.maximum(value, floor)

    def step(state: _State) -> _State:
        phi, y, above, below = state[:4]
        up, down = high - y, y - low
        wrong = matmul(inside.rows, phi) - target - above + below
        balance = balance_of(phi, y)
        give = 1 / (above / up + below / down)
        matrix = hessian(inside, give)
        size = jnp.diag(matrix)
        matrix = matrix + jnp.diag(eps * size)
        factor = jnp.linalg.cholesky(matrix)

        def direction(more_up: Array, more_down: Array) -> tuple[Array, ...]:
            """Towards up·above = more_up and down·below = more_down."""
            push = (more_up / up - above) - (more_down / down - below)
            right = -balance - summed((wrong - push) * give, inside.rows)
            half = lax.linalg.triangular_solve(factor, right[:, None], left_side=True, lower=True)
            move = lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)[:, 0]
            turn = (matmul(inside.rows, move) + wrong - push) * give
            return move, turn, (more_up + above * turn) / up - above, (more_down - below * turn) / down - below

        def room(value: Array, change: Array) -> Array:
            return jnp.min(jnp.where(change < 0, -value / jnp.where(change < 0, change, 1), jnp.inf))

        def sizes(turn: Array, rise: Array, fall: Array) -> tuple[Array, Array]:
            primal = jnp.minimum(room(above, rise), room(below, fall))
            dual = jnp.minimum(room(up, -turn), room(down, turn))
            both = jnp.minimum(primal, dual)
            return jnp.where(tied, both, primal), jnp.where(tied, both, dual)

        mean = (jnp.sum(up * above) + jnp.sum(down * below)) / (2 * len(y))
        zero = jnp.zeros_like(y)
        _, turn, rise, fall = direction(zero, zero)
        primal, dual = (jnp.minimum(1, room) for room in sizes(turn, rise, fall))
        after = jnp.sum((up - dual * turn) * (above + primal * rise)) + jnp.sum(
            (down + dual * turn) * (below + primal * fall)
        )
        centre = mean * (after / (2 * len(y) * mean)) ** 3
        move, turn, rise, fall = direction(centre + turn * rise, centre - turn * fall)
        primal, dual = (jnp.minimum(1, 0.9995 * room) for room in sizes(turn, rise, fall))
        new = (phi + primal * move, y + dual * turn, above + primal * rise, below + primal * fall)
        residual = matmul(inside.rows, new[0]) - target
        value = objective(new[0], residual)
        gap = gap_of(new[0], residual, value, new[1])
        better = jnp.isfinite(gap) & jnp.all(jnp.isfinite(move))
        worse = better & (state.gap < 1e-6) & (gap > 100 * state.gap)  # rounding has taken over
        keep = better & ~worse
        after = _State(*new, value, gap, state.number, state.done)
        after = jax.tree.map(lambda one, other: jnp.where(keep, one, other), after, state)
        return after._replace(number=state.number + 1, done=~keep | (after.gap <= tolerance))

    def going(state: _State) -> Array:
        return ~state.done & (state.number < STEPS)

    phi = phi / unit
    residual = matmul(inside.rows, phi) - target
    middle = jnp.where(low * high < 0, 0, 0.5 * (low + high))
    far = jnp.asarray(jnp.inf, dtype)
    start = _State(
        phi,
        middle,
        jnp.maximum(residual, 0) + 0.1,
        jnp.maximum(-residual, 0) + 0.1,
        far,
        far,
        jnp.asarray(0),
        jnp.asarray(False),
    )
    state = lax.while_loop(going, step, start)
    up, down = high - state.y, state.y - low
    give = jnp.where(present, 1 / (state.above / up + state.below / down), 0)
    if not exact:
        return Dual(state.phi * unit, state.y * weight, give * (weight / unit), state.gap, state.number, tied)
    vertex, chosen, inverse = _vertex(inside, target, state.phi, give)
    residual = matmul(inside.rows, vertex) - target
    value = objective(vertex, residual)
    better = value <= state.value * (1 + 8 * eps) + eps * floor
    # The dual variables of the vertex: at their bounds, but for the rows it meets, which must balance the others.
    side = jnp.where(residual > 0, high, low).at[chosen].set(0)
    met = matmul(inverse.T, -balance_of(vertex, side) * inside.active)
    unseen = 4 * eps * jnp.sqrt(summed(side * side, inside.rows * inside.rows))
    past = jnp.maximum(met - high[chosen], low[chosen] - met) + 100 * matmul(jnp.abs(inverse.T), unseen)
    within = jnp.all((past <= 0) | ~inside.active)
    # Rounding leaves a residual to the rows that are met, which is to be nothing beside those of the others.
    left = jnp.abs(target[chosen]) + matmul(jnp.abs(inside.rows[chosen]), jnp.abs(vertex))
    told = jnp.sum(jnp.where(inside.active, (high - low)[chosen] * left, 0)) <= 64 * value
    proved = tied | (better & within & told)
    side = side.at[chosen].set(jnp.clip(met, low[chosen], high[chosen]))
    held, certified = jax.vmap(lambda y: gap_of(vertex, residual, value, y))(jnp.stack([state.y, side]))
    y = jnp.where(better & (certified < jnp.minimum(held, state.gap)), side, state.y)
    gap = jnp.where(better, jnp.minimum(jnp.minimum(held, certified), state.gap), state.gap)
    phi = jnp.where(better, vertex, state.phi)
    return Dual(phi * unit, y * weight, give * (weight / unit), gap, state.number, proved)


def _vertex(design: Design, target: Array, phi: Array, give: Array) -> tuple[Array, Array, Array]:
    """The solution of as many rows as there are coordinates, those rows, and the inverse of their matrix."""
    chosen = independent_rows(design.rows, give)
    matrix = jnp.where(
        design.active[:, None] & design.active[None], design.rows[chosen], jnp.eye(len(phi), dtype=phi.dtype)
    )
    inverse, right = jnp.linalg.inv(matrix), jnp.where(design.active, target[chosen], 0)
    vertex = matmul(inverse, right)
    vertex = vertex + matmul(inverse, right - matmul(matrix, vertex))
    return jnp.where(jnp.all(jnp.isfinite(vertex)), vertex, phi), chosen, inverse
