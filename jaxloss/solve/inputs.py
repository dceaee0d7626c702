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
    as_arrays,
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
from jaxloss.numerics.stages import FEW_ROWS, is_concrete

__all__ = ["Rows", "by_column", "checked", "has_columns", "input_of", "names_of"]

Array = jax.Array
GRID = (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9, 10)
"""The buckets of each decade."""


class Rows(NamedTuple):
    """x: (n, d); target, weights: (n,) or (n, k); settings: numbers, (k,), (n, 1) or (n, k); l2: a number or (k,)."""

    x: Array
    target: Array
    weights: Array
    settings: Mapping[str, Array]
    l2: Array


def names_of(x: Any) -> tuple[str, ...] | None:
    """The names of a table's columns; None of an array."""
    columns = getattr(x, "columns", None)
    return None if columns is None else tuple(map(str, columns))


def input_of(name: str, x: Any) -> Array:
    """The rows as an array of floats, (n, d), of whole numbers and booleans too; raises for anything else."""
    names, (x,) = names_of(x), as_arrays(x)
    if names and x.dtype == object:
        text = [column for column, values in zip(names, x.T) if any(isinstance(value, str) for value in values)]
        raise TypeError(f"{name}: columns {', '.join(text or names)} of x hold more than numbers: drop or encode them")
    dtype = dtype_of(name, "x", x, "an array of real numbers, (rows, columns)")
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{name}: x has dtype {dtype}; it must be real: pass its .real and .imag as columns")
    shape = jnp.shape(x)
    if len(shape) != 2:
        repair = "pass x[:, None] for one column" if len(shape) == 1 else "flatten all axes but the first"
        raise ShapeError(f"{name}: x has shape {shape}; it must be (rows, columns): {repair}")
    if not jnp.issubdtype(dtype, jnp.floating):
        x = x.astype(jnp.result_type(float))
    x = x if isinstance(x, jax.Array) else jax.device_put(np.asarray(x))  # `jnp.asarray` compiles a program a shape
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
    x, (given, target, weights, where) = input_of(name, x), as_arrays(x, target, weights, where)
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
    concrete = is_concrete(x, target, weights, where, l2, settings)
    # On the host, where every number of rows is a shape that no program has to be compiled for.
    xp = np if concrete and x.shape[0] <= FEW_ROWS else jnp
    defaults = {key: value for key, value in function.lifted.defaults.items() if key not in settings}
    x, target, l2, settings = jax.tree.map(
        lambda value: xp.asarray(value, x.dtype), (x, target, l2, {**defaults, **settings})
    )
    weights = xp.ones((1,) * len(shape), x.dtype) if weights is None else xp.asarray(weights, x.dtype)
    columns_of_weights = weights.shape[1:] if weights.ndim else (1,) * (len(shape) - 1)
    weights = xp.broadcast_to(weights, (shape[0], *columns_of_weights))
    if where is not None:
        where = xp.broadcast_to(where, shape)
        weights = xp.where(where, weights, xp.zeros((), x.dtype))
        target = xp.where(where, target, xp.asarray(known.target.inside, x.dtype))
        some = where if where.ndim == 1 else where.any(axis=1)
        x = xp.where(some[:, None], x, xp.zeros((), x.dtype))
        for key, value in settings.items():
            if value.ndim == 2:
                mask = where.reshape(shape[0], -1)
                mask = mask if mask.shape[1] == value.shape[1] else mask.any(axis=1, keepdims=True)
                settings[key] = xp.where(mask, value, xp.asarray(_inside(function, key), x.dtype))
    rows = Rows(x, target, weights, settings, l2)
    return jax.device_put(_padded(rows, function, known.target.inside)) if concrete else rows


def bucket(rows: int) -> int:
    """The next number of rows on a coarse grid, so that fits of about as many rows share their programs.

    Powers of two up to 8192, where rows are few and time does not matter; then at most a quarter more.
    """
    if rows <= 8192:
        return max(32, 1 << (rows - 1).bit_length())
    unit = 10 ** (len(str(rows)) - 1)
    return next(int(step * unit) for step in GRID if step * unit >= rows)


def _padded(rows: Rows, function: Any, inside: float) -> Rows:
    """The rows, and as many absent ones as bring them to the next bucket."""
    more = bucket(len(rows.target)) - len(rows.target)
    if not more:
        return rows

    def longer(value: Any, filled: float) -> Any:
        xp = np if isinstance(value, np.ndarray) else jnp
        return xp.pad(value, [(0, more)] + [(0, 0)] * (value.ndim - 1), constant_values=filled)

    settings = {
        key: longer(value, _inside(function, key)) if value.ndim == 2 and len(value) > 1 else value
        for key, value in rows.settings.items()
    }
    return Rows(longer(rows.x, 0), longer(rows.target, inside), longer(rows.weights, 0), settings, rows.l2)


def _inside(function: Any, setting: str) -> float:
    """A value of the setting that its domain holds."""
    domain = function.lifted.domain.get(setting)
    return 1.0 if domain is None else domain.inside


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
