"""Weighted least squares with a ridge, to the last digits that the data allow.

Householder QR of the shifted and scaled columns, then iterative refinement of the augmented system with residuals in
twice the working precision (Björck, BIT 1967): the coefficients are right to nearly all digits as long as the columns
are independent to half of them. Where the Gram matrix proves the columns far from dependent, its Cholesky factor and
one step of refinement do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.numerics.pairs import Pair, add, multiply, two_sum
from jaxloss.numerics.stages import stage, unless
from jaxloss.solve.design import (
    Centred,
    Factors,
    centred,
    exactly,
    factors_of,
    far_from_dependent,
    matmul,
    summed,
    summed_in_pairs,
)

__all__ = ["Solution", "least_squares", "unshifted"]

Array = jax.Array
SWEEPS = 20


class Solution(NamedTuple):
    """What every solver finds: parameters of the shifted columns, the intercept last, and how it went.

    constant: the intercept of the columns as they are, which the shifted one can be too large to tell; else 0.
    back: (p, p), from coordinates in which the problem is well-conditioned to these parameters.
    """

    params: Array
    constant: Array
    back: Array
    shift: Array
    iterations: Array
    converged: Array
    rank: Array


def least_squares(x: Array, target: Array, middle: Array, weights: Array, l2: Array, intercept: bool) -> Solution:
    """The minimiser of ½Σw(x·coef + intercept − target)² + ½·l2·‖coef‖², with `middle` taken off the target."""
    if x.dtype != jnp.float64:
        return _by_qr(x, target, middle, weights, l2, intercept)
    good, found = _by_cholesky(x, target, middle, weights, l2, intercept)
    return unless(good, found, lambda bad: _by_qr(x, target, middle, weights * bad, l2, intercept))


def _ridge_of(x: Array, l2: Array, intercept: bool) -> tuple[Array, Array]:
    """The root of the ridge, and what it is for each parameter."""
    ridge, slopes = jnp.sqrt(l2), x.shape[1]
    return ridge, ridge * (jnp.arange(slopes + intercept) < slopes)


def _solution(params: Pair, columns: Centred, middle: Array, intercept: bool, *rest: Array) -> Solution:
    constant = unshifted(params, columns.shift, middle) if intercept else middle
    back, iterations, good, rank = rest
    return Solution(params[0], constant, back, columns.shift, iterations, good, rank)


@stage(5)
def _by_cholesky(
    x: Array, target: Array, middle: Array, weights: Array, l2: Array, intercept: bool
) -> tuple[Array, Solution]:
    """Whether the columns are far from dependent, and the solution then, with one step of refinement."""
    ridge, size = _ridge_of(x, l2, intercept)
    columns, gram = centred(x, jnp.sqrt(weights), ridge, intercept)
    half = lax.linalg.triangular_solve(
        jnp.linalg.cholesky(gram), jnp.eye(len(gram), dtype=gram.dtype), left_side=True, lower=True
    )
    back = columns.scale[:, None] * half.T

    def refine(_: int, params: Array) -> Array:
        error = (target - middle - matmul(columns.rows, params)) * weights
        return params + matmul(back, matmul(back.T, summed(error, columns.rows) - size * size * params))

    params = lax.fori_loop(0, 2, refine, jnp.zeros(len(gram), gram.dtype))
    good, rank = jnp.all(jnp.isfinite(params)), jnp.asarray(len(gram))
    found = _solution((params, 0 * params), columns, middle, intercept, back, jnp.asarray(1), good, rank)
    return far_from_dependent(jnp.linalg.eigvalsh(gram)), found


@stage(5)
def _by_qr(x: Array, target: Array, middle: Array, weights: Array, l2: Array, intercept: bool) -> Solution:
    """The solution for any columns, refined in pairs of floats."""
    root, (ridge, size) = jnp.sqrt(weights), _ridge_of(x, l2, intercept)
    columns, _ = centred(x, root, ridge, intercept)
    exact, low = exactly(x, columns)
    factors = factors_of(columns, root, ridge, x.shape[1])
    aim = two_sum(target, jnp.broadcast_to(-middle, target.shape))
    found, sweeps, good = _refine(exact, low, factors, aim, root, size)
    # The part of the parameters that makes no difference to the fit is what `back` leaves out.
    least = matmul(factors.back, factors.values * matmul(factors.right.T, found[0] / columns.scale))
    every = jnp.all(factors.active)
    params = jnp.where(every, found[0], least), jnp.where(every, found[1], 0)
    rank = jnp.sum(factors.active)
    return _solution(params, columns, middle, intercept, factors.back, sweeps, good, rank)


def _refine(
    columns: Centred, low: Array, factors: Factors, target: Pair, root: Array, size: Array
) -> tuple[Pair, Array, Array]:
    """Solve residual + A·y = b, Aᵀ·residual = 0, with what is left of both found in twice the precision."""
    eps, count, rows = jnp.finfo(root.dtype).eps, len(columns.scale), len(root)
    slopes = len(factors.rows) - rows
    pairs = columns.rows.T, low.T

    def sweep(state: tuple[Any, ...]) -> tuple[Any, ...]:
        params, residual, last, _, done, number = state
        upper, lower = residual[:rows], residual[rows:]
        left = _left_over(pairs, target, params, root, upper)
        left = jnp.concatenate([left, -(size * params[0])[:slopes] - lower])
        weighted = multiply((root, 0 * root), (upper, 0 * upper))
        high, low_part = summed_in_pairs(weighted, pairs)
        gradient = -(high + low_part) - jnp.pad(lower, (0, count - slopes)) * size
        along = matmul(factors.rows.T, left)
        across = matmul(factors.right.T, gradient * columns.scale) / factors.values * factors.active
        step = columns.scale * matmul(factors.right, (along - across) / factors.values * factors.active)
        residual = residual + left - matmul(factors.rows, along - across)
        # How far the step is from nothing, measured in each coefficient's own unit.
        moved = jnp.max(jnp.abs(step / columns.scale))
        share = moved / jnp.maximum(jnp.max(jnp.abs((params[0] + step) / columns.scale)), jnp.finfo(eps.dtype).tiny)
        done = (number > 0) & ((share <= 1e-7 * eps) | (share > 0.5 * last))
        worse = (number > 0) & (share > 0.5 * last)
        moved = add(params, (step, 0 * step))
        params = jax.tree.map(lambda old, new: jnp.where(worse, old, new), params, moved)
        return params, residual, share, jnp.where(worse, last, share), done, number + 1

    def going(state: tuple[Any, ...]) -> Array:
        return ~state[4] & (state[5] < SWEEPS)

    big = jnp.asarray(jnp.inf, root.dtype)
    zero = jnp.zeros(count, root.dtype)
    start = ((zero, zero), jnp.zeros(len(factors.rows), root.dtype), big, big, False, 0)
    params, _, _, share, _, number = lax.while_loop(going, sweep, start)
    return params, number, jnp.all(jnp.isfinite(params[0])) & (share < jnp.sqrt(eps))


def unshifted(params: Pair, shift: Array, middle: Array) -> Array:
    """The intercept of columns and target as they were, added in pairs: it can be the small rest of large numbers."""
    terms = multiply((-shift, 0 * shift), (params[0][:-1], params[1][:-1]))
    start = add((params[0][-1], params[1][-1]), (middle, 0 * middle))
    total, _ = lax.scan(lambda total, term: (add(total, term), None), start, terms)
    return total[0] + total[1]


def _left_over(columns: Pair, target: Pair, params: Pair, root: Array, residual: Array) -> Array:
    """root·(target − prediction) − residual."""

    def less(total: Pair, column: tuple[Array, ...]) -> tuple[Pair, None]:
        high, low, param, rest = column
        return add(total, multiply((high, low), (0 * high - param, 0 * high - rest))), None

    error, _ = lax.scan(less, target, (*columns, *params))
    error = add(multiply(error, (root, 0 * root)), (-residual, 0 * residual))
    return error[0] + error[1]
