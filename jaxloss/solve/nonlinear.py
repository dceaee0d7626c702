"""Nonlinear least squares, and any other loss of a model with few parameters, to machine precision."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxloss.contract import as_arrays, as_pytree, check_loss, dtype_of, loss_name, prepare, shown, unbound
from jaxloss.lift import curvature
from jaxloss.losses.residual import mse
from jaxloss.numerics.stages import stage
from jaxloss.solve.certificate import length_of_sum, settled
from jaxloss.solve.damping import minimise, minimise_kinked
from jaxloss.solve.gauss_newton import Problem, Rows, factored, inverse_factor
from jaxloss.solve.term import Kind, kind_of

__all__ = ["NonlinearFit", "levenberg_marquardt"]

Array = jax.Array


class NonlinearFit(NamedTuple):
    """What `levenberg_marquardt` returns."""

    params: Any
    """The parameters, in the structure that was given."""
    objective: Array
    """Σwℓ at them."""
    covariance: Array
    """Of the parameters in the order of `jax.tree.leaves(params)`, each leaf raveled: a square matrix."""
    iterations: Array
    """How many times the Jacobian was taken."""
    converged: Array
    """Whether no step changes the fit any more, as far as the dtype can tell: the objective by no more than its
    rounding, and no parameter by more than ε^0.7 of itself or √ε of its standard error. Where rounding hides more, as
    of small rows beside large ones, or of a target far from 0 in float32, it is False."""

    @property
    def standard_errors(self) -> Any:
        """The square roots of the covariance's diagonal, in the structure of `params`."""
        leaves, structure = jax.tree.flatten(self.params)
        batch = self.covariance.shape[:-2]
        sizes = [math.prod(leaf.shape[len(batch) :]) for leaf in leaves]
        errors = jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))
        parts = jnp.split(errors, np.cumsum(sizes)[:-1].tolist(), axis=-1)
        return structure.unflatten(part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True))


def levenberg_marquardt(
    apply: Callable,
    params: Any,
    x: Any,
    target: Any,
    loss: Any = mse,
    *,
    weights: Any = None,
    where: Any = None,
    max_iterations: int = 2000,
) -> NonlinearFit:
    """The parameters that minimise Σwℓ(apply(params, x), target), from a start, by damped Gauss–Newton steps.

    apply: `apply(params, x) -> pred`, one array of the target's shape; differentiated twice in forward mode. Also what
        `jaxloss.train.functional` makes of a flax model.
    params: the start, any pytree of real numbers; where it leads decides which local minimum is found.
    x: any pytree. target: a real array.
    loss: any loss made by `pointwise` of predictions that are numbers, its settings bound with `Partial`.
    weights, where: as for every loss; masked elements are absent, NaN in their x and target too.
    max_iterations: how many Jacobians at most.

    It computes in the float type of params and predictions, at least float32, and asks for matrix products of full
    precision, the model's too. Near the minimum, where rounding hides the decrease, it goes on with undamped steps for
    as long as they shrink. It needs memory for the Jacobian (elements × parameters), and time for its QR.

    **Covariance.** For mse σ²(JᵀWJ)⁻¹, with σ² = Σwr²/(n − p), n elements that count and p the rank of J; for any other
    loss the sandwich n/(n − p)·A⁻¹BA⁻¹ with A = Jᵀ diag(wℓ″) J and B = Jᵀ diag(w²ℓ′²) J (Huber 1967). It is inf for
    parameters that the data leave open (one the model does not use, say), and everywhere if n ≤ p or the loss has no
    curvature, as mae. It is a constant for differentiation.

    **Which losses.** For mse steps are Gauss–Newton's, for other losses those of the quadratic model with their
    curvature; where it is negative (the outliers of cauchy, tukey, …) a parabola above the loss takes its place. The
    kink of mae and quantile is rounded off over √ε of the usual residual, so that their minimum is found to about half
    the digits. Losses with kinks elsewhere (epsilon_insensitive, mape, smape) do not get to a minimum, and say so: take
    squared_epsilon_insensitive, or mae with weights 1/|target|.

    Works under `jit` and `vmap`; params and objective have derivatives in x, target, weights and settings, by the
    implicit function theorem. A result that has not converged says so in its field, and a call outside `jit` warns.
    Raises `ValueError` for NaN or inf in the inputs or at the start, `ShapeError` where pred and target differ.

    The step is Marquardt's (SIAM J. 1963) by QR (Moré 1978), with Nielsen's damping (1999) and geodesic acceleration
    (Transtrum & Sethna, arXiv:1201.5885).

    >>> from jaxloss.solve import levenberg_marquardt
    >>> x = jnp.linspace(0.0, 4.0, 9)
    >>> decay = lambda params, x: params["height"] * jnp.exp(-params["rate"] * x)
    >>> fit = levenberg_marquardt(decay, {"height": 1.0, "rate": 1.0}, x, 3 * jnp.exp(-0.5 * x))
    >>> round(float(fit.params["height"]), 4), round(float(fit.params["rate"]), 4), bool(fit.converged)
    (3.0, 0.5, True)
    """
    name = f"levenberg_marquardt({loss_name(loss)})"
    check_loss(loss)
    curvature(loss)  # raises for what has none
    if not callable(apply):
        raise TypeError(f"{name}: apply must be a function of (params, x), got {shown(apply)}")
    dtype = _computing_dtype(name, apply, params, x)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    pred = jax.eval_shape(apply, params, x)
    target, weights, where = as_arrays(target, weights, where)
    target, weights, _ = prepare(name, pred.update(dtype=dtype), target, weights, where)
    _check_values(name, params, x, target, weights, where)
    with jax.default_matmul_precision("highest"):
        fit = _fit(as_pytree(apply), as_pytree(loss), params, x, target, weights, where, max_iterations)
    _complain(name, fit, max_iterations)
    return fit


@stage()
def _fit(
    apply: Any, loss: Any, params: Any, x: Any, target: Any, weights: Any, where: Any, max_iterations: Any
) -> NonlinearFit:
    leaves, structure = jax.tree.flatten(params)
    start = jnp.concatenate([leaf.ravel() for leaf in leaves])
    cuts = np.cumsum([leaf.size for leaf in leaves])[:-1].tolist()

    def unflatten(flat: Array) -> Any:
        parts = jnp.split(flat, cuts)
        return structure.unflatten(part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True))

    def problem_of(apply: Any, loss: Any, x: Any, target: Any, weights: Any) -> Problem:
        def predict(flat: Array) -> Array:
            return apply(unflatten(flat), x).astype(flat.dtype)

        return Problem.of(predict, loss, target, weights, where)

    data = (apply, loss, x, target, weights)
    problem, still = problem_of(*data), problem_of(*lax.stop_gradient(data))
    start = lax.stop_gradient(start)
    if problem.kinked():
        minimum, steepest = minimise_kinked(still, start, max_iterations)
        smooth = dataclasses.replace(problem, steepest=steepest)
    else:
        minimum, smooth = minimise(still, start, max_iterations), problem
    # The search is not differentiated: its end is the root of the gradient.
    flat = lax.custom_root(smooth.gradient, minimum.flat, lambda _, root: root, _solve_tangent)
    objective = smooth.values(smooth.predict(flat)).sum()
    if smooth is not problem:
        objective += lax.stop_gradient(problem.values(problem.predict(flat)).sum() - objective)
    covariance = _covariance(still, minimum.flat)
    converged = minimum.converged & _certified(dataclasses.replace(still, steepest=smooth.steepest), minimum.flat)
    return NonlinearFit(unflatten(flat), objective, covariance, minimum.iterations, converged)


def _certified(problem: Problem, flat: Array) -> Array:
    """Whether the next Gauss–Newton step changes nothing that the type can tell: `settled` in coordinates of that step.

    The rounding is that of targets and predictions, of these also what rounding each parameter does. What it does to
    the parameters grows with the condition of the problem, of which nothing is known beforehand: 11 digits of a float64
    and 5 of a float32, or a share √ε of its standard error, are enough of a parameter. A direction that makes no
    difference but for rounding is left out; one that makes a little, too little to be followed, is not.
    """
    pred, jacobian, eps = problem.predict(flat), problem.jacobian(flat), jnp.finfo(flat.dtype).eps
    values, slopes, curvatures = problem.rows(pred)
    factor = factored(jacobian, Rows(values, slopes, curvatures)).factor
    inverse, _, _, null = inverse_factor(factor, len(values))
    rows, weighted = jacobian @ inverse, jnp.sqrt(curvatures)[:, None] * jacobian
    change, rounded = weighted @ null, jnp.abs(weighted) @ jnp.abs(null)
    idle = jnp.all(jnp.linalg.norm(change, axis=0) <= 4 * eps * jnp.linalg.norm(rounded, axis=0))
    size = (jnp.abs(pred) + jnp.abs(problem.target)).ravel() + jnp.abs(jacobian) @ jnp.abs(flat)
    rounding, scatter = length_of_sum(rows, eps * curvatures * size), (rows * (slopes * slopes)[:, None]).T @ rows
    value = values.sum() + eps * jnp.sum(curvatures * size * size)  # of a perfect fit only rounding is left
    bars = float(eps) ** -0.28, float(eps) ** -0.5
    unit = jnp.eye(flat.size, dtype=flat.dtype)
    good, _ = settled(inverse, unit, slopes @ rows, rounding, scatter, flat, value, bars)
    return good & idle


def _solve_tangent(linear: Callable, right: Array) -> Array:
    """Solve with the Hessian, scaled to a unit diagonal; the least solution where it is singular."""
    hessian = jax.jacfwd(linear)(jnp.zeros_like(right))
    unit = jnp.sqrt(jnp.abs(jnp.diagonal(hessian)))
    unit = jnp.where(unit > 0, unit, 1)
    return jnp.linalg.pinv(hessian / jnp.outer(unit, unit)) @ (right / unit) / unit


def _covariance(problem: Problem, flat: Array) -> Array:
    pred, jacobian = problem.predict(flat), problem.jacobian(flat)
    values, slopes, curvatures = problem.values(pred), problem.slopes(pred), problem.curvatures(pred)
    model = factored(jacobian, Rows(values, slopes, jnp.maximum(curvatures, 0)))
    inverse, rank, left_open, _ = inverse_factor(model.factor, len(values))
    count = jnp.sum(problem.weights > 0)
    freedom = count - rank
    if kind_of(unbound(problem.loss)[0]) is Kind.QUADRATIC:
        covariance = 2 * values.sum() / freedom * inverse @ inverse.T
    else:
        whitened = jacobian @ inverse
        bread = jnp.eye(flat.size, dtype=flat.dtype) + whitened.T @ (jnp.minimum(curvatures, 0)[:, None] * whitened)
        half = inverse @ jnp.linalg.solve(bread, (slopes[:, None] * whitened).T)
        covariance = count / freedom * half @ half.T
    return jnp.where((freedom <= 0) | left_open[None] | left_open[:, None], jnp.inf, covariance)


def _computing_dtype(name: str, apply: Callable, params: Any, x: Any) -> Any:
    """The float type of parameters and predictions, at least float32."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{name}: params holds no numbers to fit")
    for path, leaf in leaves:
        what = "params" + jax.tree_util.keystr(path)
        if jnp.issubdtype(dtype_of(name, what, leaf), jnp.complexfloating):
            raise TypeError(f"{name}: {what} is complex: pass its .real and .imag apart")
    dtype = jnp.result_type(jnp.float32, *(leaf for _, leaf in leaves))
    pred = jax.eval_shape(apply, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params), x)
    if not isinstance(pred, jax.ShapeDtypeStruct) or not jnp.issubdtype(pred.dtype, jnp.floating):
        raise TypeError(f"{name}: apply must return one real floating-point array, got {shown(pred)}")
    return jnp.result_type(dtype, pred.dtype)


def _check_values(name: str, params: Any, x: Any, target: Any, weights: Any, where: Any) -> None:
    """Raise for NaN and inf in elements that count, and for negative weights; traced values are not read."""
    shape = jnp.shape(target)
    if isinstance(where, Tracer):
        return
    here = np.broadcast_to(np.asarray(True if where is None else where), shape)
    rows = here.any(axis=tuple(range(1, len(shape)))) if shape else here
    for path, leaf in jax.tree_util.tree_leaves_with_path({"params": params, "x": x}):
        masked = path[0].key == "x" and shape and np.shape(leaf)[:1] == shape[:1]
        what = path[0].key + jax.tree_util.keystr(path[1:])
        _check_finite(name, what, leaf, rows if masked else None)
    _check_finite(name, "target", target, here)
    if weights is not None:
        if not isinstance(weights, Tracer):
            weights = np.broadcast_to(np.asarray(weights), shape)
            if (weights[here] < 0).any():
                raise ValueError(f"{name}: weights must be at least 0, got {weights[here].min():g}")
        _check_finite(name, "weights", weights, here)


def _check_finite(name: str, what: str, value: Any, here: Any) -> None:
    if isinstance(value, Tracer) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return
    wrong = ~np.isfinite(np.asarray(value, np.float64))
    if here is not None:
        wrong &= here.reshape(here.shape + (1,) * (wrong.ndim - here.ndim))
    if wrong.any():
        index = tuple(np.argwhere(wrong)[0].tolist())
        place = f" at index {list(index)}" if index else ""
        repair = "; start from finite numbers" if what.startswith("params") else ": mask it with where="
        raise ValueError(f"{name}: {what} is {np.asarray(value)[index]}{place}{repair}")


def _complain(name: str, fit: NonlinearFit, max_iterations: Any) -> None:
    """Of a result that can be read: raise if the start was no start, warn if it has not converged."""
    if isinstance(fit.converged, Tracer) or bool(fit.converged):
        return
    if not np.isfinite(fit.objective):
        raise ValueError(f"{name}: the loss is {float(fit.objective)} at the starting params: start where it is finite")
    cause = (
        f"after {max_iterations} iterations: raise max_iterations, or start elsewhere"
        if int(fit.iterations) >= max_iterations
        else f"no step lowers the objective {float(fit.objective):g} any more: start elsewhere, or compute in float64"
    )
    warnings.warn(f"{name}: not converged, {cause}", RuntimeWarning, stacklevel=3)
