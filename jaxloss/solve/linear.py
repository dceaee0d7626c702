"""Linear models under any loss, minimised exactly."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxloss.contract import loss_name, shown, unbound
from jaxloss.lift import traits
from jaxloss.losses.residual import mse
from jaxloss.numerics.order import median_places
from jaxloss.numerics.pairs import Pair, two_sum
from jaxloss.numerics.stages import FEW_ROWS, is_concrete, stage, unless
from jaxloss.solve.certificate import polish
from jaxloss.solve.derivatives import predictor, with_derivatives
from jaxloss.solve.design import Design, matmul, with_design
from jaxloss.solve.found import Ended, Found
from jaxloss.solve.inputs import Rows, by_column, checked, has_columns, names_of
from jaxloss.solve.least_squares import Solution, least_squares, unshifted
from jaxloss.solve.linear_fit import LinearFit
from jaxloss.solve.median import scale_of
from jaxloss.solve.methods import METHODS, bounds_of, largest_gap
from jaxloss.solve.preprocessing import sample
from jaxloss.solve.term import Kind, Term, kind_of
from jaxloss.solve.vertex import descend_along_edges

__all__ = ["solve_linear"]

Array = jax.Array
MIDDLE_ROWS = 1000
"""As many rows as the middle of the target is taken from."""


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

    x: (n, d), an array or a table such as a pandas DataFrame, whose columns the fit then names; (n, 0) for an intercept
    alone: a location, a median, a rate. target: (n,), or (n, k) for k outputs. loss: made by `pointwise`, with its
    settings bound by `Partial`; a setting may be a number, one for each output, or (n, 1). A vector of settings with
    one target fits each: `Partial(quantile, level=jnp.array([0.1, 0.9]))`.
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
    if not known.residual and known.pred.above is None:
        raise TypeError(f"{name}: needs a loss of pred − target, or one of positive predictions, which get a log link")
    if scale_estimator not in (None, "mad"):
        raise ValueError(f"{name}: unknown scale_estimator {shown(scale_estimator)}; None or 'mad'")
    if scale_estimator and (not known.residual or kind_of(function) is Kind.LINEAR):
        raise ValueError(f"{name}: scale_estimator is for smooth losses of pred − target; leave it out")
    found = _solve(function, bool(intercept), scale_estimator is not None, rows)
    fit = dataclasses.replace(found, loss=Partial(function, **rows.settings), names=names_of(x))
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
        solve = functools.partial(METHODS[kind_of(loss)], loss, scaled)
        found, design = with_design(solve, intercept)(near.x, near.weights, near.l2, near.target, near.settings)
        found = _as_params(found, design)
        improve = _follow_edges if kind_of(loss) is Kind.LINEAR else _polish
        found = unless(found.good, found, lambda bad: improve(loss, intercept, scaled, near, design, found, bad))
        solution, ended = _end(intercept, found, design, middle), found.ended
    if is_concrete(rows):
        return _without_derivatives(loss, solution, ended, rows.weights)
    return with_derivatives(loss, intercept, scaled, rows._replace(target=rows.target - middle), solution, ended)


def _near_zero(shifted: bool, rows: Rows) -> tuple[Rows, Array]:
    """The rows with a number in the middle of the targets taken off these, and that number."""
    if not shifted:
        return rows, jnp.zeros((), rows.x.dtype)
    middle = _middle(rows.target, rows.weights)
    xp = np if is_concrete(rows) and len(rows.target) <= FEW_ROWS else jnp  # on the host nothing is compiled for it
    left = xp.asarray(rows.target) - xp.asarray(middle)
    return rows._replace(target=jax.device_put(left)), middle


@stage(0, light=True)
def _weights_of_squares(loss: Any, rows: Rows) -> Array:
    """The weights, times the curvature of the loss, which is the same everywhere."""
    zero = jnp.zeros_like(rows.target)
    return rows.weights * Term(loss, rows.settings).curvature(zero, zero)


@stage(0, 1, 2, light=True)
def _end_of_squares(loss: Any, intercept: bool, scaled: bool, rows: Rows, solution: Solution) -> Ended:
    """The objective, and the scale of the residuals, of a least-squares solution."""
    residual = predictor(solution.params, rows.x, solution.shift, intercept) - rows.target
    scale = jnp.ones((), residual.dtype)
    if scaled:
        scale = scale_of(residual, median_places(jnp.abs(residual), rows.weights))
    losses = Term(loss, rows.settings).value(residual, jnp.zeros_like(residual), scale)
    total = jnp.sum(jnp.where(rows.weights == 0, 0, rows.weights * losses))
    slopes = solution.params[: rows.x.shape[1]]
    return Ended(scale, jnp.zeros((), scale.dtype), total + 0.5 * rows.l2 * (slopes @ slopes))


@stage(light=True)
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
    columns, basis = _exact_columns(intercept, rows, design, bad), (design.back, design.active)
    ridge = jnp.pad(jnp.full(x.shape[1], l2), (0, int(intercept)))
    better = polish(Term(loss, settings), scaled, columns, *basis, target, weights, ridge, found.params[0])
    ended = found.ended._replace(scale=better.scale, objective=better.value)
    return _Settled(better.params, found.number + better.number, better.good, ended)


@stage(0, 1, 2)
def _follow_edges(
    loss: Any, intercept: bool, scaled: bool, rows: Rows, design: Design, found: _Settled, bad: Array
) -> _Settled:
    """`descend_along_edges` from these parameters; `bad` is True. A ridge, which bends the edges, is not for it."""
    bounded = bounds_of(Term(loss, rows.settings), rows.target, rows.weights)
    copies, ended, dual = len(bounded.target) // len(rows.target), found.ended, found.ended.dual
    assert dual is not None
    columns = jax.tree.map(lambda part: jnp.tile(part, (copies, 1)), _exact_columns(intercept, rows, design, bad))
    vertex = descend_along_edges(bounded, columns, design.back, design.active, found.params[0], dual.give)
    gap = jnp.where(vertex.good, 0, ended.gap)
    good = vertex.good | (vertex.degenerate & (gap <= largest_gap(gap.dtype)))
    dual = dual._replace(y=vertex.y, give=vertex.met)
    better = found._replace(params=vertex.params, good=good, ended=Ended(ended.scale, gap, vertex.value, dual))
    better = jax.tree.map(lambda new, old: jnp.where(good & (rows.l2 == 0), new, old), better, found)
    return better._replace(number=found.number + vertex.number)


def _exact_columns(intercept: bool, rows: Rows, design: Design, bad: Array) -> Pair:
    """The shifted columns without a rounding, and the intercept's; those of absent rows are 0."""
    x = jnp.where((rows.weights > 0)[:, None] & bad, rows.x, design.shift[None])
    high, low = two_sum(x, jnp.broadcast_to(-design.shift[None], x.shape))
    more = ((0, 0), (0, int(intercept)))
    return jnp.pad(high, more, constant_values=1), jnp.pad(low, more)


@stage(0, light=True)
def _end(intercept: bool, found: _Settled, design: Design, middle: Array) -> Solution:
    """The solution in terms of the columns as they were given."""
    constant = unshifted(found.params, design.shift, middle) if intercept else middle
    return Solution(found.params[0], constant, design.back, design.shift, found.number, found.good, design.rank)


@stage(0, light=True)
def _without_derivatives(loss: Any, solution: Solution, ended: Ended, weights: Array) -> LinearFit:
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
        chosen = present[:: max(len(present) // MIDDLE_ROWS, 1)] if len(present) else np.zeros(1, target.dtype)
        return jax.device_put(np.partition(chosen, len(chosen) // 2)[len(chosen) // 2])
    chosen, _ = sample(weights > 0, min(len(target), MIDDLE_ROWS), target.dtype)
    return jnp.sort(target[chosen])[len(chosen) // 2]


class _Settled(NamedTuple):
    """The same in parameters, as an unevaluated sum."""

    params: Pair
    number: Array
    good: Array
    ended: Ended
