"""What every loss asks of its arguments, and the one line a user reads when it is not met.

All checks look at shapes, dtypes and host values alone: they cost nothing in a compiled program, and no traceback
starts inside JAX.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

__all__ = [
    "ABOVE_MINUS_ONE", "NONNEGATIVE", "OPEN_UNIT", "POSITIVE", "REAL", "Domain", "Lifted", "PointwiseLoss",
    "Prediction", "ShapeError", "as_arrays", "as_pytree", "check_inputs", "check_loss", "check_number",
    "check_settings", "check_support", "check_where", "computing_dtype", "dtype_of", "event_rank", "is_host_value",
    "loss_name", "loss_shape", "prepare", "require_broadcastable", "require_function", "require_settings", "shown",
    "to_dtype", "unbound",
]  # fmt: skip

Shape = tuple[int, ...]


class ShapeError(AssertionError, ValueError):
    """Two shapes that must agree do not; the message names both and the likely repair."""


class Domain(NamedTuple):
    """The values a setting, a prediction or a target may take: in words, as a test, and one value inside."""

    words: str
    holds: Callable[[np.ndarray], np.ndarray]
    inside: float
    above: float | None = None
    """The number that all values exceed: the link of a linear model of them is log(value − above). None: no link."""


REAL = Domain("finite", np.isfinite, 1.0)
POSITIVE = Domain("positive and finite", lambda value: (value > 0) & (value < np.inf), 1.0, 0.0)
NONNEGATIVE = Domain("finite and at least 0", lambda value: (value >= 0) & (value < np.inf), 1.0)
ABOVE_MINUS_ONE = Domain("finite and above −1", lambda value: (value > -1) & (value < np.inf), 1.0, -1.0)
OPEN_UNIT = Domain("strictly between 0 and 1", lambda value: (value > 0) & (value < 1), 0.5)


@dataclass(frozen=True, eq=False)
class Lifted:
    """What a loss made by `pointwise` says of itself: its declarations, and the compiled map of each kind."""

    name: str
    event_ndim: int
    """1 for a loss of vectors."""
    defaults: Mapping[str, Any]
    """Its settings, and their defaults."""
    domain: Mapping[str, Domain]
    traits: Any
    """`jaxloss.lift.Traits`."""
    compiled: Callable[[str], Callable]


@runtime_checkable
class PointwiseLoss(Protocol):
    """A loss made by `pointwise`, which says what it was made of. Any other function is a loss that says nothing."""

    lifted: Lifted


class Prediction:
    """A prediction that is no array, such as a distribution or an interval, and what the contract asks of it.

    A pytree of another type is a prediction whose leaves have the target's shape.
    """

    event_ndim: ClassVar[int] = 0
    """How many of the target's last axes are one value."""
    support: ClassVar[Any] = None
    """The `Domain` of the target; None where any target is compared."""

    @property
    def shape(self) -> Shape:
        """The shape of the target."""
        raise NotImplementedError

    def trailing_axes(self) -> Any:
        """A pytree like this: for each array, how many axes it has beyond those of the target."""
        return jax.tree.map(lambda _: 0, self)

    def affine(self, shift: Any, scale: Any) -> Self:
        """The prediction of shift + scale·Y, for scale > 0."""
        raise NotImplementedError


def is_host_value(value: Any) -> bool:
    """Whether reading the value costs nothing: a Python or NumPy number, not a traced or device array."""
    return not isinstance(value, jax.Array)


def as_arrays(*values: Any) -> tuple[Any, ...]:
    """The values, with whatever holds an array, as the columns of a table and tensors on the CPU do, as NumPy's."""
    known = jax.Array | np.ndarray
    return tuple(
        value if value is None or isinstance(value, known) else jax.tree.map(_array, value) for value in values
    )


def _array(value: Any) -> Any:
    if isinstance(value, jax.Array | np.ndarray | np.generic) or not hasattr(value, "__array__"):
        return value
    array = np.asarray(value)
    if array.dtype == object:  # columns of numbers and of booleans, say
        with contextlib.suppress(TypeError, ValueError):
            return np.asarray(value, np.float64)
    return array


def to_dtype(value: Any, dtype: Any) -> Any:
    """The value in the computing type; host values are cast on the host, where int64 and float64 are still whole."""
    return np.asarray(value, dtype) if is_host_value(value) else value.astype(dtype)


def shown(value: Any) -> str:
    """The value for a message: on one line, and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 90 else text[:89] + "…"


def dtype_of(name: str, what: str, value: Any, wanted: str = "a number or an array of numbers") -> Any:
    """The dtype of a number or an array of numbers; raises `TypeError` for anything else, a list included."""
    try:
        dtype = jnp.result_type(value) if hasattr(value, "dtype") or isinstance(value, complex | float | int) else None
    except (TypeError, ValueError):  # an array of strings or objects
        dtype = None
    if dtype is None or not _is_number(dtype, "fiubc"):
        repair = f": pass jnp.asarray({what})" if isinstance(value, list | tuple) else ""
        raise TypeError(f"{name}: {what} must be {wanted}, got {shown(value)}{repair}")
    return dtype


def _is_number(dtype: Any, kinds: str = "fiub") -> bool:
    """Whether the dtype is of these kinds of NumPy's (real ones by default), or a float such as bfloat16."""
    return getattr(dtype, "kind", "") in tuple(kinds) or jnp.issubdtype(dtype, np.floating)


def computing_dtype(name: str, pred: Any) -> Any:
    """The float type of the prediction, at least float32."""
    leaves = jax.tree.leaves(pred)
    if not leaves:
        raise TypeError(f"{name}: pred must be a real floating-point array, got {shown(pred)}")
    for leaf in leaves:
        dtype = dtype_of(name, "pred", leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name}: pred has dtype {dtype}; a prediction is a real floating-point array: "
                "pass pred.astype(jnp.float32)"
            )
    dtype = jnp.result_type(*leaves)
    return dtype if dtype.itemsize >= 4 else jnp.dtype("float32")


def event_rank(event_ndim: int, pred: Any) -> int:
    """How many of the target's last axes are one value: as the loss declares, or else as the distribution does."""
    return event_ndim or (pred.event_ndim if isinstance(pred, Prediction) else 0)


def loss_shape(name: str, pred: Any, target: Any, event_ndim: int) -> Shape:
    """The shape of the elementwise losses, after checking that pred and target have the same shape."""
    event_ndim = event_rank(event_ndim, pred)
    target_dtype = dtype_of(name, "target", target)
    if jnp.issubdtype(target_dtype, jnp.complexfloating):
        raise TypeError(f"{name}: target has dtype {target_dtype}; targets are real: pass its .real and .imag apart")
    target_shape = jnp.shape(target)
    trailing = pred.trailing_axes() if isinstance(pred, Prediction) else jax.tree.map(lambda _: 0, pred)
    leaves = jax.tree_util.tree_leaves_with_path(pred)
    for (path, leaf), extra in zip(leaves, jax.tree.leaves(trailing), strict=True):
        what, shape = "pred" + jax.tree_util.keystr(path), jnp.shape(leaf)
        if len(shape) < extra:
            raise ShapeError(f"{name}: {what} has shape {shape}, but has {extra} more axes than the target")
        leading = shape[: len(shape) - extra]
        require_same_shape(name, f"{what}{'[..., 0]' * extra}", leading, "target", target_shape)
    if len(target_shape) < event_ndim:
        raise ShapeError(
            f"{name}: target has shape {target_shape}, but this loss compares arrays of rank {event_ndim} or more"
        )
    return target_shape[: len(target_shape) - event_ndim]


def require_same_shape(name: str, left: str, left_shape: Shape, right: str, right_shape: Shape) -> None:
    """Raise `ShapeError` unless the shapes are equal; holds after `chex.disable_asserts()` too."""
    try:
        chex.assert_equal_shape([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (left_shape, right_shape)])
        agree = left_shape == right_shape
    except AssertionError:
        agree = False
    if not agree:
        raise ShapeError(
            f"{name}: {left} has shape {left_shape} and {right} has shape {right_shape}; they must be equal, "
            f"nothing is broadcast: {_repair(left, left_shape, right, right_shape)}"
        )


def _repair(left: str, left_shape: Shape, right: str, right_shape: Shape) -> str:
    if left_shape == (*right_shape, 1):
        axes = ":" if len(right_shape) == 1 else "..."
        return f"add `[{axes}, None]` to {right} or `.squeeze(-1)` to {left}"
    if right_shape == (*left_shape, 1):
        return _repair(right, right_shape, left, left_shape)
    if left_shape == right_shape[::-1]:
        return f"transpose one of them, e.g. `{right}.T`"
    if np.prod(left_shape) == np.prod(right_shape):
        return f"e.g. `{right}.reshape({left}.shape)`"
    if () in (left_shape, right_shape):
        scalar, full = (right, left) if right_shape == () else (left, right)
        return f"to compare against one number, pass `jnp.full_like({full}, {scalar})`"
    return f"select or reshape so that both hold one entry per {right} value"


def require_broadcastable(name: str, what: str, value: Any, shape: Shape, *, vector: bool = False) -> None:
    """Raise `ShapeError` unless value is a scalar, or has rank len(shape) with each axis equal or 1.

    With `vector`, a vector along the last axis is accepted as well.
    """
    own = np.shape(value)
    if own == () or (len(own) == len(shape) and _fits(own, shape)):
        return
    if vector and len(own) == 1 and shape and _fits(own, shape[-1:]):
        return
    if own and own == shape[: len(own)]:
        index = ", ".join([":"] * len(own) + ["None"] * (len(shape) - len(own)))
        repair = f"pass `{what}[{index}]`"
    elif own and len(own) < len(shape) and own == shape[len(shape) - len(own) :]:
        index = ", ".join(["None"] * (len(shape) - len(own)) + [":"] * len(own))
        repair = f"pass `{what}[{index}]`"
    elif shape == ():
        repair = "pass a scalar"
    else:
        repair = f"pass a scalar or an array of rank {len(shape)} with each axis equal to the target's or 1"
    raise ShapeError(f"{name}: {what} has shape {own}, which does not fit losses of shape {shape}: {repair}")


def _fits(own: Shape, shape: Shape) -> bool:
    return all(size in (1, full) for size, full in zip(own, shape, strict=True))


def prepare(name: str, pred: Any, target: Any, weights: Any, where: Any) -> tuple[Any, Any, Shape]:
    """Check what losses and metrics share; tell target and weights in the computing type, and the shape."""
    dtype, weights, shape = check_inputs(name, pred, target, weights, where)
    return to_dtype(target, dtype), weights, shape


def check_inputs(
    name: str, pred: Any, target: Any, weights: Any, where: Any, event_ndim: int = 0
) -> tuple[Any, Any, Shape]:
    """Check what losses and metrics share; tell the computing type, the weights in it, and the shape."""
    dtype = computing_dtype(name, pred)
    shape = loss_shape(name, pred, target, event_ndim)
    if weights is not None:
        check_number(name, "weights", weights)
        weights = to_dtype(weights, dtype)
        require_broadcastable(name, "weights", weights, shape)
    if where is not None:
        check_where(name, where)
        require_broadcastable(name, "where", where, shape)
    if isinstance(pred, Prediction) and pred.support is not None:
        check_support(name, target, where, pred.support)
    return dtype, weights, shape


def check_where(name: str, where: Any) -> None:
    """Raise `TypeError` unless the mask is boolean: a 0/1 mask is a weight, and means something else."""
    dtype = dtype_of(name, "where", where, "a boolean mask")
    if dtype != jnp.bool_:
        raise TypeError(f"{name}: where has dtype {dtype}; a mask is boolean: pass where=(mask != 0)")


def check_support(name: str, target: Any, where: Any, support: Domain) -> None:
    """Raise for a host target outside the support of the distribution it is compared with; NaN passes, as NaN."""
    if not is_host_value(target) or not (where is None or is_host_value(where)):
        return
    numbers = np.asarray(target, np.float64)
    wrong = ~(support.holds(numbers) | np.isnan(numbers))
    if where is not None:
        where = np.asarray(where)
        wrong &= where.reshape(where.shape + (1,) * (wrong.ndim - where.ndim) if where.ndim else ())
    if wrong.any():
        raise ValueError(f"{name}: a target must be {support.words}, got {numbers[wrong][0]:g}")


def check_settings(
    name: str, settings: Mapping[str, Any], known: Mapping[str, Any], domain: Mapping[str, Domain]
) -> None:
    """Raise for a setting the loss does not have, and for a host value outside the setting's domain.

    Traced and device values are not read: that would block.
    """
    for setting, value in settings.items():
        if setting not in known:
            has = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise TypeError(f"{name}: unknown setting {setting!r}; {has}")
        check_number(name, setting, value, domain.get(setting))


def check_number(name: str, what: str, value: Any, domain: Domain | None = None) -> None:
    """Raise `TypeError` unless the value is real numbers, and `ValueError` for one on the host outside the domain."""
    host = is_host_value(value)
    try:
        numbers = np.asarray(value) if host else value
    except (TypeError, ValueError):  # ragged lists
        numbers = np.asarray(None)
    if not _is_number(numbers.dtype):
        raise TypeError(f"{name}: {what} must be a real number or an array of them, got {shown(value)}")
    if not host or domain is None:
        return
    inside = domain.holds(numbers.astype(np.float64))
    if not inside.all():
        index = tuple(np.argwhere(~inside)[0].tolist())
        place = f" at index {list(index)}" if index else ""
        got = " ".join(str(numbers[index]).split())
        raise ValueError(f"{name}: {what} must be {domain.words}, got {got}{place}")


def require_settings(name: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise for a setting without a default that is not given."""
    for setting, default in known.items():
        if default is inspect.Parameter.empty and setting not in settings:
            raise TypeError(f"{name}: needs the setting {setting!r}: pass {setting}=…")


def unbound(loss: Any) -> tuple[Any, dict[str, Any]]:
    """The loss under any `functools.partial` or `jax.tree_util.Partial`, and the settings they bind."""
    settings: dict[str, Any] = {}
    while hasattr(loss, "func") and hasattr(loss, "keywords"):  # JAX wraps a partial in a Partial in a box with these
        settings = {**loss.keywords, **settings}
        loss = loss.func
    return loss, settings


def loss_name(loss: Any) -> str:
    """The name of the loss, for messages."""
    return getattr(unbound(loss)[0], "__name__", shown(loss))


def check_loss(loss: Any) -> None:
    """Raise for a setting bound with `Partial` that is bad, or one that is missing.

    Call it before `jit`, while the settings can still be read.
    """
    function, settings = unbound(loss)
    require_function(function)
    if isinstance(function, PointwiseLoss):
        lifted = function.lifted
        check_settings(lifted.name, settings, lifted.defaults, lifted.domain)
        require_settings(lifted.name, settings, lifted.defaults)


def require_function(loss: Any) -> None:
    """Raise `TypeError` for what cannot be called."""
    if not callable(loss):
        raise TypeError(f"a loss is a function of (pred, target), got {shown(loss)}")


def as_pytree(function: Callable) -> Partial:
    """The function as a pytree, so that `jit` traces the settings it binds and compares the rest."""
    if isinstance(function, Partial):
        return function
    if isinstance(function, functools.partial):
        return Partial(function.func, *function.args, **function.keywords)
    return Partial(function)
