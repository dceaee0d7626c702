"""Barron's general and adaptive robust loss: one formula, whose shape α is a setting that can be learned.

How it is called, weighted, masked and reduced is the contract of every loss (`jaxloss.lift.Loss`, and the README).
With x = (r/scale)², β = 2 − α, z = x/β and u = log(1 + z), and the weight w = exp(−½βu) = (1 + z)^(−β/2):

    value (β/α)·(exp(½αu) − 1)        slope r/scale²·w        curvature w/scale²·(1 + (α − 1)·z)/(1 + z)

The exponents reach 170 before these leave float32, so u is a pair (`jaxloss.numerics.pairs`), and each power is the
square of its root. Near α = 0 the value is ½βu·exprel(½αu). What depends on the settings alone costs nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import POSITIVE, Domain
from jaxloss.lift import Traits, pointwise
from jaxloss.numerics.pairs import Pair, exp_sum, inverse, inverse_root, log_pair, product, split, times, two_sum
from jaxloss.numerics.partials import with_partials
from jaxloss.numerics.series import exp_difference, exprel, exprel_near

__all__ = ["barron", "barron_nll"]

Array = jax.Array

AT_MOST_TWO = Domain("at most 2 (−inf is allowed)", lambda alpha: alpha <= 2, 1.0)
ZERO_TO_TWO = Domain("between 0 and 2", lambda alpha: (alpha >= 0) & (alpha <= 2), 1.0)


_LEAST = -(2.0**60)
"""As good as −∞, which α is held above."""


def _finite(residual: Array, alpha: Array) -> tuple[Array, Array]:
    limit = jnp.finfo(residual.dtype).max
    return jnp.clip(residual, -limit, limit), jnp.maximum(alpha, _LEAST)


def _beta(alpha: Array) -> tuple[Array, Array]:
    """β, rounded, and the rest."""
    beta = 2 - alpha
    return beta, (2 - beta) - alpha


def _divisor(alpha: Array) -> Array:
    """β, but not 0: at α = 2 that of the float before it."""
    return jnp.maximum(2 - alpha, jnp.finfo(alpha.dtype).eps)


def _unit(scale: Array) -> Pair:
    return inverse(split(scale))


def _log(residual: Array, alpha: Array, scale: Array) -> tuple[Pair, Array, Array]:
    """u, z/(1 + z), and 1/(1 + z)."""
    info = jnp.finfo(residual.dtype)
    factor = product(
        _unit(scale), inverse_root(split(_divisor(alpha), _beta(alpha)[1]))
    )  # r times this is the root of z
    # Far out z would overflow: r is taken 2^−octaves times, and the 1 of 1 + z can be left out.
    octaves = info.maxexp * 3 // 5
    far = jnp.abs(residual * factor[0]) > 2.0 ** (info.maxexp // 3)
    unit = jnp.where(far, 2.0**-octaves, jnp.ones_like(residual))
    high, low = product(split(residual * unit), factor)
    z, z_low = two_sum(high * high, low * (2 * high + low))
    total, lost = two_sum(jnp.where(far, 0, jnp.ones_like(residual)), z)
    u = log_pair(total, lost + z_low, jnp.where(far, 2.0 * octaves, 0 * residual))
    return u, z / total, (unit / total) * unit


def _root_weight(alpha: Array, u: Pair) -> Array:
    """√w."""
    beta, low = _beta(alpha)
    return exp_sum(*times(split(-0.25 * beta, -0.25 * low), u))


def _root_power(alpha: Array, u: Pair) -> Array:
    """√(1 + z)^(α/2)."""
    return exp_sum(*times(split(0.25 * alpha), u))


def _slope(residual: Array, alpha: Array, scale: Array) -> Array:
    inside, alpha = _finite(residual, alpha)
    weight = _root_weight(alpha, _log(inside, alpha, scale)[0])
    unit = sum(_unit(scale))
    slope = ((inside * weight) * unit) * (weight * unit)
    end = jnp.where(alpha > 1, jnp.inf, jnp.where(alpha == 1, unit, 0))
    return jnp.where(jnp.abs(residual) == jnp.inf, jnp.copysign(end, residual), slope)


def _curvature(residual: Array, alpha: Array, scale: Array) -> Array:
    inside, alpha = _finite(residual, alpha)
    u, share, rest = _log(inside, alpha, scale)
    weight = _root_weight(alpha, u) * sum(_unit(scale))
    curvature = weight * (weight * (rest + (alpha - 1) * share))
    return jnp.where((jnp.abs(residual) == jnp.inf) & (alpha < 2), 0, curvature)


def _scale_slope(residual: Array, alpha: Array, scale: Array) -> Array:
    """−x·w/scale; with w small, x·w from z·w = z/(1 + z)·(1 + z)^(α/2)."""
    residual, alpha = _finite(residual, alpha)
    u, share, _ = _log(residual, alpha, scale)
    unit = sum(_unit(scale))
    ratio = (residual * _root_weight(alpha, u)) * unit
    power = _root_power(alpha, u)
    steep = (alpha < 1) & (share > 0.5)
    return -jnp.where(steep, ((2 - alpha) * share * power) * (power * unit), ratio * (ratio * unit))


def _alpha_slope(residual: Array, alpha: Array, scale: Array) -> Array:
    """β/4·∫₀ᵘ e^(ατ/2)(τ − 1 + e^(−τ))dτ: the integral done in three ways, each where it does not cancel."""
    residual, held = _finite(residual, alpha)
    pair, share, _ = _log(residual, held, scale)
    beta, u = _divisor(held), pair[0] + pair[1]
    y = 0.5 * held * u
    # u³ times a divided difference of exp.
    small = (u < 1) & (y > -1)
    inner, inner_y = jnp.where(small, u, 0), jnp.where(small, y, 0)
    differences = exp_difference(inner_y, inner_y, inner_y - inner, single=15, double=26)
    series = 0.25 * (beta * inner) * inner * inner * differences
    # For α ≥ 1, where u may be large and β small; raised is β·(1 + z)^(α/2).
    steep = held >= 1
    a = jnp.where(steep, held, 1)
    power = _root_power(held, pair)
    raised = (beta * power) * power
    kept = (2 + a) / (a * a)
    steeply = (0.5 * raised) * (u / a - kept) + 0.5 * (
        beta * (kept + 0.5 * u * exprel(jnp.where(steep, -0.5 * beta * u, 0)))
    )
    # For α < 1: ½(u²·χ(y) − e^y·(u − 1 + e^(−u))), χ(y) = (1 + (y − 1)e^y)/y², over e^(y/2) if y > 0.
    unit = jnp.maximum(power, 1)
    grown = power * (power / unit)
    mild = jnp.abs(y) < 1
    inner, y = jnp.where(mild, y, 0), jnp.where(mild, 1, y)
    series_chi = exp_difference(inner, inner, single=11, double=20) / unit
    chi = jnp.where(mild, series_chi, (1 / unit + (y - 1) * grown) / (y * y))
    inner = jnp.where(u < 1, -u, 0)
    bend = jnp.where(u < 1, u * u * exp_difference(0 * inner, inner, single=11, double=20), u - share)
    general = 0.5 * (u * u * chi - grown * bend) * unit
    slope = jnp.where(small, series, jnp.where(steep, steeply, general))
    return jnp.where(alpha < _LEAST, 0, slope)


def _value(residual: Array, alpha: Array, scale: Array) -> Array:
    inside, alpha = _finite(residual, alpha)
    pair, half_beta, infinite = _log(inside, alpha, scale)[0], 0.5 * _divisor(alpha), jnp.abs(residual) == jnp.inf
    u = pair[0] + pair[1]
    y, ratio = 0.5 * alpha * u, inside * sum(_unit(scale))
    # Where u is tiny, z may have underflowed.
    straight = jnp.where(u < jnp.finfo(u.dtype).eps ** 2, (0.5 * ratio) * ratio, half_beta * u)
    power, end = _root_power(alpha, pair), jnp.where(alpha < 0, -half_beta, jnp.inf)
    raised = jnp.where(infinite, end, (half_beta * power) * power - half_beta)
    near = straight * exprel_near(jnp.clip(y, -1, 1))
    return jnp.where((jnp.abs(y) < 1) & ~infinite, near, raised / jnp.where(alpha == 0, 1, 0.5 * alpha))


_loss = with_partials(_value, _slope, _alpha_slope, _scale_slope)


def _barron_slope(pred: Array, target: Array, *, alpha: Array, scale: Array) -> Array:
    return _slope(pred - target, alpha, scale)


def _barron_curvature(pred: Array, target: Array, *, alpha: Array, scale: Array) -> Array:
    return _curvature(pred - target, alpha, scale)


@pointwise(
    slope=_barron_slope,
    curvature=_barron_curvature,
    domain={"alpha": AT_MOST_TWO, "scale": POSITIVE},
    traits=Traits(residual=True, symmetric=True, estimates="M-estimate"),
)
def barron(pred: Array, target: Array, *, alpha: Array | float, scale: Array | float = 1.0) -> Array:
    """Barron's general loss |α−2|/α·((x/|α−2| + 1)^(α/2) − 1), x = (r/scale)² (Barron, CVPR 2019, eq. 8).

    Its limits are taken at α = 2: mse/(2·scale²), at 0: log(½x + 1), at −∞: 1 − exp(−½x). In between, α = 1 is
    pseudo-Huber, −2 Geman–McClure; 0 and −∞ are the shapes of Cauchy and Welsch. ≈ ½x near 0 for every α.
    α ≤ 2 says how little outliers count; scale > 0, in the units of r, how large a residual must be to be one. Convex
    for α ≥ 1; the slope is bounded for α ≤ 1, and goes back to 0 for α < 1; the loss is bounded for α < 0.
    Smooth in r: slope r/scale²·(1 + x/β)^(−β/2), with β = 2 − α. Derivatives in α and scale are as exact as those in
    r; in α it is infinite at 2, where that of the float before 2 is given. To learn α and scale use barron_nll: this
    loss is least at α = −∞ whatever the data.

    >>> barron(jnp.array([0.0, 3.0]), jnp.zeros(2), alpha=-2.0, scale=1.5, reduction="none").tolist()
    [0.0, 1.0]
    """
    return _loss(pred - target, alpha, scale)


def _log_partition(alpha: Array) -> Array:
    """log ∫ exp(−barron(r, α, 1)) dr, by the trapezoidal rule in log r, which converges exponentially.

    Of one α it costs as much as 200 residuals.
    """
    double = jnp.finfo(alpha.dtype).bits > 32
    step, low, high = (0.125, -38, 44) if double else (0.25, -18, 24)
    nodes = np.exp(np.arange(low, high, step))
    weights = jnp.asarray(2 * step * nodes, alpha.dtype)
    residuals = jnp.asarray(nodes, alpha.dtype)
    return jnp.log(jnp.sum(weights * jnp.exp(-_loss(residuals, alpha, jnp.ones_like(alpha)))))


@pointwise(
    slope=_barron_slope,
    curvature=_barron_curvature,
    domain={"alpha": ZERO_TO_TWO, "scale": POSITIVE},
    traits=Traits(residual=True, symmetric=True, estimates="M-estimate"),
)
def barron_nll(pred: Array, target: Array, *, alpha: Array | float, scale: Array | float) -> Array:
    """barron(r, α, scale) + log(scale) + log Z(α), Z(α) = ∫exp(−barron(r, α, 1))dr (Barron, CVPR 2019, eq. 16–18).

    The negative log-likelihood of noise with that density, so α and scale can be learned with the model, and the loss
    may be negative: α = 2 is normal noise of that standard deviation, α = 0 Cauchy noise of scale √2·scale.
    α in [0, 2]: below 0 the density cannot be normalised. scale > 0, in the units of r.
    Smooth in r: slope and curvature are those of barron. log Z is an integral done for each α on every call, by 200
    nodes, which costs nothing for one α or one per column, and dearly for one per row.

    >>> import optax
    >>> noise = jax.random.cauchy(jax.random.key(0), (1000,))
    >>> def objective(raw):
    ...     return barron_nll(jnp.zeros(1000), noise, alpha=2 * jax.nn.sigmoid(raw[0]), scale=jnp.exp(raw[1]))
    >>> optimizer = optax.adam(0.1)
    >>> def step(carry, _):
    ...     raw, state = carry
    ...     updates, state = optimizer.update(jax.grad(objective)(raw), state)
    ...     return (optax.apply_updates(raw, updates), state), None
    >>> (raw, _), _ = jax.lax.scan(step, (jnp.zeros(2), optimizer.init(jnp.zeros(2))), length=300)
    >>> round(float(2 * jax.nn.sigmoid(raw[0])), 1), round(float(jnp.exp(raw[1])), 1)
    (0.1, 0.8)
    """
    return (
        _loss(pred - target, jnp.asarray(alpha), jnp.asarray(scale))
        + jnp.log(scale)
        + _log_partition(jnp.asarray(alpha))
    )
