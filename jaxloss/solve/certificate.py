"""When a fit may say that it is the minimum, and the steps that bring one there which cannot say so yet.

One rule for every method. A fit is settled when the next Newton step would move no parameter by more than its own
rounding or a sliver of its own standard error, and would lower the objective by no more than its rounding. Both are
worked out in the Hessian's own metric, so that neither a group of small rows beside large ones nor a column in odd
units is overlooked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.numerics.order import median_places
from jaxloss.numerics.pairs import Pair, add
from jaxloss.solve.design import matmul, matmul_of_pairs, summed
from jaxloss.solve.median import NORMAL_MEDIAN, scale_of
from jaxloss.solve.term import Term

__all__ = ["ROUNDINGS", "inverse_of", "least_independence", "length_of_sum", "polish", "rounding_of", "settled"]

Array = jax.Array
ROUNDINGS = 16.0
"""How many roundings of itself a parameter, or the objective, may be off."""
SLIVER = 100.0
"""How many roundings of its standard error a parameter may be off; a standard error has no more than a few digits."""
STEPS = 60


def settled(
    back: Array,
    inverse: Array,
    gradient: Array,
    rounding: Array,
    scatter: Array,
    params: Array,
    value: Array,
    bars: tuple[float, float] = (ROUNDINGS, SLIVER),
) -> tuple[Array, Array]:
    """Whether the next Newton step changes nothing that the type can tell, and the step, of the parameters.

    In coordinates of which `back` makes parameters: the inverse of the Hessian, the gradient, how far rounding may
    have put it off, and Σ pull²·row·rowᵀ of the pulls that it sums. value: the objective. bars: how many roundings of
    itself, and of its standard error, a parameter may be off.
    """
    eps = jnp.finfo(params.dtype).eps
    to_params = matmul(back, inverse)
    # The rows are rounded in each coordinate by itself, where pulls may cancel in a parameter.
    noise = jnp.square(rounding) + eps * eps * jnp.diag(scatter)
    move, off = -matmul(to_params, gradient), jnp.sqrt(matmul(to_params * to_params, noise))
    errors = jnp.sqrt(jnp.maximum(jnp.sum(matmul(to_params, scatter) * to_params, axis=1), 0))
    fine = jnp.abs(move) + off <= eps * (bars[0] * jnp.abs(params) + bars[1] * errors)
    lower = gradient @ matmul(inverse, gradient) + jnp.diag(inverse) @ noise
    return jnp.all(fine) & (lower <= ROUNDINGS * eps * value), move


def least_independence(dtype: Any) -> float:
    """Of coordinates: where they depend on each other more, the own unit of each cannot be seen in them."""
    return float(jnp.finfo(dtype).eps) ** 0.25


def rounding_of(term: Term, eta: Array, target: Array, bend: Array) -> Array:
    """What rounding the linear predictor and the target can do to each row's pull, of weighted curvature `bend`."""
    size = jnp.abs(eta) + (jnp.abs(target) if term.residual else 1)
    return jnp.finfo(eta.dtype).eps * jnp.abs(bend) * size


def length_of_sum(rows: Array, pulls: Array) -> Array:
    """√Σ(pull·row)², of each column."""
    return jnp.sqrt(jnp.sum(jnp.square(pulls[:, None] * rows), axis=0))


def inverse_of(matrix: Array) -> tuple[Array, Array, Array]:
    """A factor F with F·Fᵀ the inverse of a positive definite matrix, the inverse, and the independence of coordinates.

    The last is the least share of a coordinate's own curvature that those before it do not explain.

    The diagonal is scaled to 1, and so little added to it that a matrix of lost digits has a factor, too.
    """
    count, eps = len(matrix), jnp.finfo(matrix.dtype).eps
    size = jnp.diag(matrix)
    unit = jnp.where(size > 0, 1 / jnp.sqrt(jnp.where(size > 0, size, 1)), 1)
    lower = jnp.linalg.cholesky(unit[:, None] * matrix * unit[None] + 4 * count * eps * jnp.eye(count, dtype=eps.dtype))
    whole = lax.linalg.triangular_solve(lower, jnp.eye(count, dtype=eps.dtype), left_side=True, lower=True)
    factor = unit[:, None] * whole.T
    return factor, matmul(factor, factor.T), jnp.min(jnp.square(jnp.diag(lower)))


class _State(NamedTuple):
    params: Pair
    back: Array
    scale: Array
    value: Array
    number: Array
    done: Array
    good: Array


class Polished(NamedTuple):
    """Parameters as an unevaluated sum, the scale and the objective, the steps taken, and whether it is settled."""

    params: Pair
    scale: Array
    value: Array
    number: Array
    good: Array


def polish(
    term: Term,
    scaled: bool,
    columns: Pair,
    back: Array,
    active: Array,
    target: Array,
    weights: Array,
    ridge: Array,
    params: Array,
) -> Polished:
    """Newton's method from near the minimum, with residuals in twice the precision.

    Each step makes the basis anew from its own Hessian, in which every coordinate then has its own unit; `back` is
    where it starts. columns: (n, p) each. ridge: of each parameter.
    """
    absent, number = weights == 0, len(params)
    nought, one = jnp.zeros_like(target), jnp.ones((), target.dtype)

    def step(state: _State) -> _State:
        whole = jnp.pad(state.back, ((0, 0), (0, 1)))
        factors = whole.at[:, -1].set(state.params[0]), (0 * whole).at[:, -1].set(state.params[1])
        start = jnp.zeros_like(target, shape=(len(target), number + 1))
        start = start.at[:, -1].set(-target if term.residual else 0)
        product = matmul_of_pairs(columns, factors, start)
        rows, eta, aim = product[:, :-1], product[:, -1], nought if term.residual else target
        scale, at = one, (0, 0)
        if scaled:
            at = median_places(jnp.abs(eta), weights)
            scale = jnp.maximum(scale_of(eta, at), jnp.finfo(one.dtype).tiny)
        pulls = jnp.where(absent, 0, weights * term.slope(eta, aim, scale))
        bend = jnp.where(absent, 0, weights * term.curvature(eta, aim, scale))
        penalty = matmul(state.back.T, ridge[:, None] * state.back)
        factor, inverse, independence = inverse_of(
            matmul((rows * bend[:, None]).T, rows) + penalty + jnp.diag(1.0 * ~active)
        )
        if scaled:  # the gradient moves with the scale, and that with the coordinates
            by_scale = summed(pulls - bend * eta, rows) / scale
            by_phi = sum(jnp.sign(eta[row]) * rows[row] for row in at) * (0.5 / NORMAL_MEDIAN)
            left, right = matmul(inverse, by_scale), by_phi @ inverse
            inverse = inverse - left[:, None] * right[None] / (1 + by_phi @ left)
        gradient = summed(pulls, rows) + matmul(state.back.T, ridge * state.params[0])
        value = jnp.sum(jnp.where(absent, 0, weights * term.value(eta, aim, scale)))
        value = value + 0.5 * jnp.sum(ridge * jnp.square(state.params[0]))
        unseen = rounding_of(term, 0 * eta, target, bend)  # what the rounding of the data does
        scatter = matmul((rows * (pulls**2 + unseen**2)[:, None]).T, rows)
        good, move = settled(
            state.back,
            inverse,
            gradient,
            0 * gradient,
            scatter,
            state.params[0],
            value + jnp.sum(unseen * unseen / jnp.where(bend > 0, bend, 1)) / jnp.finfo(target.dtype).eps,
        )
        good, lost = good & (independence > least_independence(eta.dtype)), ~jnp.all(jnp.isfinite(move))
        move = jnp.where(lost, 0, move)
        return state._replace(
            params=add(state.params, (move, 0 * move)),
            back=matmul(state.back, factor),
            scale=scale,
            value=value,
            number=state.number + 1,
            done=(good & (state.number > 0)) | lost,
            good=good,
        )

    def going(state: _State) -> Array:
        return ~state.done & (state.number < STEPS)

    big, no = jnp.asarray(jnp.inf, target.dtype), jnp.asarray(False)
    start = _State((params, 0 * params), back, one, big, jnp.asarray(0), no, no)
    state = lax.while_loop(going, step, start)
    return Polished(state.params, state.scale, state.value, state.number, state.good)
