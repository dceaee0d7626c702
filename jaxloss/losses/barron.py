"""Barron's general and adaptive robust loss: one formula, whose shape α is a setting that can be learned.

How it is called, weighted, masked and reduced is the contract of every loss (`jaxloss.lift.Loss`, and the README).
With x = (r/scale)², β = 2 − α and z = x/β the loss is (β/α)·((1 + z)^(α/2) − 1). Everything here follows from
u = log(1 + z) and the weight w = (1 + z)^(−β/2) = exp(−v), v = ½βu, which is the slope over r/scale²:

    value (x·w − β(1 − w))/α = v·exprel(αv/β)        slope r/scale²·w        curvature w/scale²·(1 − x/(1 + z))

The exponent v reaches 80 before w leaves float32, so it is carried in pairs (`jaxloss.losses.special`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import POSITIVE, Domain
from jaxloss.lift import Traits, pointwise
from jaxloss.losses.special import (
    atanh_tail,
    exp_difference,
    exp_sum,
    exprel,
    log_pair,
    quotient,
    scaled,
    with_partials,
)

__all__ = ["barron", "barron_nll"]

Array = jax.Array

AT_MOST_TWO = Domain("at most 2 (−inf is allowed)", lambda alpha: alpha <= 2, 1.0)
ZERO_TO_TWO = Domain("between 0 and 2", lambda alpha: (alpha >= 0) & (alpha <= 2), 1.0)


class _Parts(NamedTuple):
    """The pieces of the loss at one residual; `quarter` is exp(−v/4), `inverse` 1/(1 + z), `y` αu/2."""

    alpha: Array
    beta: Array
    residual: Array
    ratio: Array
    near: Array
    x: Array
    u: Array
    v: Array
    y: Array
    quarter: Array
    inverse: Array
    bend: Array

    @property
    def half(self) -> Array:
        return self.quarter * self.quarter


def _parts(residual: Array, alpha: Array, scale: Array) -> _Parts:
    info = jnp.finfo(residual.dtype)
    limit = jnp.minimum(2.0 ** (info.maxexp - 1) * scale, info.max)
    residual = jnp.clip(residual, -limit, limit)
    ratio = residual / scale
    # α = −∞ is the limit z → 0, in which α and β have no part: they get values that do no harm.
    flat = alpha == -jnp.inf
    alpha = jnp.where(flat, -2, alpha)
    beta = 2 - alpha
    beta_low = (2 - beta) - alpha
    divisor = jnp.maximum(beta, info.eps)  # at α = 2, as at the float before it
    plain = jnp.where(flat, 0, (ratio / divisor) * ratio)
    # Far out x would overflow: r is taken 2^−octaves times, and the 1 in 1 + z can be left out.
    far, octaves = jnp.abs(ratio) > 2.0 ** (info.maxexp // 3), info.maxexp * 3 // 5
    near = (plain < 1) | (far & (beta > 1e9))
    high, low = quotient(jnp.where(far, residual * 2.0**-octaves, residual), 0, scale)
    z_high, z_low = quotient(high * high, low * (2 * high + low), divisor)
    # Near: u = z(1 − t) and v = ½x(1 − t), t of the order of ½z. Near and far out, v is past all bounds: any will do.
    x = jnp.where(far, 1e4, ratio * ratio)
    z = jnp.where(far, 0, jnp.where(near, plain, 0))
    s = z / (2 + z)
    t = s - 2 * s * s * atanh_tail(s * s) / (2 + z)
    # Elsewhere: u is the logarithm of a sum that is carried in a pair, v its multiple.
    unit = jnp.where(far, 0, 1)
    total = jnp.where(near, 1, unit + z_high)
    total_low = jnp.where(near, 0, (unit - (total - z_high)) + z_low)
    log_total = log_pair(total, total_low, jnp.where(far, 2.0 * octaves, 0 * ratio))
    inverse = 1 / (1 + plain)
    u = jnp.where(near, z * (1 - t), log_total[0] + log_total[1])
    bend = jnp.where(near, z * (z * inverse - t), u - (1 - inverse))
    main, rest = scaled(0.25 * beta, log_total)
    main = jnp.where(near, jnp.where(far, 2500, 0.25 * high * high), main)
    straight = jnp.where(far, 0, low * (2 * high + low)) - x * t
    rest = jnp.where(near, 0.25 * straight, rest + 0.25 * beta_low * bend)
    v = jnp.where(near, 0.5 * x * (1 - t), 2 * (main + rest))
    slant = jnp.where(flat, -1, alpha / divisor)
    y = jnp.where(near, slant * v, 0.5 * alpha * u)
    return _Parts(alpha, beta, residual, ratio, near, x, u, v, y, exp_sum(-0.5 * main, -0.5 * rest), inverse, bend)


def _slope(residual: Array, alpha: Array, scale: Array) -> Array:
    at = _parts(residual, alpha, scale)
    slope = ((((at.residual * at.quarter) * at.quarter / scale) * at.quarter) / scale) * at.quarter
    return jnp.where((jnp.abs(residual) == jnp.inf) & (alpha > 1), residual, slope)


def _curvature(residual: Array, alpha: Array, scale: Array) -> Array:
    at = _parts(residual, alpha, scale)
    factor = jnp.where(at.near, 1 - at.x * at.inverse, (at.alpha - 1) + at.beta * at.inverse)
    return (at.half / scale) * ((at.half / scale) * factor)


def _scale_slope(residual: Array, alpha: Array, scale: Array) -> Array:
    at = _parts(residual, alpha, scale)
    root = at.ratio * at.quarter * at.quarter
    return -root * (root / scale)


def _alpha_slope(residual: Array, alpha: Array, scale: Array) -> Array:
    """β/4·∫₀ᵘ e^(ατ/2)(τ − 1 + e^(−τ))dτ: the integral done in three ways, each where it does not cancel."""
    at = _parts(residual, alpha, scale)
    beta = jnp.maximum(at.beta, jnp.finfo(residual.dtype).eps)
    # u³ times a divided difference of exp.
    small = (at.u < 1) & (at.y > -1)
    u, y = jnp.where(small, at.u, 0), jnp.where(small, at.y, 0)
    series = 0.25 * (beta * u) * u * u * exp_difference(y, y, y - u, single=15, double=26)
    # For α ≥ 1, where u may be large and β small; raised is β(1 + z)^(α/2).
    steep = at.alpha >= 1
    a = jnp.where(steep, at.alpha, 1)
    raised = beta * at.half * at.half + jnp.square(at.ratio * at.half)
    kept = (2 + a) / (a * a)
    steeply = (0.5 * raised) * (at.u / a - kept) + 0.5 * (
        beta * (kept + 0.5 * at.u * exprel(jnp.where(steep, -at.v, 0)))
    )
    # For α < 1: ½(u²·χ(y) − e^y·bend), χ(y) = (1 + (y − 1)e^y)/y².
    mild = jnp.abs(at.y) < 1
    inner, y = jnp.where(mild, at.y, 0), jnp.where(mild, 1, at.y)
    grown = raised / beta
    chi = jnp.where(mild, exp_difference(inner, inner, single=11, double=20), (1 + (y - 1) * grown) / (y * y))
    general = 0.5 * (at.u * at.u * chi - grown * at.bend)
    slope = jnp.where(small, series, jnp.where(steep, steeply, general))
    return jnp.where(alpha == -jnp.inf, 0, slope)


def _value(residual: Array, alpha: Array, scale: Array) -> Array:
    at = _parts(residual, alpha, scale)
    # Two spellings: the second cancels near α = 0, the first loses digits for large y and near α = 2.
    plain = ((at.y < 0.5) & (at.alpha < 1)) | (at.x < 1e-20)  # there β·v may underflow
    v, y = jnp.where(plain, at.v, 0), jnp.where(plain, at.y, 0)
    falling = at.beta * (at.v * exprel(-at.v))
    root, divisor = at.ratio * at.half, jnp.where(plain, 1, at.alpha)
    value = jnp.where(plain, v * exprel(y), root * (root / divisor) - falling / divisor)
    limit = jnp.where(alpha >= 0, jnp.inf, -at.beta / jnp.where(alpha >= 0, 1, at.alpha))
    limit = jnp.where(alpha == -jnp.inf, 1, limit)
    return jnp.where(jnp.abs(residual) == jnp.inf, limit, value)


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
