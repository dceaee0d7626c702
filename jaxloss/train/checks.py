"""What is refused before anything is compiled: bad numbers, optimizers, parameters, functions."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from jaxloss.contract import as_pytree, dtype_of, shown
from jaxloss.train.objective import Objective, supervised
from jaxloss.train.task import Limits

__all__ = [
    "MANY",
    "Settings",
    "check_at_least_one",
    "check_batch_size",
    "check_integer",
    "check_optimizer",
    "check_params",
    "choose_objective",
    "read_batch_size",
    "recall_loss",
]

MANY = 2**30
"""No bound on steps, epochs or skipped updates: in int32 it can still be added to itself."""


@dataclass(frozen=True)
class Settings:
    """The numbers of a fit, or of many at once, as its caller gives them."""

    epochs: int
    patience: int | None
    micro_batches: int
    nonfinite: str
    max_skipped: int
    batch_size: int | None
    seed: int = 0

    def check(self, name: str, validated: bool) -> None:
        """Raise `ValueError` for a bad number, `TypeError` for what is none."""
        if check_integer(name, "epochs", self.epochs) < 0:
            raise ValueError(f"{name}: epochs must not be negative, got {self.epochs}")
        if self.patience is not None and (not validated or check_integer(name, "patience", self.patience) < 1):
            raise ValueError(f"{name}: patience={self.patience} needs validation data and must be at least 1")
        check_at_least_one(name, "max_skipped", self.max_skipped)
        if self.nonfinite not in ("error", "mask"):
            raise ValueError(f"{name}: nonfinite must be 'error' or 'mask', got {self.nonfinite!r}")

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same where a run is resumed."""
        free = ("epochs", "patience", "max_skipped")
        return {name: value for name, value in vars(self).items() if name not in free}

    @property
    def limits(self) -> Limits:
        """When a run ends early, in numbers that int32 holds."""
        return Limits(min(MANY if self.patience is None else self.patience, MANY), min(self.max_skipped, MANY))


def choose_objective(name: str, apply: Any, loss: Any, *, stateful: bool) -> Objective:
    """The objective of apply and loss; without a loss the first argument is one."""
    if loss is not None:
        return supervised(apply, loss, stateful=stateful)
    if not callable(apply) or isinstance(apply, nnx.Module | linen.Module):
        told = f"the first argument is an objective, a function of (params, batch), got {shown(apply)}"
        raise TypeError(f"{name}: without loss= {told}")
    return as_pytree(apply)


@contextlib.contextmanager
def recall_loss(name: str, loss: Any) -> Iterator[None]:
    """Note on errors of the first step, without a loss, what the first argument then is: it may have been forgotten."""
    try:
        yield
    except Exception as error:
        if loss is None:
            error.add_note(f"{name}: without loss= the first argument is an objective, `(params, batch) -> LossSum`")
        raise


def read_batch_size(name: str, batch_size: Any) -> tuple[int | None, int]:
    """(rows of a step, parts in which they are taken) of an argument `batch_size`."""
    if not isinstance(batch_size, tuple | list):
        return batch_size, 1
    if len(batch_size) != 2:
        raise TypeError(f"{name}: batch_size must be rows or (micro-batches, rows of each), got {shown(batch_size)}")
    parts, rows = (check_integer(name, "batch_size", number) for number in batch_size)
    if min(parts, rows) < 1:
        raise ValueError(f"{name}: batch_size={tuple(batch_size)} must be of numbers that are at least 1")
    return parts * rows, parts


def check_batch_size(name: str, batch_size: Any, rows: int) -> int:
    """The batch size; all rows for None, and for more than there are."""
    if batch_size is None:
        return rows
    check_at_least_one(name, "batch_size", batch_size)
    return min(operator.index(batch_size), rows)


def check_at_least_one(name: str, what: str, value: Any) -> None:
    """Raise `ValueError` for a number below 1."""
    if check_integer(name, what, value) < 1:
        raise ValueError(f"{name}: {what}={value} must be at least 1")


def check_optimizer(name: str, optimizer: Any) -> None:
    """Raise `TypeError` for what is no optimizer."""
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(f"{name}: optimizer must be one of optax, such as optax.adam(1e-3), got {shown(optimizer)}")


def check_params(name: str, params: Any) -> None:
    """Raise `TypeError` for a leaf that cannot be trained."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = f"{name}: params{jax.tree_util.keystr(path)}"
        dtype = dtype_of(where, "a parameter", leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{where} has dtype {dtype}; parameters are floating-point numbers: what is not trained "
                "belongs to x, to model_state, or into apply"
            )


def check_integer(name: str, what: str, value: Any) -> int:
    """The integer; raises `TypeError` for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: {what} must be an integer, got {shown(value)}") from None
