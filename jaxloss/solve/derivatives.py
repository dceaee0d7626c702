"""Derivatives of a solution in everything it was computed from, by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from jaxloss.numerics.order import median_places
from jaxloss.solve.design import matmul, summed
from jaxloss.solve.found import Ended
from jaxloss.solve.inputs import Rows
from jaxloss.solve.interior_point import Dual
from jaxloss.solve.least_squares import Solution
from jaxloss.solve.linear_fit import LinearFit
from jaxloss.solve.median import scale_of
from jaxloss.solve.methods import bounds_of
from jaxloss.solve.term import Term

__all__ = ["predictor", "with_derivatives"]

Array = jax.Array


def with_derivatives(
    loss: Any,
    intercept: bool,
    scaled: bool,
    rows: Rows,
    solution: Solution,
    ended: Ended,
) -> LinearFit:
    """The fit, with the derivatives that the solution of its equations has in the rows, the settings and the ridge.

    rows: with targets from which the same number was taken off as for the solution.
    """
    x, target, weights, settings, l2 = rows
    slopes, count, term = x.shape[1], len(solution.params), Term(loss, settings)
    solution, (scale, gap, known, dual) = lax.stop_gradient((solution, ended))

    def objective_of(params: Array, shift: Array, scale: Array, rows: Rows) -> Array:
        term = Term(loss, rows.settings)
        losses = term.value(_calm(term, predictor(params, rows.x, shift, intercept), rows), rows.target, scale)
        total = jnp.sum(jnp.where(rows.weights == 0, 0, rows.weights * losses))
        return total + 0.5 * rows.l2 * jnp.sum(params[:slopes] * params[:slopes])

    def gradient(params: Array, pulls: Array) -> Array:
        """In the coordinates in which the problem is well-conditioned; those that do not count move nothing."""
        whole = summed(pulls, x - solution.shift[None]) + l2 * params[:slopes]
        whole = jnp.append(whole, jnp.sum(pulls)) if intercept else whole
        return matmul(solution.back.T, whole)

    idle = 1.0 * jnp.all(solution.back == 0, axis=0)
    rows_of_median = (jnp.asarray(0), jnp.asarray(0))
    if scaled:
        start = predictor(solution.params, x, solution.shift, intercept)
        rows_of_median = median_places(jnp.abs(lax.stop_gradient(start - target)), lax.stop_gradient(weights))

    def equations(change: Array) -> Array:
        moved = change[:count]
        params = solution.params + matmul(solution.back, moved)
        eta = _calm(term, predictor(params, x, solution.shift, intercept), rows)
        if dual is not None:
            return gradient(params, _pulls_of_dual(term, eta, target, weights, dual)) + idle * moved
        if not scaled:
            return gradient(params, weights * term.slope(eta, target)) + idle * moved
        unit = scale + change[count]
        first = gradient(params, weights * term.slope(eta, target, unit)) + idle * moved
        return jnp.append(first, unit - scale_of(eta - target, rows_of_median))

    change = _implicitly(equations, jnp.append(solution.params, scale) if scaled else solution.params)
    change_of_params = matmul(solution.back, change[:count])
    params = solution.params + change_of_params
    if scaled:
        scale = scale + change[count]
    at = (params, solution.shift, scale, rows)
    objective = _valued(objective_of, known, *at)
    coef, constant = params[:slopes], solution.constant
    if intercept:
        constant = constant + change_of_params[-1] - matmul(solution.shift, change_of_params[:-1])
    good = solution.converged & jnp.isfinite(objective) & (jnp.sum(weights) > 0)
    return LinearFit(coef, constant, scale, objective, solution.iterations, good, solution.rank, gap, Partial(loss))


def predictor(params: Array, x: Array, shift: Array, intercept: bool) -> Array:
    """The linear predictor of the rows, from parameters of the shifted columns."""
    pred = matmul(x - shift[None], params[: x.shape[1]])
    return pred + params[-1] if intercept else pred


def _calm(term: Term, eta: Array, rows: Rows) -> Array:
    """0 where a row without weight is so far off that its slope overflows: 0·inf would make derivatives NaN."""
    if term.residual:
        return eta
    far = (rows.weights == 0) & ~jnp.isfinite(term.curvature(eta, rows.target) * eta)
    return jnp.where(lax.stop_gradient(far), 0, eta)


def _pulls_of_dual(term: Term, eta: Array, target: Array, weights: Array, dual: Dual) -> Array:
    """The dual variable of each row, which gives way to the residual where it lies inside its bounds."""
    bounded = bounds_of(term, target, weights)
    copies = len(bounded.target) // len(target)
    residual = jnp.tile(eta, copies) - bounded.target
    y, near = lax.stop_gradient((dual.y, 1e-7 * (bounded.high - bounded.low)))
    y = jnp.where(y >= bounded.high - near, bounded.high, jnp.where(y <= bounded.low + near, bounded.low, y))
    pulls = y + lax.stop_gradient(dual.give) * (residual - lax.stop_gradient(residual))
    return jnp.sum(pulls.reshape(copies, -1), axis=0)


def _implicitly(equations: Callable[[Array], Array], like: Array) -> Array:
    """Zeros, the root of `equations`, with the derivatives in what the function closes over that the root has.

    Solvers work on constants; what they find is moved by this. Forward, reverse and higher orders work.
    like: of the root's shape, and computed from all that it is solved for.
    """

    def solve(linear: Callable, right: Array) -> Array:
        return jnp.linalg.solve(jax.jacobian(linear)(right), right)

    # Zeros that are mapped where `like` is: of a plain constant, `custom_root` loses an axis when mapped, then derived.
    zeros = jnp.where(jnp.isnan(like), jnp.zeros_like(like), 0)
    return lax.custom_root(equations, lax.stop_gradient(zeros), lambda _, start: start, solve)


def _valued(function: Callable[..., Array], value: Array, *args: Any) -> Array:
    """function(*args), whose value is known: only its derivatives are computed, where they are asked for.

    The function closes over nothing that is traced.
    """

    @jax.custom_jvp
    def known(value: Array, *args: Any) -> Array:
        return value

    @known.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
        return known(*primals), jax.jvp(function, primals[1:], tangents[1:])[1]

    return known(value, *args)
