"""Linear models under any loss, minimised exactly."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxloss.contract import ABOVE_MINUS_ONE, POSITIVE, loss_name, shown, unbound
from jaxloss.lift import traits
from jaxloss.losses.residual import mse
from jaxloss.solve.descent import descend, regress
from jaxloss.solve.design import Design, matmul, summed, unless, with_design
from jaxloss.solve.fewer_rows import sample, solve_piecewise_linear
from jaxloss.solve.fit import LinearFit
from jaxloss.solve.implicit import implicitly, valued
from jaxloss.solve.interior_point import Bounded, Dual, interior_point
from jaxloss.solve.joint_scale import descend_with_scale, median_rows, scale_of
from jaxloss.solve.least_squares import Solution, least_squares
from jaxloss.solve.rows import Rows, by_column, checked, is_concrete
from jaxloss.solve.term import Kind, Term, kind_of

__all__ = ["solve_linear"]

Array = jax.Array
START_ROWS = 4000
"""As many rows as a start looks at; the fit of a sample is near that of all."""


def solve_linear(
    x: Any,
    target: Any,
    loss: Any = mse,
    *,
    weights: Any = None,
    where: Any = None,
    l2: Any = 0.0,
    intercept: bool = True,
    scale_estimator: str | None = None,
) -> LinearFit:
    """Minimise Σwℓ(x·coef + intercept, target) + ½·l2·‖coef‖² over coef and intercept; exactly.

    x: (n, d), floating. target: (n,), or (n, k) for k outputs. loss: made by `pointwise`, with its settings bound by
    `Partial`; a setting may be a number, one for each output, or (n, 1). A vector of settings with one target fits
    each: `Partial(quantile, level=jnp.array([0.1, 0.5, 0.9]))`.
    weights ≥ 0, where: scalars, or of the target's rank with each axis equal or 1. l2 ≥ 0: a number, or one for each
    output; the intercept is free of it.
    scale_estimator: "mad" estimates the scale s = median|r|/0.674489750196 of the residuals with the coefficients, and
    the settings are in units of it: huber's δ = 1.345 is 1.345 s. Each ℓ is then s²·ℓ(r/s).

    How it is minimised follows from the traits and the curvature of the loss, so that one of your own is served too:
    squares by QR with refinement; convex and smooth ones by Newton's method; piecewise-linear ones (mae, quantile,
    epsilon_insensitive) by an interior-point method and a step to the vertex; the rest from a start by least
    absolute deviations, through losses that are less and less convex, to a nearby minimum. A loss of positive
    predictions (the deviances) has a log link: the mean is exp(x·coef + intercept).

    All is in x's type, float32 or float64: what float64 can certify needs `jax.enable_x64(True)`. It can be jitted,
    mapped and differentiated in x, target, weights, l2 and settings (by the implicit function theorem). Bad host values
    raise `ValueError` in one line; what cannot be seen, or goes wrong later, is in `converged` and `rank`, and calls
    outside `jit` warn.

    >>> from jax.tree_util import Partial
    >>> from jaxloss import huber
    >>> from jaxloss.solve import solve_linear
    >>> x, y = jnp.arange(6.0)[:, None], jnp.array([1.0, 3.0, 5.0, 7.0, 9.0, 99.0])
    >>> fit = solve_linear(x, y, Partial(huber, delta=0.1))
    >>> fit.coef.round(2).tolist(), bool(fit.converged)
    ([2.0299999...], True)
    """
    function, _ = unbound(loss)
    name = f"solve_linear({loss_name(loss)})"
    rows = checked(name, loss, x, target, weights, where, l2)
    known = traits(function)
    if not known.residual and known.pred is not POSITIVE and known.pred is not ABOVE_MINUS_ONE:
        raise TypeError(f"{name}: needs a loss of pred − target, or one of positive predictions, which get a log link")
    if scale_estimator not in (None, "mad"):
        raise ValueError(f"{name}: unknown scale_estimator {shown(scale_estimator)}; None or 'mad'")
    if scale_estimator and (not known.residual or kind_of(function) is Kind.LINEAR):
        raise ValueError(f"{name}: scale_estimator is for smooth losses of pred − target; leave it out")
    found = _solve(function, bool(intercept), scale_estimator is not None, rows)
    fit = dataclasses.replace(found, loss=Partial(function, **rows.settings))
    if is_concrete(fit):
        _warn(name, fit, rows.x.shape[1] + bool(intercept))
    return fit


def _warn(name: str, fit: LinearFit, full: int) -> None:
    rank = int(np.min(np.asarray(fit.rank)))
    if rank < full:
        warnings.warn(
            f"{name}: rank {rank} of {full}: columns depend on each other; of all solutions this has the least ‖coef‖",
            RuntimeWarning,
            stacklevel=3,
        )
    if not np.all(np.asarray(fit.converged)):
        warnings.warn(
            f"{name}: did not converge in {int(np.max(np.asarray(fit.iterations)))} steps; see .converged",
            RuntimeWarning,
            stacklevel=3,
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _solve(loss: Any, intercept: bool, scaled: bool, rows: Rows) -> LinearFit:
    found = by_column(functools.partial(_solve_one, loss, intercept, scaled), rows)
    return dataclasses.replace(found, coef=found.coef.T)


def _solve_one(loss: Any, intercept: bool, scaled: bool, rows: Rows) -> LinearFit:
    """Solve for constants; then give the solution its derivatives."""
    fixed = lax.stop_gradient(rows)
    x, target, weights, settings, l2 = fixed
    if kind_of(loss) is Kind.QUADRATIC:
        bend = Term(loss, settings).curvature(jnp.zeros_like(target), jnp.zeros_like(target))
        solution = least_squares(x, target, weights * bend, l2, intercept)
        ended = _Ended(jnp.ones((), x.dtype), jnp.zeros((), x.dtype))
    else:
        solve = functools.partial(_solve_in_basis, loss, scaled)
        (phi, steps, good, ended), design = with_design(solve, intercept)(x, weights, l2, target, settings)
        params = matmul(design.back, phi)
        constant = params[-1] - matmul(design.shift, params[:-1]) if intercept else jnp.zeros((), x.dtype)
        solution = Solution(params, constant, design.back, design.shift, steps, good, design.rank)
    return _with_derivatives(loss, intercept, scaled, rows, solution, ended)


class _Ended(NamedTuple):
    """What a search tells beside the solution: the objective where it is known, the dual of piecewise-linear losses."""

    scale: Array
    gap: Array
    objective: Array | None = None
    dual: Dual | None = None


def _solve_in_basis(
    loss: Any, scaled: bool, design: Design, weights: Array, target: Array, settings: Mapping[str, Array]
) -> tuple[Array, Array, Array, _Ended]:
    """Coordinates, steps, whether it is a minimum, and how it ended."""
    kind, term = kind_of(loss), Term(loss, settings)
    one, eps = jnp.ones((), target.dtype), float(jnp.finfo(target.dtype).eps)

    def objective(phi: Array, scale: Array) -> Array:
        losses = term.value(matmul(design.rows, phi), target, scale)
        return jnp.sum(jnp.where(weights == 0, 0, weights * losses)) + 0.5 * phi @ design.penalty @ phi

    if kind is Kind.LINEAR:
        bounded = _bounds(term, target, weights)
        copies = len(bounded.target) // len(target)
        wide = design._replace(rows=jnp.tile(design.rows, (copies, 1)))
        dual = solve_piecewise_linear(wide, bounded, max(2e-11, 16 * eps))
        good = dual.gap <= max(1e-10, 64 * eps)
        return dual.phi, dual.number, good, _Ended(one, dual.gap, objective(dual.phi, one), dual)
    minimise = descend_with_scale if scaled else descend
    phi = _start(minimise, term, design, target, weights, kind)
    phi, scale, steps, good = minimise(term, design, target, weights, phi)
    return phi, steps, good, _Ended(scale, 0 * one, objective(phi, scale))


def _start(minimise: Any, term: Term, design: Design, target: Array, weights: Array, kind: Kind) -> Array:
    """Coordinates to start from: those of a sample, if there are many rows."""
    if len(target) <= START_ROWS or (kind is Kind.CONVEX and term.residual):
        return _first(term, design, target, weights, kind, 0.0)
    part = _sample(term, design, target, weights)
    phi = _first(*part, kind, 1e-4)
    if kind is Kind.REDESCENDING:
        return phi
    few, basis, targets, heavy = part
    bend = jnp.sum(heavy * few.majorant(matmul(basis.rows, phi), targets)) / len(targets)
    basis = _with_ridge(basis, 1e-3 * bend * jnp.mean(jnp.sum(basis.rows * basis.rows, axis=0)))
    phi = minimise(few, basis, targets, heavy, phi)[0]

    def total(eta: Array) -> Array:
        return jnp.sum(jnp.where(weights == 0, 0, weights * term.value(eta, target)))

    # It is absurd if it is worse than a constant: the sample can lack the one row that matters.
    mean = jnp.sum(weights * target) / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)
    fine = total(matmul(design.rows, phi)) <= total(_linked(term, jnp.broadcast_to(mean, target.shape)))
    return unless(fine, phi, lambda bad: _first(term, design, target, weights * bad, kind, 0.0))


def _first(term: Term, design: Design, target: Array, weights: Array, kind: Kind, ridge: float) -> Array:
    """From regression; for a loss that is not convex from least absolute deviations.

    ridge: a little of it holds, in a sample, the directions of which it says nothing.
    """
    if not term.residual:  # the logarithm of means halfway between each target and that of all
        mean = jnp.sum(weights * target) / jnp.maximum(jnp.sum(weights), jnp.finfo(weights.dtype).tiny)
        return regress(design, _linked(term, 0.5 * (target + mean)), (weights > 0).astype(target.dtype))
    phi = regress(design, target, weights)
    if kind is Kind.CONVEX:
        return phi
    size, large = jnp.sum(weights * jnp.abs(matmul(design.rows, phi) - target)), phi @ phi + jnp.sum(target * target)
    held = _with_ridge(design._replace(penalty=0 * design.penalty), ridge * size / jnp.where(large > 0, large, 1))
    return interior_point(held, Bounded(target, -weights, weights), 1e-3).phi


def _linked(term: Term, mean: Array) -> Array:
    """The linear predictor of a mean, kept inside the link's domain."""
    if traits(term.loss).pred is POSITIVE:
        return jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).eps))
    return jnp.log1p(jnp.maximum(mean, -0.5))


def _with_ridge(design: Design, size: Array) -> Design:
    return design._replace(penalty=design.penalty + size * jnp.eye(len(design.active), dtype=design.penalty.dtype))


def _sample(term: Term, design: Design, target: Array, weights: Array) -> tuple[Term, Design, Array, Array]:
    """So many of the present rows, and their share of the ridge."""
    chosen, share = sample(weights > 0, START_ROWS, target.dtype)
    settings = {name: value[chosen] if value.ndim else value for name, value in term.settings.items()}
    design = design._replace(rows=design.rows[chosen], penalty=share * design.penalty)
    return term._replace(settings=settings), design, target[chosen], weights[chosen]


def _bounds(term: Term, target: Array, weights: Array) -> Bounded:
    """The loss as the largest of y·r over bounds of y, a row for each kink, where the slope turns its share of them."""
    place, below, above = term.kinks(target)
    low = jnp.minimum(below, 0) - jnp.minimum(above, 0)
    high = jnp.maximum(above, 0) - jnp.maximum(below, 0)
    each = [(target + place[k], weights * low[k], weights * high[k]) for k in range(len(place))]
    return Bounded(*(jnp.concatenate(parts) for parts in zip(*each, strict=True)))


def _with_derivatives(
    loss: Any,
    intercept: bool,
    scaled: bool,
    rows: Rows,
    solution: Solution,
    ended: _Ended,
) -> LinearFit:
    x, target, weights, settings, l2 = rows
    slopes, count, term = x.shape[1], len(solution.params), Term(loss, settings)
    solution, (scale, gap, known, dual) = lax.stop_gradient((solution, ended))

    def predictor(params: Array, x: Array, shift: Array) -> Array:
        pred = matmul(x - shift[None], params[:slopes])
        return pred + params[slopes] if intercept else pred

    def objective_of(params: Array, shift: Array, scale: Array, rows: Rows) -> Array:
        term = Term(loss, rows.settings)
        losses = term.value(_calm(term, predictor(params, rows.x, shift), rows), rows.target, scale)
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
        start = predictor(solution.params, x, solution.shift)
        rows_of_median = median_rows(jnp.abs(lax.stop_gradient(start - target)), lax.stop_gradient(weights))
        if kind_of(loss) is Kind.QUADRATIC:
            scale = lax.stop_gradient(scale_of(start - target, rows_of_median))

    def equations(change: Array) -> Array:
        moved = change[:count]
        params = solution.params + matmul(solution.back, moved)
        eta = _calm(term, predictor(params, x, solution.shift), rows)
        if dual is not None:
            return gradient(params, _pulls_of_dual(term, eta, target, weights, dual)) + idle * moved
        if not scaled:
            return gradient(params, weights * term.slope(eta, target)) + idle * moved
        unit = scale + change[count]
        first = gradient(params, weights * term.slope(eta, target, unit)) + idle * moved
        return jnp.append(first, unit - scale_of(eta - target, rows_of_median))

    change = implicitly(equations, jnp.append(solution.params, scale) if scaled else solution.params)
    change_of_params = matmul(solution.back, change[:count])
    params = solution.params + change_of_params
    if scaled:
        scale = scale + change[count]
    at = (params, solution.shift, scale, rows)
    objective = objective_of(*at) if known is None or scaled else valued(objective_of, known, *at)
    coef, constant = params[:slopes], solution.constant
    if intercept:
        constant = constant + change_of_params[-1] - matmul(solution.shift, change_of_params[:-1])
    good = solution.converged & jnp.isfinite(objective) & (jnp.sum(weights) > 0)
    return LinearFit(coef, constant, scale, objective, solution.iterations, good, solution.rank, gap, Partial(loss))


def _calm(term: Term, eta: Array, rows: Rows) -> Array:
    """0 where a row without weight is so far off that its slope overflows: 0·inf would make derivatives NaN."""
    if term.residual:
        return eta
    far = (rows.weights == 0) & ~jnp.isfinite(term.curvature(eta, rows.target) * eta)
    return jnp.where(lax.stop_gradient(far), 0, eta)


def _pulls_of_dual(term: Term, eta: Array, target: Array, weights: Array, dual: Dual) -> Array:
    """The dual variable of each row, which gives way to the residual where it lies inside its bounds."""
    bounded = _bounds(term, target, weights)
    copies = len(bounded.target) // len(target)
    residual = jnp.tile(eta, copies) - bounded.target
    y, near = lax.stop_gradient((dual.y, 1e-7 * (bounded.high - bounded.low)))
    y = jnp.where(y >= bounded.high - near, bounded.high, jnp.where(y <= bounded.low + near, bounded.low, y))
    pulls = y + lax.stop_gradient(dual.give) * (residual - lax.stop_gradient(residual))
    return jnp.sum(pulls.reshape(copies, -1), axis=0)
