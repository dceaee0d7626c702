"""The result of a linear fit: predictions, standard errors, a summary."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from jaxloss.contract import ShapeError, loss_name
from jaxloss.solve.design import centred, factors_of, matmul
from jaxloss.solve.inputs import Rows, by_column, checked, input_of, names_of
from jaxloss.solve.term import Kind, Term, kind_of, mean_of

__all__ = ["LinearFit"]

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearFit:
    """A linear model: the prediction is x @ coef + intercept, or its exp for a loss of positive predictions.

    coef: (d,), or (d, k) for k targets or settings. intercept: a number, or (k,); 0 if none was fitted. The fields
    below are numbers, or (k,).
    scale: the unit of the loss's settings: of the residuals with `scale_estimator`, else 1.
    objective: Σwℓ + ½·l2·‖coef‖² at the fit. iterations: steps taken.
    converged: whether this is the minimum, or for a loss that is not convex a minimum, to the digits the type can tell:
    no parameter off by more than a few roundings of itself, or a sliver of its standard error. Where the type cannot
    tell, as for a group of rows whose weight is lost beside that of others, it is False.
    rank: of the columns and the intercept's; below their number, the coefficients are the least of many (in norm).
    gap: how far the objective can be above the least possible, relative; for piecewise-linear losses, else 0.
    loss: the loss with its settings. names: those of the columns, if x was a table.
    """

    coef: Array
    intercept: Array
    scale: Array
    objective: Array
    iterations: Array
    converged: Array
    rank: Array
    gap: Array
    loss: Partial
    names: tuple[str, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    def predict(self, x: Any) -> Array:
        """The prediction for rows x, (m, d): (m,), or (m, k). For a loss of positive predictions it is the mean.

        >>> from jaxloss.solve import solve_linear
        >>> fit = solve_linear(jnp.array([[0.0], [1.0], [2.0]]), jnp.array([1.0, 3.0, 5.0]))
        >>> round(float(fit.predict(jnp.array([[10.0]]))[0]), 3)
        21.0
        """
        names = names_of(x)
        if names != self.names and names and self.names:
            raise ValueError(
                f"predict: x has columns {', '.join(names)}; the model was fitted to {', '.join(self.names)}: "
                "pass x[list(fit.names)]"
            )
        x = input_of("predict", x)
        if x.shape[1] != self.coef.shape[0]:
            raise ShapeError(
                f"predict: x has {x.shape[1]} columns and the model {self.coef.shape[0]}: x must be (rows, columns)"
            )
        eta = matmul(x, self.coef.astype(x.dtype))
        return mean_of(self.loss.func, eta + self.intercept.astype(x.dtype)[None])

    def covariance(
        self, x: Any, target: Any, *, weights: Any = None, where: Any = None, intercept: bool = True
    ) -> Array:
        """The estimated covariance of (coef, intercept), the intercept last: (p, p), or (k, p, p); from the fit's data.

        For a loss of the residual, with ψ its slope and n rows it is τ²(XᵀWX)⁻¹ with
        τ² = n/(n − rank)·(Σw²ψ²/Σw) / (Σwψ′/Σw)² (Huber, Robust Statistics, 1981, eq. 6.5, with weights). For a
        piecewise-linear loss the mean of ψ′ is the sum over its kinks of the jump of ψ times the density of the
        residuals there, by a kernel of bandwidth 2.34·σ·n^(−1/3). For mse τ² is the residual variance Σwr²/(n − rank).
        With a log link it is φ(XᵀWX)⁻¹ with the expected curvatures in W and φ Pearson's χ²/(n − rank): Poisson fits
        allow for a variance that is any multiple of the mean.

        weights: for mse and with a log link they are precisions, to which the noise's variance is inverse, as in
        statsmodels' WLS and GLM(var_weights); a factor common to all changes nothing. For other losses they may be
        that, or only say how much a row is to count, provided that they do not depend on x. They are never counts of
        repeated rows.
        Assumes independent rows, noise that does not depend on x but through the link, and many rows: near a kink in
        the far tail (a level of 0.97) 400 are few. Of a fit without ridge, and with the scale, if estimated, taken as
        given: that is right for noise that is symmetric, else but for the intercept.
        Inf or NaN where the rows tell nothing: as many coefficients as rows, or no residual at a kink or past a tube.

        >>> from jaxloss.solve import solve_linear
        >>> x, y = jnp.array([[0.0], [1.0], [2.0], [3.0]]), jnp.array([1.0, 2.0, 2.0, 3.0])
        >>> solve_linear(x, y).covariance(x, y).diagonal().round(4).tolist()
        [0.019999..., 0.0700000...]
        """
        rows = checked("covariance", self.loss, x, target, weights, where, 0.0, intercept)
        return _covariance_of_columns(self.loss.func, rows, self.coef, self.intercept, self.scale, bool(intercept))

    def standard_errors(self, x: Any, target: Any, **more: Any) -> Array:
        """The roots of the diagonal of `covariance`, with its arguments: (p,), or (k, p), the intercept last."""
        return jnp.sqrt(jnp.diagonal(self.covariance(x, target, **more), axis1=-2, axis2=-1))

    def summary(self, x: Any, target: Any, **more: Any) -> str:
        """A table of estimates, standard errors and their ratio, to print; arguments as for `covariance`.

        >>> from jaxloss.solve import solve_linear
        >>> x, y = jnp.array([[0.0], [1.0], [2.0], [3.0]]), jnp.array([1.0, 2.0, 2.0, 3.0])
        >>> print(solve_linear(x, y).summary(x, y))
        mse, 4 rows, rank 2: objective 0.2, converged in ... steps
                        estimate   std. error        ratio
        coef[0]              0.6       0.1414        4.243
        intercept            1.1       0.2646        4.158
        """
        errors = np.atleast_2d(np.asarray(self.standard_errors(x, target, **more)))
        estimates = np.asarray(self.coef).reshape(len(self.coef), -1).T
        wide = max(12, *(len(name) + 2 for name in self.names or [""]))
        parts = []
        for number, (coef, error) in enumerate(zip(estimates, errors, strict=True)):
            own = [float(np.ravel(field)[number]) for field in (self.intercept, self.objective, self.scale)]
            went = "converged" if np.ravel(self.converged)[number] else "NOT converged"
            named = f"{loss_name(self.loss)}" + (f", column {number}" if len(estimates) > 1 else "")
            scaled = f", scale {own[2]:.6g}" if own[2] != 1 else ""
            rank, steps = (int(np.ravel(field)[number]) for field in (self.rank, self.iterations))
            lines = [
                f"{named}, {len(x)} rows, rank {rank}: objective {own[1]:.6g}{scaled}, {went} in {steps} steps",
                f"{'':{wide}}{'estimate':>12} {'std. error':>12} {'ratio':>12}",
            ]
            labels = [*(self.names or (f"coef[{place}]" for place in range(len(coef))))]
            labels += ["intercept"] * (len(error) > len(coef))
            for label, value, spread in zip(labels, [*coef, own[0]], error, strict=False):
                lines.append(f"{label:{wide}}{value:12.4g} {spread:12.4g} {value / spread if spread else np.inf:12.4g}")
            parts.append("\n".join(lines))
        return "\n\n".join(parts)

    def __str__(self) -> str:
        if isinstance(self.coef, Tracer):
            return repr(self)
        fields = ("coef", "intercept", "scale", "objective", "iterations", "converged", "rank", "gap")
        lines = [f"{name:11} {np.asarray(getattr(self, name))}" for name in fields]
        return "\n".join([f"LinearFit by {loss_name(self.loss)}", *lines])


@functools.partial(jax.jit, static_argnums=(0, 5))
def _covariance_of_columns(
    loss: Any, rows: Rows, coef: Array, intercept: Array, scale: Array, with_intercept: bool
) -> Array:
    def one(rows: Rows, coef: Array, intercept: Array, scale: Array) -> Array:
        return _covariance(loss, rows, coef, intercept, scale, with_intercept)

    return by_column(one, rows, (coef, intercept, scale), (1, 0, 0))


def _covariance(loss: Any, rows: Rows, coef: Array, intercept: Array, scale: Array, with_intercept: bool) -> Array:
    x, target, weights, settings, _ = rows
    term, kind, present = Term(loss, settings), kind_of(loss), weights > 0
    eta = matmul(x, coef) + intercept
    slopes = jnp.where(present, term.slope(eta, target, scale), 0)
    expected = jnp.ones_like(eta) if term.residual else jnp.where(present, term.majorant(eta, target), 1)
    root, zero = jnp.sqrt(weights * expected), jnp.zeros((), x.dtype)
    columns, _ = centred(x, root, zero, with_intercept)
    factors = factors_of(columns, root, zero, x.shape[1])
    rank = jnp.sum(factors.active)
    if kind is Kind.LINEAR:
        others, bend = _mean_jump(term, eta - target, target, weights, rank, len(factors.active))
        slopes = jnp.where(others > 0, slopes, 0)
    elif term.residual:
        bends = jnp.where(present, term.curvature(eta, target, scale), 0)
        bend = jnp.sum(weights * bends) / jnp.sum(weights)
    else:
        bend = jnp.ones((), x.dtype)
    if term.residual and kind is not Kind.QUADRATIC:
        spread = jnp.sum(jnp.square(weights * slopes)) * (jnp.sum(present) / jnp.sum(weights))
    else:  # weights are precisions
        spread = jnp.sum(weights * slopes * slopes / expected)
    variance = spread / (jnp.sum(present) - rank) / (bend * bend)
    back = factors.back
    if with_intercept:
        back = back.at[-1].add(-matmul(columns.shift, back[:-1]))
    return variance * matmul(back, back.T)


def _mean_jump(
    term: Term, residual: Array, target: Array, weights: Array, rank: Array, most: int
) -> tuple[Array, Array]:
    """The mean curvature of a piecewise-linear loss: over its kinks, the slope's jump times the residuals' density.

    The fit passes through as many rows as its rank. They are at a kink by that alone, on a side that rounding chooses:
    they are left out, and the weights of the others are returned first.
    """
    kinks = term.kinks(target)
    place = kinks.place.reshape(len(kinks.place), -1)
    jump = (kinks.above - kinks.below).reshape(place.shape)
    weights, distances = weights / jnp.sum(weights), jnp.abs(residual[None] - place)
    met = jnp.argsort(jnp.where(weights > 0, jnp.min(distances, axis=0), jnp.inf))[:most]
    others = weights.at[met].multiply(jnp.arange(len(met)) >= rank)
    width = _bandwidth(residual, weights)
    kernel = 0.75 * jnp.maximum(1 - jnp.square(distances / width), 0) / width
    return others, jnp.sum(others[None] * jump * kernel) / jnp.sum(others)


def _bandwidth(residual: Array, weights: Array) -> Array:
    """2.34·σ·n^(−1/3), with a σ that outliers do not move; the weights add to 1.

    For the density itself 2.34·σ·n^(−1/5) would be best with Epanechnikov's kernel (Silverman, Density Estimation,
    1986, ch. 3). A standard error divides by the density, and suffers more from its bias than from its variance, so
    that the bandwidth is to shrink faster: as n^(−1/3) in Hall and Sheather (J. R. Stat. Soc. B 1988). Theirs, at
    n = 400 two and a half times as wide, makes the standard errors of mae 21 % too large for Laplace's noise, and those
    of a tube of two standard deviations 17 % too small for normal noise; this one keeps both, and all between, in 9 %.
    """
    order = jnp.argsort(jnp.where(weights > 0, residual, jnp.inf))
    middle = jnp.cumsum(weights[order]) - 0.5 * weights[order]
    low, high = jnp.interp(jnp.array([0.25, 0.75], middle.dtype), middle, residual[order])
    deviation = jnp.sqrt(jnp.sum(weights * jnp.square(residual - jnp.sum(weights * residual))))
    spread = jnp.where(high > low, jnp.minimum(deviation, (high - low) / 1.349), deviation)
    count = 1 / jnp.sum(weights * weights)  # of equal weights, the rows; else as many as tell as much
    return jnp.maximum(2.34 * spread * count ** (-1 / 3), jnp.finfo(residual.dtype).tiny)
