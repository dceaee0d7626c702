"""The derivatives of a scalar loss: closed forms wired in where they are given, automatic where they are not.

All here are functions of (pred, target, settings), one prediction and one target; `jaxloss.lift` maps them over arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

__all__ = ["derivatives", "irls_weight_of"]


def derivatives(
    function: Callable, slope: Callable | None, curvature: Callable | None, residual: bool
) -> tuple[Callable, Callable, Callable]:
    """Value, slope and curvature as functions of (pred, target, settings), each wired to the next if given."""

    def plain(closed_form: Callable) -> Callable:
        return lambda pred, target, settings: closed_form(pred, target, **settings)

    def second(pred, target, settings):
        return jax.jvp(lambda p: first(p, target, settings), (pred,), (jnp.ones_like(pred),))[1]

    if slope is None:
        value = plain(function)
        first = jax.grad(value)
    else:
        first = plain(slope)
        if curvature is not None:
            first = _with_derivative(first, plain(curvature), residual)
        value = _with_derivative(plain(function), first, residual)
    return value, first, second


def _with_derivative(function: Callable, derivative: Callable, residual: bool) -> Callable:
    """The function with its derivative in pred given; those in target and settings are automatic.

    A function of pred − target has minus the given derivative in target. Only what is differentiated is computed: a
    zero tangent times an infinite derivative would be NaN.
    """
    wired = jax.custom_jvp(function)

    def jvp(primals, tangents):
        pred, target, settings = primals
        pred_dot, target_dot, settings_dot = tangents
        slopes = _apart(derivative, *primals)
        dots = jax.tree.leaves(pred_dot, is_leaf=_is_zero)
        terms = [jnp.sum(s * dot) for s, dot in zip(jax.tree.leaves(slopes), dots, strict=True) if not _is_zero(dot)]
        if not _is_zero(target_dot):
            automatic = jax.jvp(lambda t: function(pred, t, settings), (target,), (target_dot,))[1]
            terms.append(-slopes * target_dot if residual else automatic)
        live = {name: dot for name, dot in settings_dot.items() if not _is_zero(dot)}
        if live:
            own = {name: settings[name] for name in live}
            terms.append(jax.jvp(lambda some: function(pred, target, {**settings, **some}), (own,), (live,))[1])
        return wired(*primals), sum(terms)

    wired.defjvp(jvp, symbolic_zeros=True)
    return wired


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _apart(derivative: Callable, pred: Any, target: Any, settings: Any) -> Any:
    """The derivative, behind a wall for XLA's optimizer on the CPU.

    What value and slope share (the residual, a broadcast setting, a broadcast constant), XLA would compute once
    and store, each as large as the prediction: up to ten times slower than computing it twice. The barrier keeps the
    arguments apart, the extra axis of size 1 the constants.
    """

    def walled(pred: Any, target: Any, settings: Any) -> Any:
        arrays = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), (pred, target))
        (pred, target), settings = lax.optimization_barrier((arrays, settings))
        slopes = jax.vmap(derivative, (0, 0, None))(pred, target, settings)
        return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), slopes)

    return lax.platform_dependent(pred, target, settings, cpu=walled, default=derivative)


def irls_weight_of(first: Callable, second: Callable) -> Callable:
    """slope / (pred − target) of a loss of the residual, and its limit where that is 0, from slope and curvature."""

    def weight(pred, target, settings):
        residual = pred - target
        at_zero = residual == 0
        # A slope that still jumps between the two smallest numbers has a kink at 0; a smooth one is about 1e-38 there.
        tiny, zero = jnp.finfo(pred.dtype).tiny, jnp.zeros_like(target)
        jump = first(zero + tiny, zero, settings) - first(zero - tiny, zero, settings)
        limit = jnp.where(jump > 2.0**-64, jnp.inf, second(pred, target, settings))
        # Not slope / residual: XLA would join that division to one in the slope, and overflow.
        return jnp.where(at_zero, limit, first(pred, target, settings) * (1 / jnp.where(at_zero, 1, residual)))

    return weight
