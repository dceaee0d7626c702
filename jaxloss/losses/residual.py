"""Losses of the residual r = pred − target, in the units of r or its square.

Each is written for one prediction and one target; how it is called, weighted, masked and reduced is the contract of
every loss (`jaxloss.lift.Loss`, and the README). All are zero at a perfect fit and grow with |r|.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxloss.contract import NONNEGATIVE, POSITIVE
from jaxloss.lift import Traits, pointwise
from jaxloss.numerics import kink

__all__ = [
    "epsilon_insensitive",
    "huber",
    "log_cosh",
    "mae",
    "mse",
    "pseudo_huber",
    "smooth_l1",
    "squared_epsilon_insensitive",
]

Array = jax.Array


@pointwise(traits=Traits(residual=True, convex=True, symmetric=True, estimates="mean"))
def mse(pred: Array, target: Array) -> Array:
    """Squared error r².

    Estimates the mean; the negative log-likelihood of Gaussian noise of constant variance, up to scale and constant.
    Smooth: slope 2r, curvature 2. Its influence is unbounded: one row ten times as far out counts a hundred times.

    >>> float(mse(jnp.array([2.0, 4.0]), jnp.array([1.0, 2.0])))
    2.5
    """
    residual = pred - target
    return residual * residual


@pointwise(traits=Traits(residual=True, convex=True, symmetric=True, bounded_influence=True, estimates="median"))
def mae(pred: Array, target: Array) -> Array:
    """Absolute error |r|.

    Estimates the median; the negative log-likelihood of Laplace noise, up to scale and constant.
    Kink at r = 0: slope sign(r), so 0 at a perfect fit; curvature 0 everywhere.

    >>> float(mae(jnp.array([2.0, 4.0]), jnp.array([1.0, 2.0])))
    1.5
    """
    return kink.absolute(pred - target)


def _huber_slope(pred: Array, target: Array, *, delta: Array) -> Array:
    return jnp.clip(pred - target, -delta, delta)


def _huber_curvature(pred: Array, target: Array, *, delta: Array) -> Array:
    return _inside(pred - target, delta)


def _inside(residual: Array, bound: Array) -> Array:
    """1 where |r| ≤ bound, else 0; NaN for NaN."""
    size = jnp.abs(residual)
    return jnp.where(size > bound, 0, size * 0 + 1)


def _huber_by_delta(pred: Array, target: Array, *, delta: Array) -> Array:
    return kink.positive_part(kink.absolute(pred - target) - delta)


@pointwise(
    slope=_huber_slope,
    curvature=_huber_curvature,
    partials={"delta": _huber_by_delta},
    domain={"delta": POSITIVE},
    traits=Traits(residual=True, convex=True, symmetric=True, bounded_influence=True, estimates="M-estimate"),
)
def huber(pred: Array, target: Array, *, delta: Array | float = 1.0) -> Array:
    """Huber's loss: ½r² for |r| ≤ δ, then δ(|r| − ½δ) (Huber, Ann. Math. Stat. 1964).

    δ > 0, in the units of r, is where squared error turns into absolute error: mse/2 as δ → ∞, and huber/δ → mae as
    δ → 0. At δ = 1.345 standard deviations of the noise it is 95 % as efficient as squared error on normal errors.
    The slope clip(r, −δ, δ) is continuous; the curvature is 1 for |r| ≤ δ, then 0.

    >>> huber(jnp.array([0.5, 3.0]), jnp.zeros(2), delta=2.0, reduction="none").tolist()
    [0.125, 4.0]
    """
    size = jnp.abs(pred - target)
    inner = jnp.minimum(size, delta)
    return inner * (size - 0.5 * inner)


def _smooth_l1_slope(pred: Array, target: Array, *, beta: Array) -> Array:
    return jnp.clip(pred - target, -beta, beta) / beta


def _smooth_l1_curvature(pred: Array, target: Array, *, beta: Array) -> Array:
    return _inside(pred - target, beta) / beta


def _smooth_l1_by_beta(pred: Array, target: Array, *, beta: Array) -> Array:
    return -0.5 * jnp.square(_smooth_l1_slope(pred, target, beta=beta))


@pointwise(
    slope=_smooth_l1_slope,
    curvature=_smooth_l1_curvature,
    partials={"beta": _smooth_l1_by_beta},
    domain={"beta": POSITIVE},
    traits=Traits(residual=True, convex=True, symmetric=True, bounded_influence=True, estimates="M-estimate"),
)
def smooth_l1(pred: Array, target: Array, *, beta: Array | float = 1.0) -> Array:
    """Smooth L1: ½r²/β for |r| ≤ β, then |r| − ½β (Girshick, ICCV 2015, eq. 3, with β as in PyTorch).

    It is huber(delta=β)/β: absolute error with its kink rounded off over β > 0, in the units of r; mae as β → 0.
    The slope clip(r/β, −1, 1) is continuous; the curvature is 1/β for |r| ≤ β, then 0.

    >>> smooth_l1(jnp.array([0.5, 3.0]), jnp.zeros(2), beta=2.0, reduction="none").tolist()
    [0.0625, 2.0]
    """
    size = jnp.abs(pred - target)
    inner = jnp.minimum(size, beta)
    return inner * (1 / beta) * (size - 0.5 * inner)


def _far(residual: Array) -> Any:
    """A ratio r/δ whose square is still finite, and past which the loss is linear to the last bit."""
    return 0.25 * jnp.finfo(residual.dtype).max ** 0.5  # of r's type: a Python float would be float64 under x64


def _ratio(residual: Array, delta: Array) -> Array:
    bound = _far(residual)
    return jnp.clip(residual / delta, -bound, bound)


def _pseudo_huber_slope(pred: Array, target: Array, *, delta: Array) -> Array:
    ratio = _ratio(pred - target, delta)
    return delta * (ratio / jnp.sqrt(1 + ratio * ratio))


def _pseudo_huber_curvature(pred: Array, target: Array, *, delta: Array) -> Array:
    ratio = _ratio(pred - target, delta)
    inverse = 1 / jnp.sqrt(1 + ratio * ratio)
    return inverse * inverse * inverse


def _pseudo_huber_by_delta(pred: Array, target: Array, *, delta: Array) -> Array:
    """δ(s − 1)²/s with s = √(1 + q²), by s − 1 = q²/(1 + s)."""
    residual = pred - target
    ratio = _ratio(residual, delta)
    root = jnp.sqrt(1 + ratio * ratio)
    half = ratio / (1 + root)
    return residual * half * half * (ratio / root)


@pointwise(
    slope=_pseudo_huber_slope,
    curvature=_pseudo_huber_curvature,
    partials={"delta": _pseudo_huber_by_delta},
    domain={"delta": POSITIVE},
    traits=Traits(residual=True, convex=True, symmetric=True, bounded_influence=True, estimates="M-estimate"),
)
def pseudo_huber(pred: Array, target: Array, *, delta: Array | float = 1.0) -> Array:
    """Pseudo-Huber δ²(√(1 + (r/δ)²) − 1), computed as δ|r|·q/(1 + √(1 + q²)) with q = |r|/δ.

    Huber's loss without the corner in its slope (Charbonnier et al., ICIP 1994): ≈ ½r² for |r| ≪ δ and ≈ δ|r| − δ² far
    out; δ > 0 in the units of r.
    Smooth: slope r/√(1 + q²), curvature (1 + q²)^(−3/2). At δ = 1 it is barron(alpha=1).

    >>> float(pseudo_huber(jnp.array([3.0]), jnp.zeros(1), delta=4.0))
    4.0
    """
    size = jnp.abs(pred - target)
    ratio = jnp.minimum(size / delta, _far(size))
    return delta * size * (ratio / (1 + jnp.sqrt(1 + ratio * ratio)))


def _log_cosh_slope(pred: Array, target: Array) -> Array:
    return jnp.tanh(pred - target)


def _log_cosh_curvature(pred: Array, target: Array) -> Array:
    decay = jnp.exp(-2 * jnp.abs(pred - target))
    return 4 * decay / jnp.square(1 + decay)


@pointwise(
    slope=_log_cosh_slope,
    curvature=_log_cosh_curvature,
    traits=Traits(residual=True, convex=True, symmetric=True, bounded_influence=True, estimates="M-estimate"),
)
def log_cosh(pred: Array, target: Array) -> Array:
    """log cosh r, computed as log1p(m²/(2 + 2m)) with m = expm1 |r|, and |r| − log 2 past |r| = 20, where they agree.

    ≈ ½r² near 0 and ≈ |r| − log 2 far out, like pseudo-Huber with a faster turn; r must be in units of the noise, as
    there is no setting. Smooth: slope tanh r, curvature sech² r.

    >>> round(float(log_cosh(jnp.array([100.0]), jnp.zeros(1))), 4)
    99.3069
    """
    size = jnp.abs(pred - target)
    inner = jnp.minimum(size, 20)
    growth = jnp.expm1(inner)
    return jnp.log1p(growth * growth / (2 + 2 * growth)) + (size - inner)


def _epsilon_insensitive_slope(pred: Array, target: Array, *, epsilon: Array) -> Array:
    residual = pred - target
    return jnp.where(jnp.abs(residual) <= epsilon, 0, jnp.sign(residual))


@pointwise(
    slope=_epsilon_insensitive_slope,
    domain={"epsilon": NONNEGATIVE},
    traits=Traits(residual=True, convex=True, symmetric=True, bounded_influence=True, estimates="M-estimate"),
)
def epsilon_insensitive(pred: Array, target: Array, *, epsilon: Array | float = 0.1) -> Array:
    """ε-insensitive error max(|r| − ε, 0) (Vapnik, The Nature of Statistical Learning Theory, 1995).

    ε ≥ 0, in the units of r, is the half-width of a tube within which errors are free: the loss of support vector
    regression, and mae at ε = 0. Rows inside the tube have no say, so the minimiser need not be unique.
    Kinks at |r| = ε: slope sign(r) for |r| > ε, else 0; curvature 0 everywhere.

    >>> epsilon_insensitive(jnp.array([0.5, -3.0]), jnp.zeros(2), epsilon=1.0, reduction="none").tolist()
    [0.0, 2.0]
    """
    return kink.positive_part(kink.absolute(pred - target) - epsilon)


def _excess(residual: Array, epsilon: Array) -> Array:
    """How far r is outside [−ε, ε], with its sign."""
    return residual - jnp.clip(residual, -epsilon, epsilon)


def _squared_epsilon_insensitive_slope(pred: Array, target: Array, *, epsilon: Array) -> Array:
    return 2 * _excess(pred - target, epsilon)


def _squared_epsilon_insensitive_curvature(pred: Array, target: Array, *, epsilon: Array) -> Array:
    return jnp.where(epsilon > 0, 2 - 2 * _inside(pred - target, epsilon), 2)


@pointwise(
    slope=_squared_epsilon_insensitive_slope,
    curvature=_squared_epsilon_insensitive_curvature,
    domain={"epsilon": NONNEGATIVE},
    traits=Traits(residual=True, convex=True, symmetric=True, estimates="M-estimate"),
)
def squared_epsilon_insensitive(pred: Array, target: Array, *, epsilon: Array | float = 0.1) -> Array:
    """Squared ε-insensitive error max(|r| − ε, 0)² (the L2 loss of support vector regression, as in liblinear).

    ε ≥ 0, in the units of r: errors within it are free; mse at ε = 0.
    The slope 2·sign(r)·max(|r| − ε, 0) is continuous; the curvature is 2 for |r| > ε, else 0 (2 everywhere at ε = 0).

    >>> squared_epsilon_insensitive(jnp.array([0.5, -3.0]), jnp.zeros(2), epsilon=1.0, reduction="none").tolist()
    [0.0, 4.0]
    """
    return jnp.square(kink.positive_part(jnp.abs(pred - target) - epsilon))
