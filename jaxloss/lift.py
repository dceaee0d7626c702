"""From a function of one prediction and one target to a loss on arrays.

`pointwise` lifts a scalar function by nested `vmap` and gives it the call shape of `Loss`; `slope`, `curvature` and
`irls_weight` are its derivatives, lifted the same way.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, overload

import jax
import jax.numpy as jnp

from jaxloss.contract import (
    REAL,
    Domain,
    Lifted,
    PointwiseLoss,
    as_arrays,
    check_inputs,
    check_settings,
    event_rank,
    is_host_value,
    loss_name,
    require_broadcastable,
    require_settings,
    to_dtype,
    unbound,
)
from jaxloss.derivatives import derivatives, irls_weight_of, widened
from jaxloss.reduce import Axis, check_reduction, hide, reduce_losses

__all__ = ["Loss", "Traits", "curvature", "irls_weight", "pointwise", "slope", "traits"]


class Loss(Protocol):
    """How every loss is called; a loss is a plain function, and anything called this way will do.

    One made by `pointwise` has `lifted` besides (`jaxloss.contract.PointwiseLoss`), one of several heads `sums`
    (`jaxloss.reduce.SummedLoss`). Nothing else is asked of a loss.
    """

    def __call__(  # noqa: D102
        self,
        pred: Any,
        target: Any,
        *,
        weights: Any = None,
        where: Any = None,
        axis: Axis = None,
        reduction: str = "mean",
        **settings: Any,
    ) -> jax.Array: ...


@dataclass(frozen=True)
class Traits:
    """What is known of a loss, for solvers, diagnostics and tables.

    residual: whether pred and target enter only as pred − target.
    convex, symmetric: as functions of the prediction; symmetric in the sign of the residual.
    bounded_influence: whether the slope stays bounded as the residual grows.
    estimates: what the minimising constant is a sample's …: "mean", "median", "quantile(level)", …
    pred, target: the values each may take; outside them the loss may be NaN.
    """

    residual: bool = False
    convex: bool = False
    symmetric: bool = False
    bounded_influence: bool = False
    estimates: str = ""
    pred: Domain = REAL
    target: Domain = REAL


@overload
def pointwise(function: Callable[..., Any], /) -> Loss: ...
@overload
def pointwise(
    *,
    slope: Callable[..., Any] | None = None,
    curvature: Callable[..., Any] | None = None,
    partials: Mapping[str, Callable[..., Any]] | None = None,
    event_ndim: int = 0,
    domain: Mapping[str, Domain] | None = None,
    traits: Traits | None = None,
) -> Callable[[Callable[..., Any]], Loss]: ...
def pointwise(
    function: Callable[..., Any] | None = None,
    /,
    *,
    slope: Callable[..., Any] | None = None,
    curvature: Callable[..., Any] | None = None,
    partials: Mapping[str, Callable[..., Any]] | None = None,
    event_ndim: int = 0,
    domain: Mapping[str, Domain] | None = None,
    traits: Traits | None = None,
) -> Any:
    """Lift `function(pred, target, *, settings)`, written for one prediction and one target, to a `Loss` on arrays.

    slope, curvature: closed forms of the first and second derivative in `pred`, with the same arguments, for where
        automatic differentiation of `function` is inaccurate or slow. Forward, reverse and second order use them.
    partials: closed forms of the derivatives in settings and in "target", by name, for the same reason; those not named
        stay automatic.
    event_ndim: 1 for a function of two vectors: then pred and target have one more axis than the losses, and
        weights, masks, settings and reductions refer to the axes of the losses. A prediction that is a distribution
        of vectors says so itself.
    domain: the values each setting may take; a host value outside raises `ValueError`.
    traits: what is known of the loss.

    >>> import jax.numpy as jnp
    >>> from jaxloss import pointwise, slope
    >>> @pointwise
    ... def quartic(pred, target, *, scale=1.0):
    ...     return ((pred - target) / scale) ** 4
    >>> float(quartic(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0]), scale=2.0))
    0.5
    >>> slope(quartic)(jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0])).tolist()
    [0.0, 32.0]
    """
    domain, known = domain or {}, traits or Traits()
    if function is None:
        closed = {"slope": slope, "curvature": curvature, "partials": partials}
        return functools.partial(pointwise, **closed, event_ndim=event_ndim, domain=domain, traits=known)
    name, signature = function.__name__, inspect.signature(function)
    parameters = list(signature.parameters.values())
    if [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] != ["pred", "target"]:
        raise TypeError(f"{name}: a pointwise loss takes (pred, target, *, settings), got {signature}")
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    partials = partials or {}
    unknown = partials.keys() - {"target", *defaults}
    if unknown:
        raise TypeError(f"{name}: partials names {sorted(unknown)}; known are target and the settings {list(defaults)}")
    value, first, second = derivatives(function, slope, curvature, partials, known.residual)

    @functools.cache
    def compiled(kind: str) -> Callable:
        """Made when first used: half a millisecond each, which importing the catalogue should not wait for."""
        if kind == "loss":
            losses = _elementwise(value, event_ndim, domain)

            def reduced(pred, target, settings, weights, where, *, axes, reduction):
                half = any(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(pred))
                return reduce_losses(losses(pred, target, settings, where), weights, where, axes, reduction, half=half)

            return jax.jit(reduced, static_argnames=("axes", "reduction"))
        scalar = {"slope": first, "curvature": second, "irls_weight": irls_weight_of(first, second)}[kind]
        return jax.jit(_elementwise(widened(scalar), event_ndim, domain))

    lifted = Lifted(name, event_ndim, defaults, domain, known, compiled)

    @functools.wraps(function)
    def loss(pred, target, *, weights=None, where=None, axis=None, reduction="mean", **settings):
        pred, target, weights, where = as_arrays(pred, target, weights, where)
        dtype, weights, shape = check_inputs(name, pred, target, weights, where, event_ndim)
        settings = _prepare_settings(lifted, settings, shape, dtype)
        if is_host_value(target):
            target = to_dtype(target, dtype)
        axes = check_reduction(name, reduction, axis, len(shape))
        return compiled("loss")(pred, target, settings, weights, where, axes=axes, reduction=reduction)

    shared = inspect.signature(loss, follow_wrapped=False).parameters.values()
    parameters += [p for p in shared if p.kind is p.KEYWORD_ONLY]
    loss.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    loss.lifted = lifted  # type: ignore[attr-defined]
    return loss


def _prepare_settings(lifted: Lifted, settings: dict[str, Any], shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
    """The defaults under the given settings, checked and in the computing type."""
    check_settings(lifted.name, settings, lifted.defaults, lifted.domain)
    require_settings(lifted.name, settings, lifted.defaults)
    settings = {**lifted.defaults, **settings}
    for setting, value in settings.items():
        settings[setting] = to_dtype(value, dtype)
        require_broadcastable(lifted.name, setting, settings[setting], shape, vector=True)
    return settings


def _elementwise(function: Callable, event_ndim: int, domain: Mapping[str, Domain]) -> Callable:
    """Map the scalar function, which casts its inputs, over every axis of the losses; they are masked before."""

    def losses(pred, target, settings, where=None):
        pred, target = jax.tree.map(jnp.asarray, (pred, target))
        shape = target.shape[: target.ndim - event_rank(event_ndim, pred)]
        if where is not None:
            pred, target = jax.tree.map(lambda leaf: hide(leaf, where, 1.0), (pred, target))
        axes: dict[str, list[int | None]] = {}
        aligned = {}
        for name, value in settings.items():
            if value.ndim:
                value = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
                if where is not None:
                    inside = domain[name].inside if name in domain else 1.0
                    value = hide(jnp.broadcast_to(value, shape), where, inside)
            axes[name] = [0 if value.ndim and value.shape[axis] != 1 else None for axis in range(len(shape))]
            aligned[name] = value.reshape([size for size in value.shape if size != 1])
        mapped = function
        for axis in reversed(range(len(shape))):
            mapped = jax.vmap(mapped, (0, 0, {name: own[axis] for name, own in axes.items()}))
        return mapped(pred, target, aligned)

    return losses


def slope(loss: Loss) -> Callable[..., Any]:
    """The derivative of the loss in the prediction, elementwise: a function of `(pred, target, **settings)`.

    At a kink it is the subgradient of least magnitude. For a distribution it is a pytree like the prediction.

    >>> from jaxloss import mae, slope
    >>> slope(mae)(jnp.array([2.0, 0.0, -3.0]), jnp.zeros(3)).tolist()
    [1.0, 0.0, -1.0]
    """
    return _lift_derivative(loss, "slope")


def curvature(loss: Loss) -> Callable[..., jax.Array]:
    """The second derivative of the loss in the prediction, elementwise: a function of `(pred, target, **settings)`.

    Where the slope has a corner it is the curvature on the side of the smaller |residual|; at 0, the smaller of both.

    >>> from jaxloss import curvature, huber
    >>> curvature(huber)(jnp.array([0.5, 1.0, 2.0]), jnp.zeros(3), delta=1.0).tolist()
    [1.0, 1.0, 0.0]
    """
    return _lift_derivative(loss, "curvature")


def irls_weight(loss: Loss) -> Callable[..., jax.Array]:
    """slope / (pred − target), elementwise: the weight under which weighted least squares has the loss's gradient.

    At a zero residual it is the limit, which is the curvature, and inf at a kink there. Losses of the residual only.

    >>> from jaxloss import huber, irls_weight
    >>> irls_weight(huber)(jnp.array([0.0, 0.5, 4.0]), jnp.zeros(3), delta=1.0).tolist()
    [1.0, 1.0, 0.25]
    """
    return _lift_derivative(loss, "irls_weight")


def _lift_derivative(loss: Loss, kind: str) -> Callable[..., Any]:
    lifted, bound = _lifted_of(loss, kind)
    name = f"{kind}({lifted.name})"
    if kind == "irls_weight" and not lifted.traits.residual:
        raise TypeError(f"{name}: only for losses of pred − target; declare it with traits=Traits(residual=True)")
    if kind != "slope" and lifted.event_ndim:
        raise TypeError(f"{name}: only for losses of one number, and this one compares vectors")
    compiled = lifted.compiled(kind)

    def derivative(pred: Any, target: Any, **settings: Any) -> Any:
        if kind != "slope" and not jax.tree_util.all_leaves([pred]):
            raise TypeError(f"{name}: only where the prediction is one array, got {type(pred).__name__}")
        pred, target = as_arrays(pred, target)
        dtype, _, shape = check_inputs(name, pred, target, None, None, lifted.event_ndim)
        settings = _prepare_settings(lifted, {**bound, **settings}, shape, dtype)
        return compiled(pred, to_dtype(target, dtype), settings)

    derivative.__name__ = derivative.__qualname__ = name
    derivative.__doc__ = f"The {kind} of {lifted.name}, elementwise."
    return derivative


def traits(loss: Loss) -> Traits:
    """What is known of the loss; see `Traits`.

    >>> from jaxloss import huber, traits
    >>> traits(huber).convex, traits(huber).bounded_influence
    (True, True)
    """
    return _lifted_of(loss, "traits")[0].traits


def _lifted_of(loss: Any, wanted: str) -> tuple[Lifted, dict[str, Any]]:
    function, settings = unbound(loss)
    if not isinstance(function, PointwiseLoss):
        raise TypeError(f"{wanted}({loss_name(loss)}): only for losses made by jaxloss.pointwise")
    return function.lifted, settings
