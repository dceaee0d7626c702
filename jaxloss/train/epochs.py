"""The compiled part of a fit: many steps in one program, evaluation and early stopping inside it.

Steps run in blocks. A block is run as if nothing could go wrong; one sum tells afterwards whether a loss or a parameter
was not finite. Then the block's start is kept, and the host has ever shorter parts run until the step is found, and it
alone skipped by the guarded step. So the guard costs nothing until it is needed, and every update that is applied is
computed by the same program, wherever a run was stopped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import Partial

from jaxloss.reduce import LossSum
from jaxloss.train.data import Layout
from jaxloss.train.objective import Objective, objective_sum, penalty_of
from jaxloss.train.placement import select, sums_of_parts
from jaxloss.train.state import Batch, TrainState
from jaxloss.train.step import all_finite, make_step

__all__ = [
    "BLOCK",
    "Clock",
    "Limits",
    "Plan",
    "Run",
    "begin",
    "close_epoch",
    "means",
    "step_once",
    "told_params",
    "train",
]

BLOCK = 128
"""Steps between two looks at whether all is finite."""

ROWS_PER_EVALUATION = 8192
"""Validation rows evaluated at once: a bound on memory."""


class Run(NamedTuple):
    """All that a training run carries from step to step; of many runs, stacked."""

    state: TrainState
    average: Any
    """The moving average of the parameters, or None."""
    sums: Any
    """The metrics of the epoch so far; None where epochs have one step."""
    best_params: Any
    """With what follows None where nothing is validated."""
    best_loss: Any
    best_epoch: Any
    skipped: jax.Array
    """Updates skipped because something was not finite."""
    first_skipped: jax.Array
    """The first step, counted from 0, whose update was skipped; −1: none was."""
    active: jax.Array
    """Whether it goes on: neither patience nor the limit of skipped updates has ended it."""


class Clock(NamedTuple):
    """Where a run stands: whole epochs done, and batches done in the one after."""

    epoch: Any
    position: Any


class Plan(NamedTuple):
    """What a program is compiled for."""

    layout: Layout
    micro_batches: int
    capacity: int
    """Epochs that one call may end."""
    guard: bool
    many: bool
    """Whether runs are stacked along the first axis."""
    mesh: Mesh | None
    shard: Callable | None = None
    """The rule by which parameters are split over the mesh."""


class Limits(NamedTuple):
    """When a run ends early."""

    patience: Any
    max_skipped: Any


def configured(
    objective: Objective, optimizer: Any, settings: dict[str, Any]
) -> tuple[Objective, optax.GradientTransformation]:
    """A member's own objective and optimizer."""
    if settings.get("loss"):
        objective = Partial(objective, **settings["loss"])
    if settings.get("optimizer"):
        optimizer = optimizer(**settings["optimizer"])
    return objective, optimizer


def one_batch(
    run: Run,
    objective: Objective,
    optimizer: Any,
    batch: Batch,
    decay: Any,
    plan: Plan,
    begins: Any,
    filled: Any = True,
) -> tuple[Run, Any]:
    """One step of one run; the run, and the epoch's metrics so far.

    begins: whether the step is the epoch's first. filled: whether the batch has a row; without one nothing happens.
    """
    step = make_step(objective, optimizer, micro_batches=plan.micro_batches, guard=plan.guard)
    state, metrics = step(run.state, batch)
    state = split_params(state, optimizer, plan)
    if filled is not True:
        old = run.state, jax.tree.map(jnp.zeros_like, metrics)
        state, metrics = jax.tree.map(functools.partial(jnp.where, filled), (state, metrics), old)
    if plan.guard:
        skipped = metrics["skipped"]
        first = jnp.where((skipped > 0) & (run.first_skipped < 0), run.state.step, run.first_skipped)
        run = run._replace(skipped=run.skipped + skipped, first_skipped=first)
    else:
        metrics["skipped"] = jnp.zeros((), jnp.int32)
    average = run.average
    if average is not None:  # as Adam does, so that the first average is the parameters, not the start
        rate = (1 - decay) / (1 - decay ** (run.state.step + 1))
        average = jax.tree.map(lambda old, new: old + rate.astype(old.dtype) * (new - old), average, state.params)
    run = run._replace(state=state, average=average)
    if begins is True:  # an epoch of one step has nothing to add up
        return run, metrics
    sums = jax.tree.map(lambda new, old: jnp.where(begins, new, old + new), metrics, run.sums)
    return run._replace(sums=sums), sums


def split_params(state: TrainState, optimizer: Any, plan: Plan) -> TrainState:
    """The state with its parameters, and what the optimizer keeps for each, split by the rule."""
    mesh, shard = plan.mesh, plan.shard
    if mesh is None or shard is None:
        return state
    specs = jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, shard(path, leaf)), state.params)
    params = jax.tree.map(lax.with_sharding_constraint, state.params, specs)
    kept = optax.tree.map_params(optimizer, lax.with_sharding_constraint, state.opt_state, specs)
    return state._replace(params=params, opt_state=kept)


@functools.partial(jax.jit, static_argnames=("optimizer", "plan", "averaged", "validated"))
def begin(
    params: Any, model_state: Any, seeds: Any, objective: Objective, settings: Any, data: Batch, orders: Any,
    *, optimizer: Any, plan: Plan, averaged: bool, validated: bool,
) -> Run:  # fmt: skip
    """The run, or runs, before the first step; traces one step, so that a bad objective is told here."""

    def one(params: Any, model_state: Any, seed: Any, order: Any, settings: Any) -> Run:
        mine, own = configured(objective, optimizer, settings)
        state = split_params(TrainState.create(params, own, model_state=model_state, seed=seed), own, plan)
        batch = data if order is None else select(data, order[0, 0], plan.layout, plan.mesh)
        _, metrics = jax.eval_shape(make_step(mine, own, micro_batches=plan.micro_batches), state, batch)
        zero = jnp.zeros((), jnp.int32)
        return Run(
            state=jax.tree.map(jnp.copy, state),  # the caller keeps his parameters when the run is donated
            average=jax.tree.map(_at_least_single, params) if averaged else None,
            sums=None if plan.layout.steps == 1 else jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics),
            best_params=jax.tree.map(jnp.copy, params) if validated else None,
            best_loss=jnp.full((), jnp.inf, jnp.float32) if validated else None,
            best_epoch=zero if validated else None,
            skipped=zero,
            first_skipped=zero - 1,
            active=jnp.array(True),
        )

    axes = (0, 0, 0, None if orders is None else 0, 0)
    return (jax.vmap(one, in_axes=axes) if plan.many else one)(params, model_state, seeds, orders, settings)


def _at_least_single(leaf: Any) -> jax.Array:
    """A copy in which an average does not stall."""
    return jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32))


def told_params(run: Run) -> Any:
    """The parameters that are evaluated and returned: the average, if there is one."""
    params = run.state.params
    return params if run.average is None else jax.tree.map(lambda a, p: a.astype(p.dtype), run.average, params)


def end_epoch(
    run: Run, objective: Objective, held_out: Batch | None, epoch: Any, limits: Limits, mesh: Mesh | None
) -> tuple[Run, Any]:
    """Evaluate, remember the best, and see whether patience has ended; the run and its validation loss."""
    params = told_params(run)
    active = run.active & (run.skipped < limits.max_skipped)
    if held_out is None:
        better, loss = run.active, run.best_loss
    else:
        loss = evaluate(objective, params, run.state, held_out, mesh).mean.astype(jnp.float32)
        better = run.active & (loss < run.best_loss)
    best_epoch = jnp.where(better, epoch, run.best_epoch)
    return run._replace(
        best_params=jax.tree.map(functools.partial(jnp.where, better), params, run.best_params),
        best_loss=jnp.where(better, loss, run.best_loss),
        best_epoch=best_epoch,
        active=active & (epoch - best_epoch < limits.patience),
    ), loss


def evaluate(objective: Objective, params: Any, state: TrainState, data: Batch, mesh: Mesh | None) -> Any:
    """The objective's sum over all rows, without its penalty."""
    objective, _ = penalty_of(objective)

    def part(batch: Batch) -> Any:
        return objective_sum(objective, params, batch, state.model_state, state.key, train=False)[0]

    return sums_of_parts(part, data, ROWS_PER_EVALUATION, mesh)


@functools.partial(jax.jit, static_argnames=("optimizer", "plan"), donate_argnames="run")
def train(
    run: Run,
    objective: Objective,
    settings: dict[str, Any],
    data: Batch,
    held_out: Batch | None,
    orders: Any,
    control: Any,
    decay: Any,
    *,
    optimizer: Any,
    plan: Plan,
) -> tuple[Run, jax.Array, dict[str, jax.Array]]:
    """Some steps, fewer if the run ends or meets something that is not finite.

    control: integers, in one array: epoch and position of the clock; the most steps; the epoch to end with; the first
        epoch of the orders; patience and the limit of skipped updates.

    Returns the run; (epoch, position, whether any run goes on, whether all was finite) as integers; the curves, one
    entry to an epoch ended in this call.
    """
    steps = plan.layout.steps
    clock, left, epochs, first, limits = Clock(*control[:2]), control[2], control[3], control[4], Limits(*control[5:])
    objective = jax.tree.map(jnp.asarray, objective)

    def member(run: Run, order: Any, settings: Any, data: Batch, begins: Any) -> tuple[Run, Any]:
        batch = data if order is None else select(data, order, plan.layout, plan.mesh)
        filled = True if order is None or not plan.layout.sparse else (order >= 0).any()
        return one_batch(run, *configured(objective, optimizer, settings), batch, decay, plan, begins, filled)

    def ended(run: Run, settings: Any, held_out: Batch | None, data: Batch, epoch: Any) -> tuple[Run, Any]:
        if "held_out" in settings:
            held_out = select(data, settings["held_out"][None], plan.layout._replace(ragged=True), None)
        return end_epoch(run, configured(objective, optimizer, settings)[0], held_out, epoch, limits, plan.mesh)

    if plan.many:
        member = jax.vmap(member, in_axes=(0, None if orders is None else 0, 0, None, None))
        ended = jax.vmap(ended, in_axes=(0, 0, None, None, None))

    def step(loop: Any) -> Any:
        place, run, curves = loop
        epoch, position = (place, 0) if steps == 1 else (place // steps, place % steps)
        order = None
        if orders is not None:
            number = ahead + epoch if orders.shape[1 if plan.many else 0] > 1 else 0
            order = orders[:, number, position] if plan.many else orders[number, position]
        run, sums = member(run, order, settings, data, steps == 1 or position == 0)
        told = means(sums)
        if validated:
            told["active"] = run.active
            run, told["validation_loss"] = (
                ended(run, settings, held_out, data, clock.epoch + epoch + 1)
                if steps == 1
                else lax.cond(
                    position == steps - 1,
                    lambda: ended(run, settings, held_out, data, clock.epoch + epoch + 1),
                    lambda: (run, jnp.zeros_like(run.best_loss)),
                )
            )
        curves = {name: curve.at[epoch].set(told[name]) for name, curve in curves.items()}
        return place + 1, run, curves

    def goes_on(run: Run) -> Any:
        """Whether a single run does; of many, those that do not are carried along."""
        on: Any = True
        if validated and not plan.many:
            on = on & run.active
        return on & (run.skipped < limits.max_skipped).any() if plan.guard else on

    def block(loop: Any) -> Any:
        place, run, _, curves = loop
        end = jnp.minimum(place + BLOCK, stop)
        late, after, drawn = lax.while_loop(lambda loop: (loop[0] < end) & goes_on(loop[1]), step, (place, run, curves))
        if plan.guard:
            return late, after, jnp.array(True), drawn
        losses = {name: jnp.moveaxis(curve, 0, -1) for name, curve in drawn.items() if name in totals}
        checked = after.sums, losses, after.state.params
        fine = ((jax.vmap(all_finite) if plan.many else all_finite)(checked) | ~run.active).all()  # of those going on
        new, old = (late, after, drawn), (place, run, curves)
        place, run, curves = jax.tree.map(functools.partial(jnp.where, fine), new, old)
        return place, run, fine, curves

    ahead = clock.epoch - first
    stop = clock.position + jnp.minimum(left, (epochs - clock.epoch) * steps - clock.position)
    validated = held_out is not None or plan.many
    names = ["loss", "skipped", *(["penalty"] if penalty_of(objective)[1] is not None else [])]
    totals = tuple(names)
    names += [*(["validation_loss"] if validated else []), *(["active"] if plan.many else [])]
    curves = {
        name: jnp.zeros((plan.capacity, *run.active.shape))
        for name in names
        if plan.guard or steps > 1 or name != "skipped"
    }
    place, run, fine, curves = lax.while_loop(
        lambda loop: (loop[0] < stop) & loop[2] & goes_on(loop[1]) & loop[1].active.any(),
        block,
        (clock.position + 0, run, jnp.array(True), curves),
    )
    going = (run.active & (run.skipped < limits.max_skipped)).any()
    status = jnp.stack([clock.epoch + place // steps, place % steps, going, fine]).astype(jnp.int32)
    return run, status, curves


def means(sums: dict[str, Any]) -> dict[str, Any]:
    """What the history holds of an epoch's metrics."""
    return {name: value.mean if isinstance(value, LossSum) else value for name, value in sums.items()}


@functools.partial(jax.jit, static_argnames=("optimizer", "plan"), donate_argnames="run")
def step_once(
    run: Run, objective: Objective, batch: Batch, decay: Any, begins: Any, *, optimizer: Any, plan: Plan
) -> tuple[Run, jax.Array]:
    """One guarded step on a batch that comes from outside; the run, and the number of updates skipped so far."""
    run, _ = one_batch(run, objective, optimizer, batch, decay, plan, begins, True)
    return run, run.skipped + 0


close_epoch = jax.jit(end_epoch, static_argnames="mesh", donate_argnames="run")
"""`end_epoch` on its own, for batches that come from outside."""
