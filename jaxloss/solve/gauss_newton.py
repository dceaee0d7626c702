"""A loss of a model's predictions near given parameters, as a linear least-squares problem, kept in factored form.

With J the Jacobian of the predictions, ψ the slope of the loss and κ ≥ 0 its curvature, a step δ changes Σwℓ by about
(Jᵀwψ)ᵀδ + ½ δᵀ(Jᵀ diag(wκ) J)δ: the generalised Gauss–Newton model (Schraudolph, Neural Computation 2002). The matrix
is never formed, only the triangular factor of √(wκ) J: forming it would square the condition number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from jaxloss.contract import unbound
from jaxloss.lift import curvature, irls_weight, slope, traits
from jaxloss.reduce import hide
from jaxloss.solve.term import at_probes

__all__ = ["Factored", "Inverse", "Problem", "Rows", "factored", "inverse_factor"]

Array = jax.Array

STEEP = 8.0
"""How large slope²/(2·curvature·loss), which is 1 for squared error, may be for a row to be solved by QR."""


class Rows(NamedTuple):
    """The loss at a prediction, per element and weighted: value, slope, and the curvature of its quadratic model."""

    values: Array
    slopes: Array
    curvatures: Array


@dataclass(frozen=True)
class Problem:
    """Σwℓ as a function of one vector of parameters, and what is known of it per element of the target.

    Weights and mask have the target's shape; what is masked has weight 0 and a target and a prediction of 1, whatever
    the parameters.
    """

    predict: Callable[[Array], Array]
    loss: Any
    target: Array
    weights: Array
    where: Array
    steepest: Array | None = None
    """Slope/residual at most: a kink at 0, where it is inf, is rounded off as in Huber's loss."""

    @classmethod
    def of(cls, predict: Callable[[Array], Array], loss: Any, target: Any, weights: Any, where: Any) -> Problem:
        """The problem, from arguments as losses take them."""
        target = jnp.asarray(target)
        where = jnp.broadcast_to(True if where is None else where, target.shape)
        weights = jnp.broadcast_to(jnp.ones((), target.dtype) if weights is None else weights, target.shape)

        def present(flat: Array) -> Array:
            return hide(predict(flat), where, 1.0)

        return cls(present, loss, hide(target, where, 1.0), hide(weights, where, 0.0), where)

    def kinked(self) -> bool:
        """Whether the loss has a kink at a perfect fit."""
        function, _ = unbound(self.loss)
        at_zero = np.zeros(1, np.float32)
        return traits(function).residual and bool(np.isinf(at_probes(irls_weight(function), function, at_zero))[0])

    def steepness(self, flat: Array, share: Array) -> Array:
        """The `steepest` that rounds a kink off over this share of the mean size of the residuals."""
        tiny, epsilon = jnp.finfo(flat.dtype).tiny, jnp.finfo(flat.dtype).eps
        pred = self.predict(flat)
        sizes = jnp.abs(pred - self.target) + epsilon * jnp.abs(self.target) + tiny
        slopes = jnp.abs(self.slopes(pred)).sum()
        slopes = jnp.where(slopes > 0, slopes, self.weights.sum())
        return slopes / (share * jnp.maximum(jnp.sum(self.weights * sizes), tiny))

    def values(self, pred: Array) -> Array:
        """wℓ of every element."""
        values = self.loss(pred, self.target, weights=self.weights, where=self.where, reduction="none").ravel()
        if self.steepest is None:
            return values
        residual, weights = (pred - self.target).ravel(), self.weights.ravel()
        inner = self.steepest * residual**2 / 2
        less = slope(self.loss)(pred, self.target).ravel() ** 2 / (2 * self.steepest)
        return jnp.where(self._inside(pred), inner * weights, values - less * weights)

    def slopes(self, pred: Array) -> Array:
        """The derivative of wℓ in the prediction."""
        slopes = self._weighted(slope, pred)
        if self.steepest is None:
            return slopes
        inner = self.steepest * (pred - self.target) * self.weights
        return jnp.where(self._inside(pred), inner.ravel(), slopes)

    def curvatures(self, pred: Array) -> Array:
        """The second derivative of wℓ in the prediction."""
        curvatures = self._weighted(curvature, pred)
        if self.steepest is None:
            return curvatures
        return jnp.where(self._inside(pred), self.steepest * self.weights.ravel(), curvatures)

    def rows(self, pred: Array) -> Rows:
        """Values, slopes and curvatures ≥ 0 for the quadratic model.

        A loss of the residual that is not convex has negative curvature for outliers, and one may have none at all:
        there it is slope/residual, with which a parabola touches the loss and lies above it.
        """
        values, slopes, curvatures = self.values(pred), self.slopes(pred), self.curvatures(pred)
        if traits(self.loss).residual:
            smooth = jnp.any(curvatures > 0) if traits(self.loss).convex else False
            majorising = self._weighted(irls_weight, pred)
            if self.steepest is not None:
                majorising = jnp.where(self._inside(pred), self.steepest * self.weights.ravel(), majorising)
            curvatures = jnp.where(smooth, curvatures, majorising)
        return Rows(values, slopes, jnp.maximum(curvatures, 0))

    def _inside(self, pred: Array) -> Array:
        """Whether the residual is where the kink is rounded off."""
        steepness = irls_weight(self.loss)(pred, self.target).ravel()
        return steepness > (jnp.inf if self.steepest is None else self.steepest)

    def jacobian(self, flat: Array) -> Array:
        """∂pred/∂parameters, of shape (elements, parameters)."""
        return jax.jacfwd(self.predict)(flat).reshape(-1, flat.size)

    def gradient(self, flat: Array) -> Array:
        """∂Σwℓ/∂parameters, in forward mode alone."""
        return self.slopes(self.predict(flat)) @ self.jacobian(flat)

    def noise(self, pred: Array, rows: Rows) -> Array:
        """What rounding the predictions and the losses can do to the objective."""
        spread = jnp.linalg.norm(rows.slopes * pred.ravel())
        return jnp.finfo(pred.dtype).eps * (jnp.abs(rows.values).sum() + spread)

    def _weighted(self, derivative: Callable, pred: Array) -> Array:
        return (hide(derivative(self.loss)(pred, self.target), self.where, 0.0) * self.weights).ravel()


class Factored(NamedTuple):
    """The quadratic model ½‖factor·δ + offset‖² + rest·δ of Σwℓ, up to a constant."""

    factor: Array
    offset: Array
    rest: Array

    @property
    def norms(self) -> Array:
        """The lengths of the columns: the natural unit of each parameter is 1 / its norm."""
        return jnp.linalg.norm(self.factor, axis=0)

    def damped(self, penalty: Array) -> tuple[Array, Array]:
        """The step that minimises the model + ½‖penalty·δ‖², and the triangular factor of that problem.

        By QR of the factor on top of the penalties: the step keeps the digits that normal equations would lose.
        """
        count = penalty.size
        system = jnp.column_stack([self.factor, -self.offset])
        system = jnp.vstack([system, jnp.column_stack([jnp.diag(penalty), jnp.zeros(count)])]).astype(penalty.dtype)
        reduced = jnp.linalg.qr(system, mode="r")
        triangle, right = reduced[:count, :count], reduced[:count, count]
        return solve_triangular(triangle, right - solve_triangular(triangle, self.rest, trans=1)), triangle

    def decrease(self, step: Array) -> Array:
        """By how much the model says that Σwℓ falls."""
        change = self.factor @ step
        return -(self.offset @ change + self.rest @ step + 0.5 * change @ change)


def factored(jacobian: Array, rows: Rows) -> Factored:
    """The quadratic model at the parameters where the Jacobian and the rows are taken.

    A row's slope goes into the right-hand side as slope/√curvature, as in least squares; for a row that is steep for
    its curvature (an outlier under Huber's loss has none) it stays in the gradient.
    """
    _, slopes, curvatures = rows
    flat_enough = slopes**2 <= 2 * STEEP * curvatures * jnp.abs(rows.values)
    inside = flat_enough & (curvatures > 0)
    root = jnp.sqrt(curvatures)
    right = jnp.where(inside, slopes / jnp.where(inside, root, 1), 0)
    reduced = jnp.linalg.qr(jnp.column_stack([root[:, None] * jacobian, right]), mode="r")
    count = jacobian.shape[1]
    reduced = jnp.pad(reduced, ((0, max(0, count - reduced.shape[0])), (0, 0)))[:count]
    return Factored(reduced[:, :count], reduced[:, count], jnp.where(inside, 0, slopes) @ jacobian)


class Inverse(NamedTuple):
    """The pseudo-inverse of a square factor, its rank, and which parameters it leaves open.

    null: directions that make no difference, as columns; 0 where there are no more.
    """

    matrix: Array
    rank: Array
    left_open: Array
    null: Array


def inverse_factor(factor: Array, elements: int) -> Inverse:
    """By singular values, once the columns have been scaled."""
    norms = jnp.linalg.norm(factor, axis=0)
    norms = jnp.where(norms > 0, norms, 1)
    left, sizes, right = jnp.linalg.svd(factor / norms[None], full_matrices=False)
    epsilon = jnp.finfo(factor.dtype).eps
    found = sizes > epsilon * max(elements, sizes.size) * sizes[0]
    inverse = right.T @ (jnp.where(found, 1 / jnp.where(found, sizes, 1), 0)[:, None] * left.T) / norms[:, None]
    null = jnp.where(found[None], 0, right.T)
    left_open = jnp.sum(null**2, axis=1) > jnp.sqrt(epsilon)
    return Inverse(inverse, found.sum(), left_open, null / norms[:, None])
