"""The compiled part of a fit: many steps in one program, evaluation and early stopping inside it.

Steps run in blocks. A block is run as if nothing could go wrong; one sum tells afterwards whether a loss or a parameter
was not finite. Then the block's start is kept, and the host has ever shorter parts run until the step is found, and it
alone skipped by the guarded step. So the guard costs nothing until it is needed, and every update that is applied is
computed by the same program, wherever a run was stopped. A large state has no copy: there each step looks at its own
gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding

from jaxloss.reduce import LossSum
from jaxloss.train.batch import Batch
from jaxloss.train.evaluation import evaluated_params
from jaxloss.train.mesh import select, sum_parts
from jaxloss.train.objective import objective_sum, split_penalty
from jaxloss.train.state import TrainState
from jaxloss.train.step import all_finite, make_step
from jaxloss.train.task import Control, Limits, Run, Start, Status, Task

__all__ = ["BLOCK", "begin", "close_epoch", "means", "step_once", "train"]

BLOCK = 128
"""Steps between two looks at whether all is finite."""

ROWS_PER_EVALUATION = 8192
"""Validation rows evaluated at once: a bound on memory."""


def take_step(run: Run, task: Task, batch: Batch, begins: Any, filled: Any = True) -> tuple[Run, Any]:
    """One step of one run; the run, and the epoch's metrics so far.

    begins: whether the step is the epoch's first. filled: whether the batch has a row; without one nothing happens.
    """
    plan = task.plan
    step = make_step(task.objective, task.optimizer, micro_batches=plan.micro_batches, guard=plan.guard)
    state, metrics = step(run.state, batch)
    state = split_params(state, task)
    if filled is not True:
        old = run.state, jax.tree.map(jnp.zeros_like, metrics)
        state, metrics = jax.tree.map(functools.partial(jnp.where, filled), (state, metrics), old)
    if plan.guard:
        skipped = metrics["skipped"]
        first = jnp.where((skipped > 0) & (run.first_skipped < 0), run.state.step, run.first_skipped)
        run = run._replace(skipped=run.skipped + skipped, first_skipped=first)
    else:
        metrics["skipped"] = jnp.zeros((), jnp.int32)
    run = run._replace(state=state)
    if begins is True:  # an epoch of one step has nothing to add up
        return run, metrics
    sums = jax.tree.map(lambda new, old: jnp.where(begins, new, old + new), metrics, run.sums)
    return run._replace(sums=sums), sums


def split_params(state: TrainState, task: Task) -> TrainState:
    """The state with its parameters, and what the optimizer keeps for each, split by the rule."""
    mesh, rule = task.plan.mesh, task.plan.rule
    if mesh is None or rule is None:
        return state
    specs = jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, rule(path, leaf)), state.params)
    params = jax.tree.map(lax.with_sharding_constraint, state.params, specs)
    kept = optax.tree.map_params(task.optimizer, lax.with_sharding_constraint, state.opt_state, specs)
    return state._replace(params=params, opt_state=kept)


@jax.jit
def begin(task: Task, start: Start, orders: Any) -> Run:
    """The run, or runs, before the first step; traces one step, so that a bad objective is told here."""
    plan = task.plan

    def one(start: Start, order: Any, settings: Any) -> Run:
        own = task.of_member(settings)
        state = TrainState.create(start.params, own.optimizer, model_state=start.model_state, seed=start.seed)
        state = split_params(state, own)
        batch = own.data if order is None else select(own.data, order[0, 0], plan.layout, plan.mesh)
        step = make_step(own.objective, own.optimizer, micro_batches=plan.micro_batches)
        _, metrics = jax.eval_shape(step, state, batch)
        zero, params = jnp.zeros((), jnp.int32), evaluated_params(state.params, state.opt_state)
        return Run(
            state=jax.tree.map(jnp.copy, state),  # the caller keeps his parameters when the run is donated
            sums=None if plan.layout.steps == 1 else jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics),
            best_params=jax.tree.map(jnp.copy, params) if task.validated else None,
            best_loss=jnp.full((), jnp.inf, jnp.float32) if task.validated else None,
            best_epoch=zero if task.validated else None,
            skipped=zero,
            first_skipped=zero - 1,
            active=jnp.array(True),
        )

    axes = (0, None if orders is None else 0, 0)
    return (jax.vmap(one, in_axes=axes) if plan.many else one)(start, orders, task.settings)


def end_epoch(run: Run, task: Task, epoch: Any, limits: Limits) -> tuple[Run, Any]:
    """Evaluate, remember the best, and see whether patience has ended; the run and its validation loss."""
    params = evaluated_params(run.state.params, run.state.opt_state)
    active = run.active & (run.skipped < limits.max_skipped)
    if task.held_out is None:
        better, loss = run.active, run.best_loss
    else:
        loss = evaluate(task, params, run.state).mean.astype(jnp.float32)
        better = run.active & (loss < run.best_loss)
    best_epoch = jnp.where(better, epoch, run.best_epoch)
    return run._replace(
        best_params=jax.tree.map(functools.partial(jnp.where, better), params, run.best_params),
        best_loss=jnp.where(better, loss, run.best_loss),
        best_epoch=best_epoch,
        active=active & (epoch - best_epoch < limits.patience),
    ), loss


def evaluate(task: Task, params: Any, state: TrainState) -> Any:
    """The objective's sum over all rows held out, without its penalty."""
    objective, _ = split_penalty(task.objective)
    assert task.held_out is not None

    def part(batch: Batch) -> Any:
        return objective_sum(objective, params, batch, state.model_state, state.key, train=False)[0]

    return sum_parts(part, task.held_out, ROWS_PER_EVALUATION, task.plan.mesh)


@functools.partial(jax.jit, donate_argnames="run")
def train(run: Run, task: Task, orders: Any, control: Any) -> tuple[Run, jax.Array, dict[str, jax.Array]]:
    """Some steps, fewer if the run ends or meets something that is not finite.

    control: a `Control`, packed. Returns the run, a `Status`, packed, and the curves, one entry to an epoch ended.
    """
    control, steps = Control(*control), task.plan.layout.steps
    task = dataclasses.replace(task, objective=jax.tree.map(jnp.asarray, task.objective))
    whole = (control.end - control.epoch) * steps - control.position
    stop = control.position + jnp.minimum(control.steps, whole)
    curves = {name: jnp.zeros((task.plan.capacity, *run.active.shape)) for name in _names_of_curves(task)}
    place, run, finite, curves = lax.while_loop(
        lambda loop: (loop[0] < stop) & loop[2] & _goes_on(loop[1], task, control) & loop[1].active.any(),
        _block_of_steps(task, orders, control, stop),
        (control.position + 0, run, jnp.array(True), curves),
    )
    going = (run.active & (run.skipped < control.max_skipped)).any()
    return run, Status(control.epoch + place // steps, place % steps, going, finite).pack(), curves


def _names_of_curves(task: Task) -> list[str]:
    penalized = split_penalty(task.objective)[1] is not None
    counts = bool(task.plan.guard) or task.plan.layout.steps > 1
    names = ["loss", *["skipped"] * counts, *["penalty"] * penalized, *["validation_loss"] * task.validated]
    return [*names, *["active"] * task.plan.many]


def _goes_on(run: Run, task: Task, control: Control) -> Any:
    """Whether a single run does; of many, those that do not are carried along."""
    on: Any = True
    if task.validated and not task.plan.many:
        on = on & run.active
    return on & (run.skipped < control.max_skipped).any() if task.plan.guard else on


def _block_of_steps(task: Task, orders: Any, control: Control, stop: Any) -> Callable[[Any], Any]:
    """From (place, run, _, curves) to the same after a block, or as it was if something was not finite."""
    step, plan = _step_in_loop(task, orders, control), task.plan
    every = jax.vmap(all_finite) if plan.many else all_finite

    def block(loop: Any) -> Any:
        place, run, _, curves = loop
        end = jnp.minimum(place + BLOCK, stop)
        late, after, drawn = lax.while_loop(
            lambda loop: (loop[0] < end) & _goes_on(loop[1], task, control), step, (place, run, curves)
        )
        if plan.guard:
            return late, after, jnp.array(True), drawn
        losses = {name: jnp.moveaxis(drawn[name], 0, -1) for name in ("loss", "penalty") if name in drawn}
        fine = (every((after.sums, losses, after.state.params)) | ~run.active).all()  # of those going on
        new, old = (late, after, drawn), (place, run, curves)
        place, run, curves = jax.tree.map(functools.partial(jnp.where, fine), new, old)
        return place, run, fine, curves

    return block


def _step_in_loop(task: Task, orders: Any, control: Control) -> Callable[[Any], Any]:
    """From (place, run, curves) to the same one step later; `place` counts from the start of the control's epoch."""
    plan, steps = task.plan, task.plan.layout.steps
    limits = Limits(control.patience, control.max_skipped)

    def advance(begins: Any, run: Run, order: Any, settings: Any) -> tuple[Run, Any]:
        own = task.of_member(settings)
        batch = own.data if order is None else select(own.data, order, plan.layout, plan.mesh)
        filled = True if order is None or not plan.layout.sparse else (order >= 0).any()
        return take_step(run, own, batch, begins, filled)

    def end(run: Run, settings: Any, epoch: Any) -> tuple[Run, Any]:
        own = task.of_member(settings)
        if "held_out" in settings:
            rows = select(own.data, settings["held_out"][None], plan.layout._replace(ragged=True), None)
            own = dataclasses.replace(own, held_out=rows)
        return end_epoch(run, own, epoch, limits)

    def step(loop: Any) -> Any:
        place, run, curves = loop
        epoch, position = (place, 0) if steps == 1 else (place // steps, place % steps)
        order: Any = None
        begins = steps == 1 or position == 0
        if orders is not None:
            number = control.epoch - control.drawn_from + epoch if orders.shape[1 if plan.many else 0] > 1 else 0
            order = orders[:, number, position] if plan.many else orders[number, position]

        def each(order: Any) -> tuple[Run, Any]:
            if not plan.many:
                return advance(begins, run, order, task.settings)
            axes = (0, None if order is None else 0, 0)
            return jax.vmap(functools.partial(advance, begins), in_axes=axes)(run, order, task.settings)

        if plan.layout.tail:
            last = position == steps - 1
            run, sums = lax.cond(last, lambda: each(order[..., : plan.layout.tail]), lambda: each(order))
        else:
            run, sums = each(order)
        told = means(sums)
        if task.validated:
            told["active"] = run.active

            def ended() -> tuple[Run, Any]:
                each = functools.partial(end, epoch=control.epoch + epoch + 1)
                return (jax.vmap(lambda run, own: each(run, own)) if plan.many else each)(run, task.settings)

            run, told["validation_loss"] = (
                ended()
                if steps == 1
                else lax.cond(position == steps - 1, ended, lambda: (run, jnp.zeros_like(run.best_loss)))
            )
        curves = {name: curve.at[epoch].set(told[name]) for name, curve in curves.items()}
        return place + 1, run, curves

    return step


def means(sums: dict[str, Any]) -> dict[str, Any]:
    """What the history holds of an epoch's metrics."""
    return {name: value.mean if isinstance(value, LossSum) else value for name, value in sums.items()}


@functools.partial(jax.jit, donate_argnames="run")
def step_once(run: Run, task: Task, batch: Batch, begins: Any) -> tuple[Run, jax.Array]:
    """One step on a batch that comes from outside; the run, and the number of updates skipped so far."""
    run, _ = take_step(run, task, batch, begins)
    return run, run.skipped + 0


close_epoch = jax.jit(end_epoch, donate_argnames="run")
"""`end_epoch` on its own, for batches that come from outside."""
