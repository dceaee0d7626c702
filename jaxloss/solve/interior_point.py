"""Piecewise-linear losses: a primal–dual interior-point method, and from its end a step to the exact vertex.

A row's loss is the largest of y·r over low ≤ y ≤ high, so the dual problem has one bounded variable to a row and one
equation to a coefficient (Portnoy and Koenker, Stat. Sci. 1997); each step solves one weighted least-squares problem,
with Mehrotra's corrector. At the solution as many rows as coefficients are met exactly: these rows, found by
elimination among those whose dual variables lie inside their bounds, give the solution to the last digit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.numerics.stages import stage
from jaxloss.solve.design import Design, hessian, matmul, summed
from jaxloss.solve.newton import regress
from jaxloss.solve.vertex import Bounded, independent_rows

__all__ = ["Dual", "Rest", "interior_point"]

Array = jax.Array
STEPS = 80
SHARE = 0.9995
"""How far of the way to the nearest bound a step goes: never onto it."""


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


class _Problem(NamedTuple):
    """In units of the mean residual and of the largest weight; absent rows are rows of zeros."""

    design: Design
    target: Array
    low: Array
    high: Array
    rest: Rest
    present: Array
    tied: Array
    """Whether a ridge ties the lengths of the steps in coordinates and dual variables to each other."""
    unit: Array
    weight: Array
    floor: Array
    """Below this an objective is rounding, and a fit perfect."""

    def residual(self, phi: Array) -> Array:
        return matmul(self.design.rows, phi) - self.target

    def objective(self, phi: Array, residual: Array) -> Array:
        total = jnp.sum(jnp.maximum(self.high * residual, self.low * residual))
        return total + 0.5 * phi @ self.design.penalty @ phi + (self.rest.pull @ phi + self.rest.constant)

    def balance(self, phi: Array, y: Array) -> Array:
        """What is left of the dual's equations."""
        return summed(y, self.design.rows) + self.design.penalty @ phi + self.rest.pull

    def gap(self, phi: Array, residual: Array, value: Array, y: Array) -> Array:
        """How far the objective may be above the least, of which it is a share."""
        gap = jnp.sum(jnp.where(residual > 0, residual * (self.high - y), residual * (self.low - y)))
        off = jnp.max(jnp.abs(self.balance(phi, y))) * jnp.max(jnp.abs(phi))
        return (gap + off) / jnp.maximum(value, self.floor)

    def give(self, state: _State) -> Array:
        """How far each dual variable gives way to its residual."""
        return 1 / (state.above / (self.high - state.y) + state.below / (state.y - self.low))


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
    problem, start = _in_units(design, rows, tolerance, phi, rest)
    state = _approach(problem, start, tolerance)
    return _to_vertex(problem, state) if exact else _as_given(problem, state)


@stage(2, light=True)
def _in_units(
    design: Design, rows: Bounded, tolerance: float, phi: Array | None, rest: Rest | None
) -> tuple[_Problem, _State]:
    """The problem as it is solved, and where the search starts."""
    dtype, width = rows.target.dtype, rows.high - rows.low
    eps, tiny = jnp.finfo(dtype).eps, jnp.finfo(dtype).tiny
    present = width > 0
    phi = regress(design, rows.target, present.astype(dtype)) if phi is None else phi
    residual = matmul(design.rows, phi) - rows.target
    number = jnp.maximum(jnp.sum(present), 1)
    sizes = jnp.where(present, jnp.abs(rows.target), 0)
    unit = jnp.sum(jnp.where(present, jnp.abs(residual), 0)) / number
    unit = jnp.maximum(jnp.maximum(unit, eps * jnp.max(sizes)), tiny)
    weight = jnp.max(width)
    weight = jnp.where(weight > 0, weight, 1)
    target, low, high = jnp.where(present, rows.target / unit, 0), rows.low / weight, rows.high / weight
    low, high = jnp.where(present, low, -0.5), jnp.where(present, high, 0.5)
    penalty = design.penalty * (unit / weight)
    inside = design._replace(rows=jnp.where(present[:, None], design.rows, 0), penalty=penalty)
    added = (0 * phi, 0 * unit) if rest is None else (rest.pull / weight, rest.constant / (unit * weight))
    floor = jnp.maximum(8 * eps / tolerance * jnp.sum((high - low) * jnp.abs(target)), tiny)
    tied = jnp.any(penalty != 0)
    problem = _Problem(inside, target, low, high, Rest(*added), present, tied, unit, weight, floor)
    phi, far = phi / unit, jnp.asarray(jnp.inf, dtype)
    residual = problem.residual(phi)
    middle = jnp.where(low * high < 0, 0, 0.5 * (low + high))
    above, below = jnp.maximum(residual, 0) + 0.1, jnp.maximum(-residual, 0) + 0.1
    return problem, _State(phi, middle, above, below, far, far, jnp.asarray(0), jnp.asarray(False))


@stage(2)
def _approach(problem: _Problem, start: _State, tolerance: float) -> _State:
    """From inside the bounds to near the solution."""

    def step(state: _State) -> _State:
        new = _predict_and_correct(problem, state)
        residual = problem.residual(new[0])
        value = problem.objective(new[0], residual)
        gap = problem.gap(new[0], residual, value, new[1])
        better = jnp.isfinite(gap) & jnp.all(jnp.isfinite(new[0]))
        worse = better & (state.gap < 1e-6) & (gap > 100 * state.gap)  # rounding has taken over
        keep = better & ~worse
        after = state._replace(phi=new[0], y=new[1], above=new[2], below=new[3], value=value, gap=gap)
        after = jax.tree.map(lambda one, other: jnp.where(keep, one, other), after, state)
        return after._replace(number=state.number + 1, done=~keep | (after.gap <= tolerance))

    return lax.while_loop(lambda state: ~state.done & (state.number < STEPS), step, start)


def _predict_and_correct(problem: _Problem, state: _State) -> tuple[Array, Array, Array, Array]:
    """Mehrotra's step (SIAM J. Optim. 1992): towards the bounds, and from what that tells once more, centred."""
    design, (phi, y, above, below) = problem.design, state[:4]
    up, down = problem.high - y, y - problem.low
    wrong = problem.residual(phi) - above + below
    balance, give = problem.balance(phi, y), problem.give(state)
    matrix = hessian(design, give)
    factor = jnp.linalg.cholesky(matrix + jnp.diag(jnp.finfo(y.dtype).eps * jnp.diag(matrix)))
    mean = (jnp.sum(up * above) + jnp.sum(down * below)) / (2 * len(y))

    def room(value: Array, change: Array) -> Array:
        return jnp.min(jnp.where(change < 0, -value / jnp.where(change < 0, change, 1), jnp.inf))

    def turn_of(number: Any, before: tuple[Array, ...]) -> tuple[Array, ...]:
        """Towards up·above = more_up and down·below = more_down; both turns are one piece of program."""
        more_up, more_down = before[:2]
        push = (more_up / up - above) - (more_down / down - below)
        right = -balance - summed((wrong - push) * give, design.rows)
        half = lax.linalg.triangular_solve(factor, right[:, None], left_side=True, lower=True)
        move = lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)[:, 0]
        turn = (matmul(design.rows, move) + wrong - push) * give
        rise, fall = (more_up + above * turn) / up - above, (more_down - below * turn) / down - below
        primal = jnp.minimum(room(above, rise), room(below, fall))
        dual = jnp.minimum(room(up, -turn), room(down, turn))
        both, share = jnp.minimum(primal, dual), jnp.where(number == 0, 1, SHARE)
        primal, dual = (jnp.minimum(1, share * jnp.where(problem.tied, both, one)) for one in (primal, dual))
        new = (phi + primal * move, y + dual * turn, above + primal * rise, below + primal * fall)
        # Not from the new y, whose rounding beside a heavy row's bound can be all of a light row's room.
        after = jnp.sum((up - dual * turn) * new[2]) + jnp.sum((down + dual * turn) * new[3])
        centre = mean * (after / (2 * len(y) * mean)) ** 3
        return centre + turn * rise, centre - turn * fall, *new

    nothing = jnp.zeros_like(y)
    _, _, phi, y, above, below = lax.fori_loop(0, 2, turn_of, (nothing, nothing, phi, y, above, below))
    return phi, y, above, below


@stage(light=True)
def _as_given(problem: _Problem, state: _State) -> Dual:
    """The state in the units of the data."""
    unit, weight = problem.unit, problem.weight
    give = jnp.where(problem.present, problem.give(state), 0) * (weight / unit)
    return Dual(state.phi * unit, state.y * weight, give, state.gap, state.number, problem.tied)


@stage(light=True)
def _to_vertex(problem: _Problem, state: _State) -> Dual:
    """The vertex nearby, if it is no worse, in the units of the data."""
    inside, target, low, high = problem[:4]
    eps, found = jnp.finfo(target.dtype).eps, _as_given(problem, state)
    vertex, chosen, inverse = _vertex(inside, target, state.phi, jnp.where(problem.present, problem.give(state), 0))
    residual = problem.residual(vertex)
    value = problem.objective(vertex, residual)
    better = value <= state.value * (1 + 8 * eps) + eps * problem.floor
    # The dual variables of the vertex: at their bounds, but for the rows it meets, which must balance the others.
    side = jnp.where(residual > 0, high, low).at[chosen].set(0)
    met = matmul(inverse.T, -problem.balance(vertex, side) * inside.active)
    unseen = 4 * eps * jnp.sqrt(summed(side * side, inside.rows * inside.rows))
    past = jnp.maximum(met - high[chosen], low[chosen] - met) + 100 * matmul(jnp.abs(inverse.T), unseen)
    within = jnp.all((past <= 0) | ~inside.active)
    # Rounding leaves a residual to the rows that are met, which is to be nothing beside those of the others.
    left = jnp.abs(target[chosen]) + matmul(jnp.abs(inside.rows[chosen]), jnp.abs(vertex))
    told = jnp.sum(jnp.where(inside.active, (high - low)[chosen] * left, 0)) <= 64 * value
    side = side.at[chosen].set(jnp.clip(met, low[chosen], high[chosen]))
    held, certified = jax.vmap(lambda y: problem.gap(vertex, residual, value, y))(jnp.stack([state.y, side]))
    return found._replace(
        phi=jnp.where(better, vertex, state.phi) * problem.unit,
        y=jnp.where(better & (certified < jnp.minimum(held, state.gap)), side, state.y) * problem.weight,
        gap=jnp.where(better, jnp.minimum(jnp.minimum(held, certified), state.gap), state.gap),
        proved=problem.tied | (better & within & told),
    )


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
