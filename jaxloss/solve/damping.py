"""The search of Levenberg and Marquardt: Gauss–Newton steps, damped until they lower the objective.

Each step minimises the quadratic model + ½·damping·‖scale·δ‖². A parameter's scale is the norm of its column of the
model, or what is left of larger ones before: with the new norm alone, a parameter runs away where its column vanishes;
with the largest ever, one bad start makes it slow for good.

To the step is added half the acceleration along it, which follows a bending valley (Transtrum & Sethna,
arXiv:1201.5885); a step on which predictions bend more than they move is tried again shorter.

When the decrease a step promises is less than rounding can show, the search goes on with undamped steps for as long as
they shrink: that, not the objective, which is flat there, brings the last digits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular

from jaxloss.solve.gauss_newton import Factored, Problem, factored

__all__ = ["Minimum", "minimise", "minimise_kinked"]

Array = jax.Array

FIRST_DAMPING = 1e-3
FADE = 0.7
"""What is left of a scale after a step."""
BEND = 0.75
"""How large the acceleration of a step may be, relative to the step."""
LEAST_GAIN = 1e-4
"""The share of the predicted decrease that a step must bring."""


class _State(NamedTuple):
    """Where the search is, and what it remembers."""

    flat: Array
    pred: Array
    objective: Array
    scale: Array
    damping: Array
    growth: Array
    """By what the damping is multiplied when a step fails."""
    polishing: Array
    """Whether decreases have become too small to be seen."""
    size: Array
    """Of the last undamped step."""
    iterations: Array
    searching: Array
    converged: Array


class _Local(NamedTuple):
    """What is known at a point, and serves every step tried from there."""

    model: Factored
    jacobian: Array
    curvatures: Array
    scale: Array
    noise: Array
    """What rounding can do to the objective."""


class Minimum(NamedTuple):
    """Where the search ended."""

    flat: Array
    iterations: Array
    converged: Array


def minimise(problem: Problem, start: Array, max_iterations: Any) -> Minimum:
    """The parameters at a minimum of the objective."""

    def iteration(state: _State) -> _State:
        local = _around(problem, state)

        def failing(trial: _State) -> Array:
            return trial.searching & (trial.iterations == state.iterations)

        return lax.while_loop(failing, lambda trial: _attempt(problem, local, trial), state)

    def unfinished(state: _State) -> Array:
        return state.searching & (state.iterations < max_iterations)

    state = lax.while_loop(unfinished, iteration, _first(problem, start))
    return Minimum(state.flat, state.iterations, state.converged)


def minimise_kinked(problem: Problem, start: Array, max_iterations: Any) -> tuple[Minimum, Array]:
    """The minimum of a loss with a kink at 0, and the `steepest` of the problem that has it.

    The kink is rounded off over the usual size of the residuals, then over a tenth of it, down to √ε.
    """
    stages = round(-0.5 * math.log10(jnp.finfo(start.dtype).eps)) + 1

    def sharper(stage: Array, reached: tuple[Minimum, Array]) -> tuple[Minimum, Array]:
        before, _ = reached
        steepest = problem.steepness(before.flat, jnp.asarray(10.0, start.dtype) ** -stage)
        rounded = dataclasses.replace(problem, steepest=steepest)
        after = minimise(rounded, before.flat, max_iterations - before.iterations)
        return after._replace(iterations=before.iterations + after.iterations), steepest

    nowhere = Minimum(start, jnp.zeros((), jnp.int32), jnp.asarray(False))
    return lax.fori_loop(0, stages, sharper, (nowhere, jnp.ones((), start.dtype)))


def _first(problem: Problem, start: Array) -> _State:
    def number(value: float) -> Array:
        return jnp.asarray(value, start.dtype)

    pred = problem.predict(start)
    return _State(
        flat=start,
        pred=pred,
        objective=problem.values(pred).sum(),
        scale=jnp.zeros_like(start),
        damping=number(FIRST_DAMPING),
        growth=number(2),
        polishing=jnp.asarray(False),
        size=number(jnp.inf),
        iterations=jnp.zeros((), jnp.int32),
        searching=jnp.asarray(True),
        converged=jnp.asarray(False),
    )


def _around(problem: Problem, state: _State) -> _Local:
    rows, jacobian = problem.rows(state.pred), problem.jacobian(state.flat)
    model = factored(jacobian, rows)
    scale = jnp.maximum(FADE * state.scale, model.norms)
    return _Local(model, jacobian, rows.curvatures, scale, problem.noise(state.pred, rows))


def _attempt(problem: Problem, local: _Local, state: _State) -> _State:
    """The state after one try: moved, or damped more, or at its end."""
    epsilon = jnp.finfo(state.flat.dtype).eps
    model, polishing = local.model, state.polishing
    unit = jnp.where(local.scale > 0, local.scale, 1)
    velocity, triangle = model.damped(jnp.sqrt(jnp.where(polishing, epsilon, state.damping)) * unit)
    acceleration = _acceleration(problem, local, state.flat, velocity, triangle)
    flat = state.flat + velocity + jnp.where(polishing, 0, 0.5 * acceleration)
    pred = problem.predict(flat)
    objective = problem.values(pred).sum()

    decrease = model.decrease(velocity)
    gain = (state.objective - objective) / decrease
    negligible = decrease <= local.noise
    straight = 2 * jnp.linalg.norm(unit * acceleration) <= BEND * jnp.linalg.norm(unit * velocity)
    succeeds = ~negligible & straight & (gain > LEAST_GAIN)
    size = jnp.linalg.norm(model.norms * velocity)
    slack = jnp.sqrt(epsilon) * jnp.abs(state.objective) + 1e3 * local.noise
    shrinks = (size < state.size) & (objective <= state.objective + slack)

    fails = ~polishing & ~negligible & ~succeeds
    damping = jnp.where(fails, state.damping * state.growth, state.damping)
    over = jnp.where(polishing, ~shrinks, ~(damping < epsilon**-2))
    stayed = state._replace(
        damping=damping,
        growth=jnp.where(fails, 2 * state.growth, state.growth),
        polishing=polishing | negligible,
        iterations=state.iterations + over,
        searching=~over,
        converged=polishing & over & (decrease <= 1e3 * local.noise),
    )
    eased = jnp.maximum(state.damping * jnp.maximum(1 / 3, 1 - (2 * gain - 1) ** 3), epsilon**2)
    moved = state._replace(
        flat=flat,
        pred=pred,
        objective=objective,
        scale=local.scale,
        damping=jnp.where(polishing, state.damping, eased),
        growth=jnp.full_like(state.growth, 2),
        size=jnp.where(polishing, size, state.size),
        iterations=state.iterations + 1,
    )
    accepted = jnp.where(polishing, shrinks, succeeds)
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), moved, stayed)


def _acceleration(problem: Problem, local: _Local, flat: Array, velocity: Array, triangle: Array) -> Array:
    """The step that answers the second derivative of the predictions along the velocity."""

    def along(function: Callable) -> Callable:
        return lambda point: jax.jvp(function, (point,), (velocity,))[1]

    bend = along(along(problem.predict))(flat).ravel()
    force = jnp.where(local.curvatures > 0, local.curvatures * bend, 0) @ local.jacobian
    return -solve_triangular(triangle, solve_triangular(triangle, force, trans=1))
