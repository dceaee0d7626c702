"""The derivatives of a scalar loss: closed forms wired in where they are given, automatic where they are not.

All here are functions of (pred, target, settings), one prediction and one target; `jaxloss.lift` maps them over arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

__all__ = ["derivatives", "irls_weight_of", "widened"]


def derivatives(
    function: Callable,
    slope: Callable | None,
    curvature: Callable | None,
    partials: Mapping[str, Callable],
    residual: bool,
) -> tuple[Callable, Callable, Callable]:
    """Value, slope and curvature as functions of (pred, target, settings), each wired to the next if given.

    partials: closed forms of the value's derivatives in target and settings, by name.
    """

    def plain(closed_form: Callable) -> Callable:
        return widened(lambda pred, target, settings: closed_form(pred, target, **settings))

    def second(pred, target, settings):
        return jax.jvp(lambda p: first(p, target, settings), (pred,), (jnp.ones_like(pred),))[1]

    value = plain(function)
    automatic = jax.grad(value)
    first = plain(slope or (lambda pred, target, **settings: automatic(pred, target, settings)))
    if curvature is not None:
        first = _with_derivatives(first, plain(curvature), {}, residual)
    if slope is not None or partials:
        value = _with_derivatives(value, first, {name: plain(form) for name, form in partials.items()}, residual)
    return value, first, second


def widened(function: Callable) -> Callable:
    """The function with prediction and target cast to the computing type: the prediction's, but at least float32."""

    def wide(pred, target, settings):
        dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(pred)), jnp.float32)
        return function(*jax.tree.map(lambda leaf: leaf.astype(dtype), (pred, target)), settings)

    return wide


def _with_derivatives(
    function: Callable, derivative: Callable, partials: Mapping[str, Callable], residual: bool
) -> Callable:
    """The function with its derivative in pred given, and those in target and settings that `partials` names.

    The rest are automatic, but a function of pred − target has minus the given derivative in target. Only what is
    differentiated is computed: a zero tangent times an infinite derivative would be NaN.
    """
    wired = jax.custom_jvp(function)

    def jvp(primals, tangents):
        pred, target, settings = primals
        slopes = _apart(derivative, *primals)
        dots = jax.tree.leaves(tangents[0], is_leaf=_is_zero)
        pairs = zip(jax.tree.leaves(slopes), dots, strict=True)
        terms = [jnp.sum(_times(s, dot)) for s, dot in pairs if not _is_zero(dot)]
        rest = {"target": target, **settings}
        live = {name: dot for name, dot in {"target": tangents[1], **tangents[2]}.items() if not _is_zero(dot)}
        for name in partials.keys() & live.keys():
            terms.append(_times(partials[name](*primals), live.pop(name)))
        if residual and "target" in live:
            terms.append(_times(-slopes, live.pop("target")))
        if live:

            def of_live(some):
                given = rest | some
                return function(pred, given.pop("target"), given)

            terms.append(jax.jvp(of_live, ({name: rest[name] for name in live},), (live,))[1])
        return wired(*primals), sum(terms)

    wired.defjvp(jvp, symbolic_zeros=True)
    return wired


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _times(derivative: jax.Array, tangent: jax.Array) -> jax.Array:
    """The product in the computing type, which is wider than the tangent of a prediction in half precision."""
    return derivative * tangent.astype(derivative.dtype)


def _apart(derivative: Callable, pred: Any, target: Any, settings: Any) -> Any:
    """The derivative, behind a wall for XLA's optimizer on the CPU.

    What value and slope share (the residual, a broadcast setting, a broadcast constant), XLA would compute once
    and store, each as large as the prediction: up to ten times slower than computing it twice. The barrier keeps the
    arguments apart, the extra axis of size 1 the constants. In half precision the arguments come as they were given,
    and the derivative widens them: else XLA would store them once more in float32.
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
