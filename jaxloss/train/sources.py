"""Where batches come from: arrays on the devices, drawn inside the compiled program, or a stream from outside it.

A source begins a run, and advances it by some steps; `fit` knows no more of it.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxloss.train.data import Layout, as_batch, count_rows, epoch_orders, padded, screen, with_rows
from jaxloss.train.epochs import BLOCK, Clock, Limits, Plan, Run, begin, close_epoch, means, step_once, train
from jaxloss.train.objective import Objective
from jaxloss.train.placement import DATA_AXIS, assemble
from jaxloss.train.state import Batch

__all__ = ["Arrays", "Stream", "is_whole", "mapped_batches"]

STEPS_PER_CALL = 4096
"""Steps in one call of the compiled program: enough to hide its dispatch."""

AHEAD = 2
"""Steps dispatched ahead of what is computed, while the next batch is read."""

Advance = tuple[Run, Clock, bool, dict[str, np.ndarray]]


class Source:
    """What both kinds share: the objective, the optimizer and when a run ends."""

    def __init__(
        self,
        objective: Objective,
        optimizer: Any,
        held_out: Batch | None,
        limits: Limits,
        decay: float | None,
        mesh: Mesh | None,
        shard: Callable | None,
    ):
        self.objective, self.optimizer, self.held_out = objective, optimizer, held_out
        self.limits, self.mesh, self.shard = limits, mesh, shard
        self.averaged, self.decay = decay is not None, decay

    def close(self) -> None:
        """Let go of what is open."""


class Arrays(Source):
    """Whole arrays: the epochs run inside one program, several to a call when they are short.

    settings: of many runs at once, stacked along the first axis, each with its own `orders(first, count, capacity)`.
    """

    def __init__(
        self,
        *shared: Any,
        data: Batch,
        layout: Layout,
        epochs: int,
        micro_batches: int,
        orders: Callable[[int, int, int], np.ndarray] | None,
        many: bool = False,
        settings: dict[str, Any] | None = None,
        place_orders: Callable[[np.ndarray], Any] = jnp.asarray,
    ):
        super().__init__(*shared)
        self.data, self.settings = data, settings or {}
        capacity = max(1, min(STEPS_PER_CALL // layout.steps, 2**22 // (layout.rows * layout.shards)))
        self.plan = Plan(layout, micro_batches, capacity, False, many, self.mesh, self.shard)
        self.draw, self.place_orders, self.epochs = orders, place_orders, epochs
        self.orders: Any = None
        self.first = -1

    def begin(self, params: Any, model_state: Any, seeds: Any) -> Run:
        """The run, or runs, before the first step; a bad objective is told here."""
        self._draw(Clock(0, 0))
        static = {
            "optimizer": self.optimizer,
            "plan": self.plan,
            "averaged": self.averaged,
            "validated": self.plan.many or self.held_out is not None,
        }
        return begin(params, model_state, seeds, self.objective, self.settings, self.data, self.orders, **static)

    def _draw(self, clock: Clock) -> None:
        """The orders of the epochs from this one on, unless they are there."""
        if self.draw is None or (self.orders is not None and 0 <= clock.epoch - self.first < self.plan.capacity):
            return
        self.first, capacity = int(clock.epoch), self.plan.capacity
        count = max(min(capacity, self.epochs - self.first), 0)
        self.orders = self.place_orders(self.draw(self.first, count, capacity))

    def advance(self, run: Run, clock: Clock, left: int, end: int) -> Advance:
        """Up to so many steps, and no further than that epoch.

        Returns the run, where it stands, whether it goes on, and the curves of the epochs ended.
        """
        self._draw(clock)
        began = clock.epoch
        end = min(end, began + self.plan.capacity)
        if self.draw is not None:  # no further than the orders reach
            end = min(end, self.first + self.plan.capacity)
        while True:
            guard = left == 0
            control = np.array([*clock, max(left, 1), end, max(self.first, 0), *self.limits], np.int32)
            data = self.objective, self.settings, self.data, self.held_out, self.orders
            static = {"optimizer": self.optimizer, "plan": self.plan._replace(guard=guard)}
            run, status, curves = train(run, *data, control, self.decay, **static)
            epoch, position, going, fine = map(int, np.asarray(status))
            clock = Clock(epoch, position)
            ended = {name: np.asarray(curve)[: epoch - began] for name, curve in curves.items()}
            ended.setdefault("skipped", np.zeros_like(ended["loss"]))
            if fine or epoch > began:
                return run, clock, bool(going), ended
            left = min(left, BLOCK) // 2  # until the step is found; it alone is run with a guard


class Stream(Source):
    """Batches from outside: any iterable of `(x, target)` or `Batch`, each epoch a new pass over it.

    passes: `passes(epoch)` iterates over the batches of an epoch. Batches are padded to one shape, so that nothing is
    compiled twice, and the next is read, checked and put on the devices while the device computes.
    epoch_steps: ends an epoch after so many batches; the next goes on where it was, into a new pass if need be.
    even: all batches are known to have the same number of rows, so that none needs a mask.
    """

    def __init__(
        self,
        *shared: Any,
        passes: Callable[[int], Iterator],
        micro_batches: int,
        batch_size: int | None,
        epoch_steps: int | None,
        nonfinite: str,
        even: bool = False,
    ):
        super().__init__(*shared)
        self.even = even and nonfinite == "error"
        self.passes = passes if epoch_steps is None else lambda _: _one_after_another(passes)
        self.epoch_steps, self.nonfinite = epoch_steps, nonfinite
        shards = 1 if self.mesh is None else self.mesh.shape[DATA_AXIS]
        self.plan = Plan(Layout(shards, 0, (0,), 0, True), micro_batches, 0, True, False, self.mesh, self.shard)
        self.local_shards = -(-shards // jax.process_count())
        self.rows = None if batch_size is None else -(-batch_size // jax.process_count())
        self.batches: Any = None
        self.at = Clock(0, 0)
        self.next: Batch | None = None

    def begin(self, params: Any, model_state: Any, seeds: Any) -> Run:
        """The run before the first step; reads the first batch."""
        self._open(Clock(0, 0))
        static = {
            "optimizer": self.optimizer,
            "plan": self.plan,
            "averaged": self.averaged,
            "validated": self.held_out is not None,
        }
        return begin(params, model_state, seeds, self.objective, {}, self.next, None, **static)

    def _open(self, clock: Clock) -> None:
        """A pass over the batches of this epoch, past those that are done."""
        self.close()
        batches = iter(self.passes(clock.epoch))
        for _ in range(clock.position + clock.epoch * (self.epoch_steps or 0)):
            next(batches, None)
        self.batches = self._ready(batches, clock)
        self.next, self.at = next(self.batches, None), clock
        self._need(clock)

    def _need(self, clock: Clock) -> None:
        if self.next is None:
            raise ValueError(
                f"fit: data gives no batch in epoch {clock.epoch + 1}: an iterator serves one pass; give a list or an "
                "object that can be iterated anew, or epochs=1"
            )

    def _ready(self, batches: Iterator, clock: Clock) -> Iterator[Batch]:
        """Batches checked, padded to one shape, and on the devices."""
        for number, data in enumerate(batches, clock.position):
            name = f"batch {number} of epoch {clock.epoch + 1}"
            batch = screen(name, as_batch(name, data), self.nonfinite)
            rows = count_rows(batch)
            self.rows = self.rows or rows
            if rows > self.rows:
                raise ValueError(f"fit: {name} has {rows} rows, more than the {self.rows} of a batch: set batch_size")
            places = -(-self.rows // self.local_shards) * self.local_shards
            if not (self.even and places == rows):  # else one structure, padded or not
                batch = with_rows(padded(batch, places), np.ones(places, bool))
            yield assemble(batch, places, self.mesh)

    def close(self) -> None:
        """Let go of the pass."""
        if self.batches is not None:
            self.batches.close()
            self.batches = None

    def advance(self, run: Run, clock: Clock, left: int, end: int) -> Advance:
        """Up to so many steps, and no further than the end of the epoch."""
        between = clock.position - self.at.position + (clock.epoch - self.at.epoch) * (self.epoch_steps or 0)
        if self.batches is not None and between >= 0 and (self.epoch_steps or clock.epoch == self.at.epoch):
            for _ in range(between):  # a generator cannot begin anew
                self.next = next(self.batches, None)
            self._need(clock)
        else:
            self._open(clock)
        epoch, position = clock
        waiting: collections.deque[jax.Array] = collections.deque()
        going = True
        while left > 0 and going:
            begins = position == 0
            run, skipped = step_once(
                run, self.objective, self.next, self.decay, begins, optimizer=self.optimizer, plan=self.plan
            )
            waiting.append(skipped)
            left, position = left - 1, position + 1
            self.next = next(self.batches, None)  # type: ignore[arg-type]
            if len(waiting) > AHEAD:  # so that batches do not pile up on the device
                going = int(waiting.popleft()) < self.limits.max_skipped
            if self.next is None or position == self.epoch_steps:
                return self._ended(run, epoch)
        self.at = Clock(epoch, position)
        return run, self.at, going and int(run.skipped) < self.limits.max_skipped, {}

    def _ended(self, run: Run, epoch: int) -> Advance:
        curves = {name: np.asarray(value)[None] for name, value in means(run.sums).items()}
        if self.held_out is not None:
            run, loss = close_epoch(run, self.objective, self.held_out, epoch + 1, self.limits, self.mesh)
            curves["validation_loss"] = np.asarray(loss)[None]
        self.at = Clock(epoch + 1, 0)
        if self.next is None:
            self.close()
        going = bool(run.active) and int(run.skipped) < self.limits.max_skipped
        return run, self.at, going, curves


def _one_after_another(passes: Callable[[int], Iterator]) -> Iterator:
    """Batches without end, pass after pass, unless a pass holds none."""
    for number in itertools.count():
        some = False
        for batch in passes(number):
            some = True
            yield batch
        if not some:
            return


def is_whole(data: Any) -> bool:
    """Whether the data are arrays in memory: not a stream, and in no file."""
    return isinstance(data, tuple) and not any(isinstance(leaf, np.memmap) for leaf in jax.tree.leaves(data))


def mapped_batches(data: Batch, batch_size: int, seed: int) -> Callable[[int], Iterator[Batch]]:
    """Batches of arrays in a file, in a fresh order each epoch; within a batch in the order of the file.

    Of each batch a process reads its own share.
    """
    rows, share = count_rows(data), -(-batch_size // jax.process_count())

    def passes(epoch: int) -> Iterator[Batch]:
        order = epoch_orders(seed, epoch, 1, rows)[0, 0]
        for start in range(0, rows, batch_size):
            mine = start + jax.process_index() * share
            index = np.sort(order[mine : min(mine + share, start + batch_size)])
            yield jax.tree.map(
                lambda leaf, index=index: leaf[index] if leaf.ndim and leaf.shape[0] == rows else leaf, data
            )

    return passes


def iterable_passes(data: Iterable) -> Callable[[int], Iterator]:
    """A new pass over an iterable each epoch."""
    return lambda epoch: iter(data)
