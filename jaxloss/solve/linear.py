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
from jaxloss.numerics.order import median_places
from jaxloss.numerics.pairs import Pair, two_sum
from jaxloss.solve.certificate import polish
from jaxloss.solve.derivatives import implicitly, valued
from jaxloss.solve.design import Design, matmul, summed, with_design
from jaxloss.solve.inputs import Rows, by_column, checked, has_columns
from jaxloss.solve.interior_point import Bounded, Dual, interior_point
from jaxloss.solve.least_squares import Solution, least_squares, unshifted
from jaxloss.solve.linear_fit import LinearFit
from jaxloss.solve.median import scale_of
from jaxloss.solve.newton import descend, regress
from jaxloss.solve.newton_scale import descend_with_scale
from jaxloss.solve.preprocessing import sample, solve_piecewise_linear
from jaxloss.solve.stages import is_concrete, stage, unless
from jaxloss.solve.term import Kind, Term, has_dead_zone, kind_of

__all__ = ["solve_linear"]

Array = jax.Array
MIDDLE_ROWS = 1000
"""As many rows as the middle of the target is taken from."""
START_ROWS = 4000
"""As many rows as a start looks at; the fit of a sample is near that of all."""
MANY_ROWS = 30_000
"""From here on a start that saves a Newton step of all rows is worth its own compilation."""


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

    x: (n, d), floating; (n, 0) for an intercept alone: a location, a median, a rate. target: (n,), or (n, k) for k
    outputs. loss: made by `pointwise`, with its settings bound by `Partial`; a setting may be a number, one for each
    output, or (n, 1). A vector of settings with one target fits each: `Partial(quantile, level=jnp.array([0.1, 0.9]))`.
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
    rows = checked(name, loss, x, target, weights, where, l2, intercept)
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
            f"{name}: did not converge in {int(np.max(np.asarray(fit.iterations)))} steps: there is no minimum, "
            f"or {fit.coef.dtype} cannot tell the last digits of every parameter; see .converged",
            RuntimeWarning,
            stacklevel=3,
        )


def _solve(loss: Any, intercept: bool, scaled: bool, rows: Rows) -> LinearFit:
    """Stage by stage where the values of one fit can be seen, else in one program."""
    if is_concrete(rows) and not has_columns(rows):
        return by_column(functools.partial(_solve_one, loss, intercept, scaled), rows)
    return _solve_each(loss, intercept, scaled, rows)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _solve_each(loss: Any, intercept: bool, scaled: bool, rows: Rows) -> LinearFit:
    found = by_column(functools.partial(_solve_one, loss, intercept, scaled), rows)
    return dataclasses.replace(found, coef=found.coef.T)


def _solve_one(loss: Any, intercept: bool, scaled: bool, rows: Rows) -> LinearFit:
    """Solve for constants; then give the solution its derivatives, if anything is traced and they may be asked for."""
    near, middle = _near_zero(intercept and traits(loss).residual, lax.stop_gradient(rows))
    if kind_of(loss) is Kind.QUADRATIC:
        fixed = lax.stop_gradient(rows)
        solution = least_squares(fixed.x, fixed.target, middle, _weights_of_squares(loss, near), fixed.l2, intercept)
        ended = _end_of_squares(loss, intercept, scaled, near, solution)
    else:
        solve = functools.partial(_solve_in_basis, loss, scaled)
        found, design = with_design(solve, intercept)(near.x, near.weights, near.l2, near.target, near.settings)
        found = _as_params(found, design)
        if kind_of(loss) is not Kind.LINEAR:
            found = unless(found.good, found, lambda bad: _polish(loss, intercept, scaled, near, design, found, bad))
        solution, ended = _end(intercept, found, design, middle), found.ended
    if is_concrete(rows):
        return _without_derivatives(loss, solution, ended, rows.weights)
    return _with_derivatives(loss, intercept, scaled, rows._replace(target=rows.target - middle), solution, ended)


def _near_zero(shifted: bool, rows: Rows) -> tuple[Rows, Array]:
    """The rows with a number in the middle of the targets taken off these, and that number."""
    middle = _middle(rows.target, rows.weights) if shifted else jnp.zeros((), rows.x.dtype)
    return rows._replace(target=rows.target - middle), middle


@stage(0)
def _weights_of_squares(loss: Any, rows: Rows) -> Array:
    """The weights, times the curvature of the loss, which is the same everywhere."""
    zero = jnp.zeros_like(rows.target)
    return rows.weights * Term(loss, rows.settings).curvature(zero, zero)


@stage(0, 1, 2)
def _end_of_squares(loss: Any, intercept: bool, scaled: bool, rows: Rows, solution: Solution) -> _Ended:
    """The objective, and the scale of the residuals, of a least-squares solution."""
    residual = predictor(solution.params, rows.x, solution.shift, intercept) - rows.target
    scale = jnp.ones((), residual.dtype)
    if scaled:
        scale = scale_of(residual, median_places(jnp.abs(residual), rows.weights))
    losses = Term(loss, rows.settings).value(residual, jnp.zeros_like(residual), scale)
    total = jnp.sum(jnp.where(rows.weights == 0, 0, rows.weights * losses))
    slopes = solution.params[: rows.x.shape[1]]
    return _Ended(scale, jnp.zeros((), scale.dtype), total + 0.5 * rows.l2 * (slopes @ slopes))


@stage()
def _as_params(found: Found, design: Design) -> _Settled:
    """From coordinates in the basis to parameters."""
    params = matmul(design.back, found.phi)
    return _Settled((params, jnp.zeros_like(params)), found.number, found.good, found.ended)


@stage(0, 1, 2)
def _polish(
    loss: Any, intercept: bool, scaled: bool, rows: Rows, design: Design, found: _Settled, bad: Array
) -> _Settled:
    """`polish` from these parameters; `bad` is True."""
    x, target, weights, settings, l2 = rows
    more = ((0, 0), (0, int(intercept)))
    x = jnp.where((weights > 0)[:, None] & bad, x, design.shift[None])
    high, low = two_sum(x, jnp.broadcast_to(-design.shift[None], x.shape))
    columns = jnp.pad(high, more, constant_values=1), jnp.pad(low, more)
    ridge = jnp.pad(jnp.full(x.shape[1], l2), more[1])
    basis = design.back, design.active
    better = polish(Term(loss, settings), scaled, columns, *basis, target, weights, ridge, found.params[0])
    ended = found.ended._replace(scale=better.scale, objective=better.value)
    return _Settled(better.params, found.number + better.number, better.good, ended)


@stage(0)
def _end(intercept: bool, found: _Settled, design: Design, middle: Array) -> Solution:
    """The solution in terms of the columns as they were given."""
    constant = unshifted(found.params, design.shift, middle) if intercept else middle
    return Solution(found.params[0], constant, design.back, design.shift, found.number, found.good, design.rank)


@stage(0)
def _without_derivatives(loss: Any, solution: Solution, ended: _Ended, weights: Array) -> LinearFit:
    coef = solution.params[: len(solution.shift)]
    good = solution.converged & jnp.isfinite(ended.objective) & (jnp.sum(weights) > 0)
    fields = ended.scale, ended.objective, solution.iterations, good, solution.rank, ended.gap
    return LinearFit(coef, solution.constant, *fields, Partial(loss))


def _middle(target: Array, weights: Array) -> Array:
    """A number in the middle of the present targets: all that is computed of what is left is in units of its spread.

    It is one of the targets, so that nothing is lost on those between its half and its double, and of a sample, as any
    will do.
    """
    if is_concrete(target, weights):  # a sort takes long to compile
        present = np.asarray(target)[np.asarray(weights) > 0]
        chosen = present[:: max(len(present) // MIDDLE_ROWS, 1)]
        return jnp.asarray(np.partition(chosen, len(chosen) // 2)[len(chosen) // 2] if len(chosen) else 0 * target[0])
    chosen, _ = sample(weights > 0, min(len(target), MIDDLE_ROWS), target.dtype)
    return jnp.sort(target[chosen])[len(chosen) // 2]


class _Ended(NamedTuple):
    """What a search tells beside the solution: the objective, and the dual of piecewise-linear losses."""

    scale: Array
    gap: Array
    objective: Array
    dual: Dual | None = None


class Found(NamedTuple):
    """Where a search ended: coordinates in the basis, the steps taken, and whether this is a minimum."""

    phi: Array
    number: Array
    good: Array
    ended: _Ended


class _Settled(NamedTuple):
    """The same in parameters, as an unevaluated sum."""

    params: Pair
    number: Array
    good: Array
    ended: _Ended


def _solve_in_basis(
    loss: Any, scaled: bool, design: Design, weights: Array, target: Array, settings: Mapping[str, Array]
) -> Found:
    if kind_of(loss) is Kind.LINEAR:
        return _solve_linear_program(loss, design, weights, target, settings)
    return _search(loss, scaled, design, weights, target, settings)


@stage(0, 1)
def _search(
    loss: Any, scaled: bool, design: Design, weights: Array, target: Array, settings: Mapping[str, Array]
) -> Found:
    """The minimum of a smooth loss."""
    term, minimise = Term(loss, settings), descend_with_scale if scaled else descend
    phi = _start(minimise, term, design, target, weights, kind_of(loss))
    phi, scale, steps, value, good = minimise(term, design, target, weights, phi)
    return Found(phi, steps, good, _Ended(scale, jnp.zeros_like(scale), value))


def _solve_linear_program(
    loss: Any, design: Design, weights: Array, target: Array, settings: Mapping[str, Array]
) -> Found:
    """The minimum of a piecewise-linear loss."""
    eps = float(jnp.finfo(target.dtype).eps)
    wide, bounded = _as_bounded(loss, design, weights, target, settings)
    dual = solve_piecewise_linear(wide, bounded, max(2e-11, 4 * eps))
    return _end_of_program(loss, design, weights, target, settings, dual)


@stage(0)
def _as_bounded(
    loss: Any, design: Design, weights: Array, target: Array, settings: Mapping[str, Array]
) -> tuple[Design, Bounded]:
    """The rows as bounds of dual variables: once, or twice for a loss with two kinks."""
    bounded = _bounds(Term(loss, settings), target, weights)
    copies = len(bounded.target) // len(target)
    return design._replace(rows=jnp.tile(design.rows, (copies, 1))), bounded


@stage(0)
def _end_of_program(
    loss: Any, design: Design, weights: Array, target: Array, settings: Mapping[str, Array], dual: Dual
) -> Found:
    losses = Term(loss, settings).value(matmul(design.rows, dual.phi), target)
    value = jnp.sum(jnp.where(weights == 0, 0, weights * losses)) + 0.5 * dual.phi @ design.penalty @ dual.phi
    good = dual.proved & (dual.gap <= max(1e-10, 64 * float(jnp.finfo(target.dtype).eps)))
    return Found(dual.phi, dual.number, good, _Ended(jnp.ones_like(value), dual.gap, value, dual))


def _start(minimise: Any, term: Term, design: Design, target: Array, weights: Array, kind: Kind) -> Array:
    """Coordinates to start from: those of a sample, if there are many rows."""
    if len(target) <= (START_ROWS if kind is Kind.REDESCENDING else MANY_ROWS) or (
        kind is Kind.CONVEX and term.residual
    ):
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
    return interior_point(held, Bounded(target, -weights, weights), 1e-3, False).phi


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
    """The loss as the largest of y·r over bounds of y: a kink at 0, or one at either end of a dead zone."""
    zero = jnp.zeros_like(target)
    far = zero + 1 / jnp.finfo(target.dtype).eps
    up, down = weights * term.slope(far, zero), -weights * term.slope(-far, zero)
    if not has_dead_zone(term.loss):
        return Bounded(target, -down, up)
    edge = term.width(target)
    return Bounded(
        jnp.concatenate([target + edge, target - edge]), jnp.concatenate([zero, -down]), jnp.concatenate([up, zero])
    )


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

    change = implicitly(equations, jnp.append(solution.params, scale) if scaled else solution.params)
    change_of_params = matmul(solution.back, change[:count])
    params = solution.params + change_of_params
    if scaled:
        scale = scale + change[count]
    at = (params, solution.shift, scale, rows)
    objective = valued(objective_of, known, *at)
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
    bounded = _bounds(term, target, weights)
    copies = len(bounded.target) // len(target)
    residual = jnp.tile(eta, copies) - bounded.target
    y, near = lax.stop_gradient((dual.y, 1e-7 * (bounded.high - bounded.low)))
    y = jnp.where(y >= bounded.high - near, bounded.high, jnp.where(y <= bounded.low + near, bounded.low, y))
    pulls = y + lax.stop_gradient(dual.give) * (residual - lax.stop_gradient(residual))
    return jnp.sum(pulls.reshape(copies, -1), axis=0)
