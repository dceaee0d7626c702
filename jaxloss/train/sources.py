"""Where batches come from: arrays on the devices, drawn inside the compiled program, or a stream from outside it."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxloss.train.batch import Batch, as_batch, mask_rows, pad, screen
from jaxloss.train.checks import MANY, check_at_least_one
from jaxloss.train.compiled import BLOCK, begin, close_epoch, means, step_once, train
from jaxloss.train.mesh import Placement
from jaxloss.train.order import Shuffle, draw_orders, words_of
from jaxloss.train.processes import gathered
from jaxloss.train.state import TrainState
from jaxloss.train.task import Clock, Control, Limits, Run, Start, Status, Task

__all__ = ["ArraySource", "Feed", "Pace", "Source", "Stream", "StreamSource", "read_mapped"]

STEPS_PER_CALL = 4096
"""Steps in one call of the compiled program: enough to hide its dispatch."""

ORDERS_PER_CALL = 2**22
"""Row numbers drawn for one call: a bound on memory."""

FIRST_STEPS, GROWTH = 32, 8
"""Steps of the first call that is watched, and the most by which the next may be longer than the last."""

LARGE_STATE = 2**26
"""Bytes of a state of which no copy is held to roll back to: beyond, a look at the gradient costs little of a step."""

SECONDS_PER_CALL = 0.25
"""How long a call runs before the host looks up, where there is something to look after."""

AHEAD = 2
"""Steps dispatched ahead of what is computed, while the next batch is read."""


class Pace:
    """How many steps the next call takes; the same in every process.

    watched: whether the host has something to look after between calls; if not, a call takes all it can.
    """

    def __init__(self, watched: bool):
        self.watched, self.steps = watched, FIRST_STEPS if watched else MANY

    def adapt(self, seconds: float) -> None:
        """The last call took so long: make the next take about `SECONDS_PER_CALL`."""
        if self.watched:
            steps = max(1, min(GROWTH * self.steps, int(self.steps * SECONDS_PER_CALL / seconds), MANY))
            self.steps = int(gathered(str(steps))[0])

    @staticmethod
    def narrow(steps: int) -> int:
        """Fewer steps, after a block of these in which one was not finite; 0 asks for that one step, guarded."""
        return min(steps, BLOCK) // 2


class Advance(NamedTuple):
    """What a source has done."""

    run: Run
    clock: Clock
    going: bool
    """Whether the run goes on."""
    curves: dict[str, np.ndarray]
    """What the history holds of the epochs ended."""


class ArraySource:
    """Whole arrays: the epochs run inside one program, several to a call when they are short.

    shuffle: None where every step takes all rows.
    epochs: no orders are drawn beyond.
    """

    def __init__(self, task: Task, limits: Limits, shuffle: Shuffle | None, placement: Placement, epochs: int):
        layout, runs = task.plan.layout, 1 if shuffle is None else len(shuffle.seeds)
        capacity = max(1, min(STEPS_PER_CALL // layout.steps, ORDERS_PER_CALL // (layout.rows * layout.shards * runs)))
        self.task, self.limits = dataclasses.replace(task, plan=task.plan._replace(capacity=capacity)), limits
        self.capacity, self.shuffle, self.placement, self.epochs = capacity, shuffle, placement, epochs
        self.guard: Any = False
        self.orders: Any = None
        self.first = -1

    def begin(self, start: Start) -> Run:
        """The run, or runs, before the first step."""
        self._draw(0)
        run = begin(self.task, start, self.orders)
        if not self.task.plan.many and _is_large(run.state):
            self.guard = "gradient"
        return run

    def _draw(self, epoch: int) -> None:
        """The orders of the epochs from this one on, unless they are there."""
        if self.shuffle is None or (self.orders is not None and 0 <= epoch - self.first < self.capacity):
            return
        self.first = epoch
        needed = max(min(self.capacity, self.epochs - epoch), 0)
        self.orders = self.placement.draw(self.shuffle, self.task.plan.many, epoch, needed, self.capacity)

    def advance(self, run: Run, clock: Clock, steps: int, end: int) -> Advance:
        """Up to so many steps, and no further than that epoch, or than the orders reach."""
        self._draw(clock.epoch)
        began = clock.epoch
        end = min(end, (began if self.shuffle is None else self.first) + self.capacity)
        while True:
            guard = self.guard or steps == 0
            task = dataclasses.replace(self.task, plan=self.task.plan._replace(guard=guard))
            control = Control(*clock, max(steps, 1), end, max(self.first, 0), *self.limits)
            run, packed, curves = train(run, task, self.orders, control.pack())
            status = Status.read(packed)
            clock = Clock(status.epoch, status.position)
            ended = {name: np.asarray(curve)[: clock.epoch - began] for name, curve in curves.items()}
            ended.setdefault("skipped", np.zeros_like(ended["loss"]))
            if status.finite or clock.epoch > began:
                return Advance(run, clock, bool(status.going), ended)
            steps = Pace.narrow(steps)

    def close(self) -> None:
        """Nothing is open."""


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches of a loader, with what it does not say itself.

    batches: an iterable of them, one pass an epoch: a list, a PyTorch `DataLoader`, a grain dataset, a generator.
    keys: of batches that are dicts the entries that are x and target, and weights and mask if there are. Without it
        they are "x", "target" or "y", "weights" and "where".
    epoch_steps: ends an epoch after so many batches; the next goes on where it was, into a new pass if need be. The
        loader may then be endless.

    >>> import numpy as np
    >>> loader = [{"image": np.ones((4, 2)), "label": np.zeros(4)}]
    >>> stream = Stream(loader, keys=("image", "label"), epoch_steps=100)
    """

    batches: Iterable[Any]
    keys: Sequence[str] | None = None
    epoch_steps: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.batches, Iterable) or isinstance(self.batches, str | bytes | Mapping | tuple):
            raise TypeError(f"Stream: batches must be an iterable of them, got {type(self.batches).__name__}")
        if self.keys is not None and not (isinstance(self.keys, tuple | list) and 2 <= len(self.keys) <= 4):
            raise TypeError(f"Stream: keys must be the names of x and target, such as ('x', 'y'), got {self.keys!r}")
        if self.epoch_steps is not None:
            check_at_least_one("Stream", "epoch_steps", self.epoch_steps)


class Feed(NamedTuple):
    """Batches from outside, as they are read."""

    passes: Callable[[int], Iterator]
    """`passes(epoch)` iterates over the batches of an epoch."""
    batch_size: int | None
    """The rows that batches are padded to; None takes those of the first."""
    nonfinite: str
    epoch_steps: int | None = None
    keys: Sequence[str] | None = None
    even: bool = False
    """Whether all batches are known to have the same number of rows, so that none needs a mask."""
    pads: bool = True
    """Whether batches are padded to one shape; if not, each shape is compiled."""


class StreamSource:
    """Batches from outside, each epoch a new pass over them.

    The next batch is read, checked, padded and put on the devices while the device computes.
    """

    def __init__(self, task: Task, limits: Limits, feed: Feed, placement: Placement):
        self.task, self.limits = dataclasses.replace(task, plan=task.plan._replace(guard=True)), limits
        self.feed, self.placement = feed, placement
        self.epoch_steps, self.even = feed.epoch_steps, feed.even and feed.nonfinite == "error"
        self.passes = feed.passes if feed.epoch_steps is None else lambda _: _chain(feed.passes)
        self.local_shards = -(-placement.shards // jax.process_count())
        self.rows = None if feed.batch_size is None else -(-feed.batch_size // jax.process_count())
        self.batches: Any = None
        self.at = Clock(0, 0)
        self.next: Batch | None = None

    def begin(self, start: Start) -> Run:
        """The run before the first step; reads the first batch."""
        self._open(Clock(0, 0))
        run = begin(dataclasses.replace(self.task, data=self.next), start, None)
        if _is_large(run.state):
            self.task = dataclasses.replace(self.task, plan=self.task.plan._replace(guard="gradient"))
        return run

    def _open(self, clock: Clock) -> None:
        """A pass over the batches of this epoch, past those that are done."""
        self.close()
        batches = iter(self.passes(clock.epoch))
        for _ in range(clock.position + clock.epoch * (self.epoch_steps or 0)):
            next(batches, None)
        self.batches = self._prepare(batches, clock)
        self.next, self.at = next(self.batches, None), clock
        self._require_batch(clock)

    def _require_batch(self, clock: Clock) -> None:
        if self.next is None:
            raise ValueError(
                f"fit: data gives no batch in epoch {clock.epoch + 1}: an iterator serves one pass; give a list or an "
                "object that can be iterated anew, epochs=1, or Stream(…, epoch_steps=…)"
            )

    def _prepare(self, batches: Iterator, clock: Clock) -> Iterator[Batch]:
        """Batches checked, padded to one shape, and on the devices."""
        for number, data in enumerate(batches, clock.position):
            name = f"batch {number} of epoch {clock.epoch + 1}"
            batch = screen(name, as_batch(name, data, self.feed.keys), self.feed.nonfinite)
            self.rows = self.rows or batch.rows
            if batch.rows > self.rows:
                told = f"{batch.rows} rows, more than the {self.rows} of a batch"
                raise ValueError(f"fit: {name} has {told}: set batch_size")
            places = -(-(self.rows if self.feed.pads else batch.rows) // self.local_shards) * self.local_shards
            if not self.feed.pads and places > batch.rows:
                told = f"{batch.rows} rows, no multiple of {self.local_shards} devices"
                raise ValueError(f"fit: {name} has {told}: empty places would enter the model's batch statistics")
            if not (self.even and places == batch.rows):  # else one structure, padded or not
                batch = mask_rows(pad(batch, places), np.ones(places, bool))
            yield self.placement.join_rows(batch)

    def close(self) -> None:
        """Let go of the pass."""
        if self.batches is not None:
            self.batches.close()
            self.batches = None

    def advance(self, run: Run, clock: Clock, steps: int, end: int) -> Advance:
        """Up to so many steps, and no further than the end of the epoch."""
        between = clock.position - self.at.position + (clock.epoch - self.at.epoch) * (self.epoch_steps or 0)
        if self.batches is not None and between >= 0 and (self.epoch_steps or clock.epoch == self.at.epoch):
            for _ in range(between):  # a generator cannot begin anew
                self.next = next(self.batches, None)
            self._require_batch(clock)
        else:
            self._open(clock)
        epoch, position = clock
        waiting: collections.deque[jax.Array] = collections.deque()
        going = True
        while steps > 0 and going:
            assert self.next is not None
            run, skipped = step_once(run, self.task, self.next, position == 0)
            waiting.append(skipped)
            steps, position = steps - 1, position + 1
            self.next = next(self.batches, None)  # type: ignore[arg-type]
            if len(waiting) > AHEAD:  # so that batches do not pile up on the device
                going = int(waiting.popleft()) < self.limits.max_skipped
            if self.next is None or position == self.epoch_steps:
                return self._end_epoch(run, epoch)
        self.at = Clock(epoch, position)
        return Advance(run, self.at, going and int(run.skipped) < self.limits.max_skipped, {})

    def _end_epoch(self, run: Run, epoch: int) -> Advance:
        curves = {name: np.asarray(value)[None] for name, value in means(run.sums).items()}
        if self.task.held_out is not None:
            run, loss = close_epoch(run, self.task, epoch + 1, self.limits)
            curves["validation_loss"] = np.asarray(loss)[None]
        self.at = Clock(epoch + 1, 0)
        if self.next is None:
            self.close()
        going = bool(run.active) and int(run.skipped) < self.limits.max_skipped
        return Advance(run, self.at, going, curves)


def _is_large(state: TrainState) -> bool:
    """Whether copies of the state are to be avoided, though each step then takes a little longer."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state._replace(key=None))) >= LARGE_STATE


def _chain(passes: Callable[[int], Iterator]) -> Iterator:
    """Batches without end, pass after pass, unless a pass holds none."""
    for number in itertools.count():
        some = False
        for batch in passes(number):
            some = True
            yield batch
        if not some:
            return


def read_mapped(data: Batch, batch_size: int, seed: int) -> Callable[[int], Iterator[Batch]]:
    """Batches of arrays in a file, in a fresh order each epoch; within a batch in the order of the file.

    Of each batch a process reads its own share.
    """
    rows, share, seeds = data.rows, -(-batch_size // jax.process_count()), words_of([seed])

    def passes(epoch: int) -> Iterator[Batch]:
        order = draw_orders(seeds, np.array([epoch], np.uint32), rows)[0, 0, 0]
        for start in range(0, rows, batch_size):
            mine = start + jax.process_index() * share
            index = np.sort(order[mine : min(mine + share, start + batch_size)])
            yield data.map_rows(lambda leaf, index=index: leaf[index])

    return passes


Source = ArraySource | StreamSource
"""Both begin a run, `begin(start)`, and take it on, `advance(run, clock, steps, end)`: `fit` knows no more of them."""
