"""What a linear fit is given: checked on the host, cast, and mapped over its columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import (
    Domain,
    ShapeError,
    check_loss,
    check_number,
    check_where,
    dtype_of,
    loss_name,
    require_broadcastable,
    shown,
    unbound,
)
from jaxloss.lift import traits
from jaxloss.solve.stages import is_concrete

__all__ = ["Rows", "by_column", "checked", "has_columns", "input_of"]

Array = jax.Array


class Rows(NamedTuple):
    """x: (n, d); target, weights: (n,) or (n, k); settings: numbers, (k,), (n, 1) or (n, k); l2: a number or (k,)."""

    x: Array
    target: Array
    weights: Array
    settings: Mapping[str, Array]
    l2: Array


def input_of(name: str, x: Any) -> Array:
    """The rows as an array of real floats, (n, d); raises for anything else."""
    dtype = dtype_of(name, "x", x, "an array of real numbers, (rows, columns)")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: x has dtype {dtype}; it must be real and floating-point: pass x.astype(float)")
    shape = jnp.shape(x)
    if len(shape) != 2:
        repair = "pass x[:, None] for one column" if len(shape) == 1 else "flatten all axes but the first"
        raise ShapeError(f"{name}: x has shape {shape}; it must be (rows, columns): {repair}")
    x = jnp.asarray(x)
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def checked(
    name: str, loss: Any, x: Any, target: Any, weights: Any, where: Any, l2: Any, intercept: bool = True
) -> Rows:
    """Everything in one type, masked rows emptied; one line for what is wrong, where it can be seen at no cost."""
    check_loss(loss)
    function, settings = unbound(loss)
    known = traits(function)
    if function.lifted.event_ndim:
        raise TypeError(f"{name}: {loss_name(loss)} compares vectors; a linear fit needs a loss of one number")
    given = x
    x = input_of(name, x)
    dtype_of(name, "target", target)
    shape = jnp.shape(target)
    if len(shape) not in (1, 2) or shape[0] != x.shape[0]:
        raise ShapeError(
            f"{name}: x has shape {x.shape} and target has shape {shape}; target must be (rows,) or (rows, outputs)"
        )
    if 0 in shape or (x.shape[1] == 0 and not intercept):
        raise ShapeError(f"{name}: x has shape {x.shape} and target {shape}; there is nothing to fit")
    for what, value in (("weights", weights), ("l2", l2)):
        if value is not None:
            check_number(name, what, value)
    if weights is not None:
        require_broadcastable(name, "weights", weights, shape)
    if where is not None:
        check_where(name, where)
        require_broadcastable(name, "where", where, shape)
    columns = _columns(name, settings, shape)
    if jnp.ndim(l2) and jnp.shape(l2) != (columns,):
        raise ShapeError(
            f"{name}: l2 has shape {jnp.shape(l2)}; it must be a number, or one for each of {columns} columns"
        )
    _look(name, given, target, weights, where, l2, known.target)
    cast = jax.tree.map(lambda value: _cast(value, x.dtype), (target, weights, l2, settings))
    target, weights, l2, settings = cast
    settings = {
        **{key: _cast(value, x.dtype) for key, value in function.lifted.defaults.items() if key not in settings},
        **settings,
    }
    weights = jnp.ones((1,) * len(shape), x.dtype) if weights is None else weights
    weights = jnp.broadcast_to(
        weights, (shape[0], *weights.shape[1:]) if weights.ndim else shape[:1] + (1,) * (len(shape) - 1)
    )
    if where is not None:
        where = jnp.broadcast_to(where, shape)
        weights = jnp.where(where, jnp.broadcast_to(weights, shape), 0)
        target = jnp.where(where, target, jnp.asarray(known.target.inside, x.dtype))
        some = where if where.ndim == 1 else where.any(axis=1)
        x = jnp.where(some[:, None], x, 0)
        for key, value in settings.items():
            if value.ndim == 2:
                domain = function.lifted.domain.get(key)
                inside = domain.inside if domain is not None else 1.0
                mask = where.reshape(shape[0], -1)
                mask = mask if mask.shape[1] == value.shape[1] else mask.any(axis=1, keepdims=True)
                settings[key] = jnp.where(mask, value, jnp.asarray(inside, x.dtype))
    return Rows(x, target, weights, settings, l2)


def _cast(value: Any, dtype: Any) -> Array:
    return jnp.asarray(np.asarray(value, dtype) if not isinstance(value, jax.Array) else value.astype(dtype))


def _columns(name: str, settings: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    """How many fits: one for each output, or for each entry of a setting."""
    columns = shape[1] if len(shape) == 2 else 1
    for key, value in settings.items():
        own = jnp.shape(value)
        if len(shape) == 1 and columns == 1 and len(own) == 1:
            columns = own[0]
        fits = own in ((), (columns,)) or (len(own) == 2 and own[0] in (1, shape[0]) and own[1] in (1, columns))
        if not fits:
            raise ShapeError(
                f"{name}: {key} has shape {own}; it must be a number, one for each of {columns} columns, or (rows, 1)"
            )
    return columns


def _look(name: str, x: Any, target: Any, weights: Any, where: Any, l2: Any, domain: Domain) -> None:
    """Raise for values that no fit can come of; traced values cannot be seen, and end up in the fields of the fit."""
    where = (
        None
        if where is None
        else np.broadcast_to(np.asarray(where), jnp.shape(target))
        if is_concrete(where)
        else where
    )
    if not is_concrete(where):
        return
    if is_concrete(x) and not _finite(x):
        wrong = ~np.isfinite(np.asarray(x, np.float64)).all(axis=1)
        wrong &= True if where is None else where.reshape(len(where), -1).any(axis=1)
        if wrong.any():
            raise ValueError(
                f"{name}: x is not finite in {wrong.sum()} rows, first {np.argmax(wrong)}: drop them, or pass where="
            )
    if is_concrete(target):
        values = np.asarray(target)
        wrong = ~(domain.holds(values) & np.isfinite(values)) & (True if where is None else where)
        if wrong.any():
            row, value = np.argwhere(wrong)[0][0], values[wrong][0]
            raise ValueError(
                f"{name}: a target must be {domain.words}, got {value:g} in row {row}: drop such rows, or pass where="
            )
    if weights is not None and is_concrete(weights):
        values = np.asarray(weights)
        wrong = ~((values >= 0) & np.isfinite(values))
        if where is not None:
            wrong = (
                wrong & np.broadcast_to(where, np.broadcast_shapes(where.shape, values.shape)) if values.ndim else wrong
            )
        if wrong.any():
            raise ValueError(
                f"{name}: weights must be finite and at least 0, got {np.broadcast_to(values, wrong.shape)[wrong][0]:g}"
            )
    if is_concrete(l2) and not (np.all(np.isfinite(np.asarray(l2))) and np.all(np.asarray(l2) >= 0)):
        raise ValueError(f"{name}: l2 must be finite and at least 0, got {shown(l2)}")


def _finite(x: Any) -> bool:
    """Whether every entry is finite; the sum is the quick look, and overflows only where a slow one follows."""
    with jax.ensure_compile_time_eval():
        return bool(np.isfinite(np.asarray(x.sum())))


def has_columns(rows: Rows) -> bool:
    """Whether there are several targets, settings or ridges, and so as many fits."""
    wide = any(value.ndim == 1 or (value.ndim == 2 and value.shape[1] > 1) for value in rows.settings.values())
    return rows.target.ndim == 2 or rows.l2.ndim == 1 or wide


def by_column(function: Callable, rows: Rows, more: tuple[Any, ...] = (), axes: tuple[int, ...] = ()) -> Any:
    """The function of rows with one target, mapped over the columns that targets, settings or l2 have, if any."""
    x, target, weights, settings, l2 = rows
    level = {
        key: 0 if value.ndim == 1 else 1 if value.ndim == 2 and value.shape[1] > 1 else None
        for key, value in settings.items()
    }

    def vector(value: Array) -> Array:
        """A setting of one column: a number, or one for each row."""
        value = value[:, 0] if value.ndim == 2 else value
        return jnp.broadcast_to(value, target.shape[:1]) if value.ndim else value

    def single(target: Array, weights: Array, settings: Mapping[str, Array], l2: Array, *more: Any) -> Any:
        return function(Rows(x, target, weights, {key: vector(value) for key, value in settings.items()}, l2), *more)

    if not has_columns(rows):
        return single(target, weights, settings, l2, *more)
    if weights.ndim == 2 and weights.shape[1] == 1:
        weights = weights[:, 0]
    in_axes = (1 if target.ndim == 2 else None, 1 if weights.ndim == 2 else None, level, 0 if l2.ndim else None)
    return jax.vmap(single, (*in_axes, *axes))(target, weights, settings, l2, *more)
