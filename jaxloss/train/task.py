"""What a fit is and where it stands: the records that pass between the host and the compiled program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from jaxloss.train.batch import Batch
from jaxloss.train.objective import Objective
from jaxloss.train.order import Layout
from jaxloss.train.state import TrainState

__all__ = ["Clock", "Control", "Limits", "Plan", "Run", "Start", "Status", "Task"]


class Run(NamedTuple):
    """All that a training run carries from step to step; of many runs, stacked."""

    state: TrainState
    sums: Any
    """The metrics of the epoch so far; None where epochs have one step."""
    best_params: Any
    """This and the next two fields are None without validation data."""
    best_loss: Any
    best_epoch: Any
    skipped: jax.Array
    """Updates skipped because something was not finite."""
    first_skipped: jax.Array
    """The first step, counted from 0, whose update was skipped; −1: none was."""
    active: jax.Array
    """Whether it goes on: neither patience nor the limit of skipped updates has ended it."""


class Clock(NamedTuple):
    """Where a run stands: epochs done, and batches done in the one after."""

    epoch: Any
    position: Any


class Limits(NamedTuple):
    """When a run ends early."""

    patience: Any
    max_skipped: Any


class Start(NamedTuple):
    """What a run begins with; of many runs, stacked."""

    params: Any
    model_state: Any
    seed: Any


STREAMED = Layout(1, 0, (0,), 0, True)
"""The layout of batches that come from outside: their number is not known."""


class Plan(NamedTuple):
    """What a program is compiled for."""

    micro_batches: int
    mesh: Mesh | None = None
    rule: Callable | None = None
    """How parameters are split over the mesh."""
    layout: Layout = STREAMED
    many: bool = False
    """Whether runs are stacked along the first axis."""
    capacity: int = 0
    """Epochs that one call may end."""
    guard: bool | Literal["gradient"] = False
    """That of `make_step`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Task:
    """What is minimised over which rows, and how: what stays the same from the first step to the last."""

    objective: Objective
    settings: dict[str, Any]
    """Of many runs, what each has of its own: settings of loss and optimizer, rows it is validated on."""
    data: Any
    """A `Batch`; None if batches come from outside."""
    held_out: Batch | None
    optimizer: Any = dataclasses.field(metadata={"static": True})
    plan: Plan = dataclasses.field(metadata={"static": True})

    @property
    def validated(self) -> bool:
        """Whether the best parameters are remembered; many runs always do, since some end before others."""
        return self.held_out is not None or self.plan.many

    def of_member(self, settings: dict[str, Any]) -> Task:
        """The task of one member, with its own settings."""
        objective, optimizer = self.objective, self.optimizer
        if settings.get("loss"):
            objective = Partial(objective, **settings["loss"])
        if settings.get("optimizer"):
            optimizer = optimizer(**settings["optimizer"])
        return dataclasses.replace(self, objective=objective, optimizer=optimizer)


class Control(NamedTuple):
    """What one call of `train` is told: integers, packed into one array because each array is a transfer."""

    epoch: Any
    position: Any
    steps: Any
    """The most steps to take."""
    end: Any
    """The epoch to end with."""
    drawn_from: Any
    """The first epoch of the orders."""
    patience: Any
    max_skipped: Any

    def pack(self) -> np.ndarray:
        """As an array that `Control(*array)` reads."""
        return np.array(self, np.int32)


class Status(NamedTuple):
    """How a call of `train` has ended."""

    epoch: Any
    position: Any
    going: Any
    """Whether any run goes on."""
    finite: Any
    """Whether all was finite; if not, the block that was not is undone."""

    def pack(self) -> jax.Array:
        """As an array that `read` reads."""
        return jnp.stack(self).astype(jnp.int32)

    @classmethod
    def read(cls, packed: jax.Array) -> Status:
        """Wait for the numbers."""
        return cls(*map(int, np.asarray(packed)))
