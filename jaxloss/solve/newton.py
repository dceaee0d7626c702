"""Newton's method on Σwℓ + ½·l2·‖coef‖², with slopes and curvatures derived from the loss, and a descent guaranteed.

The Hessian uses the curvature, blended with the curvature of the parabola that iteratively reweighted least squares
puts through each row as far as a step has been refused: at one end Newton's step, which on Huber's loss is exact once
the rows are on their final sides, at the other a step that always descends. Where most rows lie beyond the convex
part of the loss, its scale is first doubled until they do not, and halved with each good step (graduated convexity).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.solve.certificate import ROUNDINGS, inverse_of, least_independence, length_of_sum, rounding_of, settled
from jaxloss.solve.design import Design, hessian, matmul, summed, weighted_gram
from jaxloss.solve.term import Term

__all__ = ["Point", "Reached", "certified", "descend", "gradient_share", "graduated", "regress"]

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
    both = jnp.stack([eta, target])

    def flat(times: Array) -> Array:
        bends = jax.vmap(lambda eta: term.curvature(eta, target, times * unit))(both)
        here, perfect = matmul(bends, weights)
        return (here < 0.5 * perfect) & (times < 2.0**60)

    return lax.while_loop(flat, lambda times: 2 * times, jnp.ones((), eta.dtype))


class Point(NamedTuple):
    """Coordinates, and all that is known of the objective there."""

    phi: Array
    eta: Array
    value: Array
    pulls: Array
    """The weighted slope of each row."""
    bends: Array
    """The weighted curvature of each row in the matrix."""
    gradient: Array
    share: Array
    """The largest entry of the gradient beside the length of what it sums."""
    beside_noise: Array
    """The same, with what rounding the linear predictor can add to that length."""
    matrix: Array


class _State(NamedTuple):
    best: Point
    move: Array
    """The step that is being tried: `size` times this."""
    shift: Array
    """What the move does to the linear predictor."""
    size: Array
    fresh: Array
    """Whether the objective is to be looked at anew where it is: at the start, and with a new scale."""
    blend: Array
    scale: Array
    number: Array
    done: Array


class Reached(NamedTuple):
    """Where a search has ended: the scale of the residuals, the steps taken, and whether it came to rest."""

    point: Point
    scale: Array
    number: Array
    done: Array


def descend(term: Term, design: Design, target: Array, weights: Array, phi: Array) -> Reached:
    """The minimum reached from `phi`, at the scale 1."""
    eps, least = jnp.finfo(target.dtype).eps, 2.0**-HALVINGS
    absent = weights == 0

    def point(phi: Array, eta: Array, value: Array, scale: Array, blend: Array) -> Point:
        pulls = jnp.where(absent, 0, weights * term.slope(eta, target, scale))
        bends = term.curvature(eta, target, scale)
        bends = lax.cond(
            blend > 0,
            lambda bends: bends + blend * (term.majorant(eta, target, scale) - bends),
            lambda bends: bends,
            bends,
        )
        bends = jnp.where(absent, 0, weights * bends)
        gradient = summed(pulls, design.rows) + design.penalty @ phi
        length, noise = jnp.sqrt(pulls @ pulls), jnp.sqrt(jnp.sum(jnp.square(bends * eta)))
        share, beside_noise = gradient_share(gradient, length), gradient_share(gradient, length + noise)
        return Point(phi, eta, value, pulls, bends, gradient, share, beside_noise, hessian(design, bends))

    def attempt(state: _State) -> _State:
        best, size, blend, scale = state.best, state.size, state.blend, state.scale
        phi, eta = best.phi + size * state.move, best.eta + size * state.shift
        value = jnp.sum(jnp.where(absent, 0, weights * term.value(eta, target, scale)))
        value = value + 0.5 * phi @ design.penalty @ phi
        limit = best.value + 1e-4 * size * (state.move @ best.gradient) + 16 * eps * jnp.abs(best.value)
        accepted = state.fresh | (value <= limit) | (size == 0)
        final, whole = scale == 1, accepted & (size == 1)
        blend = jnp.where(
            state.fresh | ~accepted,
            blend,
            jnp.where(whole, jnp.where(blend > 0.02, 0.25 * blend, 0), jnp.minimum(jnp.maximum(4 * blend, 0.1), 1)),
        )
        there = lax.cond(
            accepted,
            lambda: point(phi, eta, value, jnp.where(whole, jnp.maximum(0.5 * scale, 1), scale), blend),
            lambda: best,
        )
        still = whole & (jnp.max(jnp.abs(state.move)) <= 4 * eps * jnp.max(jnp.abs(phi)))
        rounding = (there.share <= eps**0.75) & (there.share > 0.5 * best.share)  # what is left no longer shrinks
        stuck = (size == 0) & (state.blend >= 1)
        # A row's share is 1/√n of the length, of which a sum's rounding leaves a few dozen units.
        solved = there.beside_noise <= eps * min(4, 64 / len(target) ** 0.5)
        done = final & accepted & ~state.fresh & (still | solved | rounding | stuck)
        move = -_solve(there.matrix, there.gradient)
        usable = jnp.all(jnp.isfinite(move)) & (move @ there.gradient <= 0)
        move = jnp.where(usable, move, 0)
        shorter = jnp.where(0.5 * size < least, 0, 0.5 * size)
        return _State(
            there,
            jnp.where(accepted, move, state.move),
            jnp.where(accepted, matmul(design.rows, move), state.shift),
            jnp.where(whole & ~final, 0, jnp.where(accepted, 1.0 * usable, shorter)),
            whole & ~final,
            blend,
            jnp.where(whole, jnp.maximum(0.5 * scale, 1), scale),
            state.number + (accepted & ~state.fresh),
            done,
        )

    def going(state: _State) -> Array:
        return ~state.done & (state.number < STEPS)

    eta, one = matmul(design.rows, phi), jnp.ones((), target.dtype)
    scale = graduated(term, eta, target, weights, one) if term.residual else one
    blend = jnp.asarray(0 if term.convex else 1, target.dtype)
    nowhere = jnp.asarray(jnp.inf, target.dtype)
    start = Point(phi, eta, nowhere, 0 * eta, 0 * eta, 0 * phi, nowhere, nowhere, design.penalty)
    no, yes = jnp.asarray(False), jnp.asarray(True)
    state = _State(start, 0 * phi, 0 * eta, 0 * one, yes, blend, scale, jnp.asarray(0), no)
    state = lax.while_loop(going, attempt, state)
    return Reached(state.best, one, state.number, state.done)


def certified(term: Term, design: Design, target: Array, point: Point) -> Array:
    """Whether the coordinates are settled."""
    rounding = length_of_sum(design.rows, rounding_of(term, point.eta, target, point.bends))
    scatter = weighted_gram(design.rows, point.pulls * point.pulls)
    unseen = jnp.linalg.norm(rounding_of(term, point.eta, target, point.pulls))  # what rounding does to the objective
    _, inverse, independence = inverse_of(point.matrix)
    params = matmul(design.back, point.phi)
    good, _ = settled(design.back, inverse, point.gradient, rounding, scatter, params, point.value)
    told = unseen <= ROUNDINGS * jnp.finfo(params.dtype).eps * point.value
    return good & told & (independence > least_independence(params.dtype))
