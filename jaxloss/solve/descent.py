"""Newton's method on Σwℓ + ½·l2·‖coef‖², with slopes and curvatures derived from the loss, and a descent guaranteed.

The Hessian uses the curvature, blended with the curvature of the parabola that iteratively reweighted least squares
puts through each row as far as a step has been refused: at one end Newton's step, which on Huber's loss is exact once
the rows are on their final sides, at the other a step that always descends. Where most rows lie beyond the convex
part of the loss, its scale is first doubled until they do not, and halved with each good step (graduated convexity).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.solve.certificate import inverse_of, lengths, rounding_of, settled
from jaxloss.solve.design import Design, hessian, matmul, summed, unless
from jaxloss.solve.term import Term

__all__ = ["descend", "gradient_share", "graduated", "regress"]

Array = jax.Array
STEPS = 200
HALVINGS = 30


def regress(design: Design, target: Array, weights: Array) -> Array:
    """The coordinates of the weighted least-squares fit."""
    matrix = hessian(design, weights)
    jitter = jnp.finfo(matrix.dtype).eps * jnp.max(jnp.diag(matrix)) * jnp.eye(len(matrix), dtype=matrix.dtype)
    phi = _solve(matrix + jitter, summed(weights * target, design.rows))
    return jnp.where(jnp.all(jnp.isfinite(phi)), phi, 0)


def _solve(matrix: Array, right: Array) -> Array:
    """By Cholesky: NaN unless the matrix is positive definite."""
    factor = jnp.linalg.cholesky(matrix)
    half = lax.linalg.triangular_solve(factor, right[:, None], left_side=True, lower=True)
    return lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)[:, 0]


def gradient_share(gradient: Array, length: Array) -> Array:
    """The largest entry of the gradient beside the length of what it sums; 0 for a perfect fit, inf on overflow."""
    largest = jnp.max(jnp.abs(gradient))
    share = jnp.where(largest == 0, 0, largest / jnp.where(length == 0, 1, length))
    return jnp.where(jnp.isfinite(length), share, jnp.inf)


def graduated(term: Term, eta: Array, target: Array, weights: Array, unit: Array) -> Array:
    """How many times the unit the scale must be so that the rows have half the curvature of a perfect fit."""
    whole = jnp.sum(weights * term.curvature(target, target, unit))

    def flat(times: Array) -> Array:
        return (jnp.sum(weights * term.curvature(eta, target, times * unit)) < 0.5 * whole) & (times < 2.0**60)

    return lax.while_loop(flat, lambda times: 2 * times, jnp.ones((), eta.dtype))


class _State(NamedTuple):
    phi: Array
    eta: Array
    value: Array
    gradient: Array
    share: Array
    blend: Array
    scale: Array
    matrix: Array
    number: Array
    done: Array


def descend(term: Term, design: Design, target: Array, weights: Array, phi: Array) -> tuple[Array, ...]:
    """The coordinates of the minimum reached from `phi`, the scale 1, the steps taken, and whether it is one."""
    eps = jnp.finfo(target.dtype).eps
    absent = weights == 0

    def total(phi: Array, eta: Array, scale: Array) -> Array:
        return (
            jnp.sum(jnp.where(absent, 0, weights * term.value(eta, target, scale))) + 0.5 * phi @ design.penalty @ phi
        )

    def pulled(phi: Array, eta: Array, scale: Array) -> tuple[Array, Array]:
        """The gradient, and the length of what it sums."""
        pulls = jnp.where(absent, 0, weights * term.slope(eta, target, scale))
        return summed(pulls, design.rows) + design.penalty @ phi, jnp.sqrt(jnp.sum(pulls * pulls))

    def step(state: _State) -> _State:
        phi, eta, scale = state.phi, state.eta, state.scale
        bend = term.curvature(eta, target, scale)
        bend = lax.cond(
            state.blend > 0,
            lambda bend: bend + state.blend * (term.majorant(eta, target, scale) - bend),
            lambda bend: bend,
            bend,
        )
        matrix = hessian(design, jnp.where(absent, 0, weights * bend))
        move = -_solve(matrix, state.gradient)
        along = move @ state.gradient
        usable = jnp.all(jnp.isfinite(move)) & (along <= 0)
        move = jnp.where(usable, move, 0)
        shift = matmul(design.rows, move)
        slack = 16 * eps * jnp.abs(state.value)

        def too_high(search: tuple[Any, ...]) -> Array:
            size, value, halvings = search
            return ~(value <= state.value + 1e-4 * size * along + slack) & (halvings < HALVINGS)

        def halve(search: tuple[Any, ...]) -> tuple[Any, ...]:
            size, _, halvings = search
            return 0.5 * size, total(phi + 0.5 * size * move, eta + 0.5 * size * shift, scale), halvings + 1

        one = jnp.ones((), eta.dtype)
        search = (one, total(phi + move, eta + shift, scale), 0)
        size, value, halvings = lax.while_loop(too_high, halve, search)
        moved = usable & (halvings < HALVINGS)
        size = jnp.where(moved, size, 0)
        phi = phi + size * move
        eta = eta + size * shift
        whole = moved & (size == 1)
        final = scale == 1
        scale = jnp.where(whole, jnp.maximum(0.5 * scale, 1), scale)
        value = jnp.where(moved, value, state.value)
        value = unless(final, value, lambda bad: total(phi, eta * bad, scale))
        gradient, length = pulled(phi, eta, scale)
        share = gradient_share(gradient, length)
        still = whole & (jnp.max(jnp.abs(move)) <= 4 * eps * jnp.max(jnp.abs(phi)))
        rounding = (share <= eps**0.75) & (share > 0.5 * state.share)  # what is left no longer shrinks
        noise = jnp.sqrt(jnp.sum(jnp.square(jnp.where(absent, 0, weights * bend * eta))))
        solved = gradient_share(gradient, length + noise) <= 4 * eps
        stuck = ~moved & (state.blend >= 1)
        blend = jnp.where(
            whole,
            jnp.where(state.blend > 0.02, 0.25 * state.blend, 0),
            jnp.minimum(jnp.maximum(4 * state.blend, 0.1), 1),
        )
        done = final & (still | solved | rounding | stuck)
        return _State(phi, eta, value, gradient, share, blend, scale, matrix, state.number + 1, done)

    def going(state: _State) -> Array:
        return ~state.done & (state.number < STEPS)

    eta, one = matmul(design.rows, phi), jnp.ones((), target.dtype)
    scale = graduated(term, eta, target, weights, one) if term.residual else one
    blend = jnp.asarray(0 if term.convex else 1, target.dtype)
    value, (gradient, length) = total(phi, eta, scale), pulled(phi, eta, scale)
    share, no = gradient_share(gradient, length), jnp.asarray(False)
    start = _State(phi, eta, value, gradient, share, blend, scale, design.penalty, jnp.asarray(0), no)
    state = lax.while_loop(going, step, start)
    good = certified(
        term, design, target, weights, state.phi, state.eta, state.matrix, state.gradient, state.value, one
    )
    return state.phi, one, state.number, state.value, state.done & good


def certified(
    term: Term,
    design: Design,
    target: Array,
    weights: Array,
    phi: Array,
    eta: Array,
    matrix: Array,
    gradient: Array,
    value: Array,
    scale: Array,
) -> Array:
    """Whether these coordinates, with their linear predictor, the Hessian and the gradient, are settled."""
    absent = weights == 0
    pulls = jnp.where(absent, 0, weights * term.slope(eta, target, scale))
    bend = jnp.where(absent, 0, weights * term.curvature(eta, target, scale))
    pulls, rounding = lengths(design.rows, pulls, rounding_of(term, eta, target, bend))
    _, inverse, independence = inverse_of(matrix)
    good, _ = settled(design.back, inverse, gradient, rounding, pulls, matmul(design.back, phi), value)
    # Where the coordinates depend on each other, the own unit of each cannot be seen in them.
    return good & (independence > jnp.finfo(phi.dtype).eps ** 0.25)
