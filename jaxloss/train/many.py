"""Many fits in one compiled program: sweeps, ensembles, cross-validation."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxloss.contract import ShapeError, check_loss, check_number, shown
from jaxloss.train.batch import as_batch, screen
from jaxloss.train.checks import (
    MANY,
    Settings,
    check_batch_size,
    check_optimizer,
    check_params,
    choose_objective,
    read_batch_size,
    recall_loss,
)
from jaxloss.train.mesh import Placement
from jaxloss.train.objective import has_statistics
from jaxloss.train.order import Layout, Shuffle
from jaxloss.train.sources import ArraySource
from jaxloss.train.task import Clock, Plan, Start, Task

__all__ = ["FitManyResult", "fit_many"]


class FitManyResult(NamedTuple):
    """What `fit_many` returns; everything has the members along its first axis."""

    params: Any
    """Of each member the best parameters by validation loss, or its last ones if there is no validation data."""
    history: dict[str, np.ndarray]
    """The columns of `fit`'s history, of shape (members, epochs); NaN after a member's end."""
    best_epoch: np.ndarray
    """The epoch each member's parameters are from, counted from 1; 0 means the initial ones."""
    skipped: np.ndarray
    """The number of updates skipped because something was not finite."""


def fit_many(
    apply: Callable,
    params: Any,
    data: Any,
    *,
    loss: Callable | None = None,
    optimizer: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    epochs: int,
    batch_size: int | tuple[int, int] | None = None,
    seeds: Any = None,
    rows: Any = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    validation: Any = None,
    patience: int | None = None,
    model_state: Any = None,
    nonfinite: str = "error",
    max_skipped: int = 10,
    sharding: Mesh | None = None,
) -> FitManyResult:
    """Train K members at once, by `vmap`: each as `fit` would train it alone, with its own seed, rows and settings.

    params: with the members along the first axis of every leaf: `jax.vmap(init)(keys)`, or one model's copied K times.
        So too `model_state`.
    seeds: K integers, of the members' orders and random keys; default 0, 1, ….
    rows: integers of shape (K, n): the rows of `data` each member learns from, in any number of repetitions; −1 fills
        up a shorter list. Default: all.
    settings: `{"loss": …, "optimizer": …}`, each by name arrays whose first axis is the members'. The loss, or the
        objective if there is none, is given its own as keywords; the optimizer is a function of its own, such as
        `optax.adamw`.
    validation: rows that all members share, as of `fit`; or integers of shape (K, m), as `rows`: those of `data` that
        each is validated on.
    sharding: a mesh, over the devices of whose one axis the members are spread; nothing is communicated but whether to
        go on.

    The rest is that of `fit`. A member whose patience ends, or that has `max_skipped` updates skipped, is done and the
    others go on; the latter is told in a warning.

    >>> from jaxloss import huber
    >>> x = jnp.linspace(-1, 1, 64)
    >>> line = lambda params, x: params["slope"] * x + params["intercept"]
    >>> start = {"slope": jnp.zeros(3), "intercept": jnp.zeros(3)}
    >>> rates = {"learning_rate": jnp.array([0.01, 0.1, 0.3])}
    >>> result = fit_many(
    ...     line, start, (x, 3 * x + 2), loss=huber, optimizer=optax.sgd, settings={"optimizer": rates}, epochs=100
    ... )
    >>> result.history["loss"][:, -1].round(3).tolist()
    [1.077..., 0.00..., 0.0]
    """
    size, micro_batches = read_batch_size("fit_many", batch_size)
    numbers = Settings(epochs, patience, micro_batches, nonfinite, max_skipped, size)
    numbers.check("fit_many", validated=validation is not None)
    objective = choose_objective("fit_many", apply, loss, stateful=model_state is not None)
    members = _count_members(params, model_state)
    seeds = np.arange(members) if seeds is None else np.asarray(seeds)
    if not np.issubdtype(seeds.dtype, np.integer):
        raise TypeError(f"fit_many: seeds must be integers, got {seeds.dtype}")
    own = _settings_of_members(members, loss, settings, seeds)
    if own["optimizer"] and (isinstance(optimizer, optax.GradientTransformation) or not callable(optimizer)):
        raise TypeError("fit_many: with settings of its own, optimizer is a function of them, such as optax.adamw")
    if not own["optimizer"]:
        check_optimizer("fit_many", optimizer)
    check_params("fit_many", params)
    placement = Placement.of("fit_many", sharding)
    if placement.mesh is not None and len(placement.mesh.axis_names) != 1:
        raise ValueError(f"fit_many: the mesh needs one axis, that of the members, it has {placement.mesh.axis_names}")
    batch = screen("data", as_batch("data", data), nonfinite)
    held_out = None
    if isinstance(validation, np.ndarray | jax.Array):
        own["held_out"] = _check_rows("validation", validation, members, batch.rows)
    elif validation is not None:
        held_out = screen("validation", as_batch("validation", validation), nonfinite)
    filled = functools.partial(_fill_devices, placement)
    pads = not has_statistics(model_state)
    if rows is None:
        layout = Layout.of(batch.rows, check_batch_size("fit_many", size, batch.rows), 1, pads=pads)
        shuffle = None if layout.steps == 1 else Shuffle.of(layout, filled(seeds))
    else:
        chosen = _check_rows("rows", rows, members, batch.rows)
        layout = _layout_of_chosen(chosen, check_batch_size("fit_many", size, chosen.shape[1]), pads)
        shuffle = Shuffle.of(layout, filled(seeds), filled(chosen))

    share, spread = (functools.partial(_put, placement, split) for split in (False, True))
    task = Task(
        objective,
        spread(own),
        share(batch),
        share(held_out),
        optimizer,
        Plan(micro_batches, layout=layout, many=True),
    )
    source = ArraySource(task, numbers.limits, shuffle, placement, epochs)
    start = Start(*(spread(tree) for tree in (params, model_state, seeds.astype(np.uint32))))
    clock, going, parts = Clock(0, 0), True, []
    with placement.activate():
        with recall_loss("fit_many", loss):
            run = source.begin(start)
        while clock.epoch < epochs and going:
            run, clock, going, ended = source.advance(run, clock, MANY, epochs)
            parts.append(ended)
        run = jax.tree.map(lambda leaf: leaf[:members], run._replace(state=None, sums=None))
    skipped = np.minimum(np.asarray(run.skipped), max_skipped)
    _warn_of_lost(skipped, max_skipped)
    history = _history(parts, members, validation is not None)
    return FitManyResult(placement.give_back(run.best_params), history, np.asarray(run.best_epoch), skipped)


def _put(placement: Placement, split: bool, tree: Any) -> Any:
    """The tree on the devices, whose members, if split, go to one device each in turn."""

    def put(leaf: Any) -> Any:
        if placement.mesh is None:
            return jnp.asarray(leaf)
        if not split:
            return placement.put(leaf)
        return placement.put(_fill_devices(placement, leaf), *placement.mesh.axis_names)

    return jax.tree.map(put, tree)


def _fill_devices(placement: Placement, leaf: Any) -> Any:
    """The members with the last again, so that the devices have equally many."""
    fill = 0 if placement.mesh is None else -len(leaf) % placement.mesh.size
    return (np if isinstance(leaf, np.ndarray) else jnp).concatenate([leaf, *[leaf[-1:]] * fill]) if fill else leaf


def _history(parts: list[dict[str, np.ndarray]], members: int, validated: bool) -> dict[str, np.ndarray]:
    """The curves of the members, NaN after the end of each."""
    names = parts[0] if parts else ("loss", "skipped", "validation_loss")
    empty = [np.zeros((0, members), np.float32)]
    curves = {name: np.concatenate([part[name] for part in parts] or empty)[:, :members].T for name in names}
    active = curves.pop("active", np.ones((members, 0))) > 0
    if not validated:
        curves.pop("validation_loss", None)
    return {name: np.where(active, curve, np.nan) for name, curve in curves.items()}


def _settings_of_members(
    members: int, loss: Any, given: Mapping[str, Mapping[str, Any]] | None, seeds: np.ndarray
) -> dict[str, Any]:
    """The settings by kind and name as arrays; raises for those that are not the members'."""
    settings: dict[str, Any] = {"loss": {}, "optimizer": {}}
    if not isinstance(given or {}, Mapping) or not {*(given or {})} <= settings.keys():
        raise TypeError(f"fit_many: settings must be those of 'loss' and of 'optimizer', got {shown(given)}")
    for kind, values in (given or {}).items():
        if not isinstance(values, Mapping):
            raise TypeError(f"fit_many: settings of {kind!r} must be arrays by name, got {shown(values)}")
        for name, value in values.items():
            check_number("fit_many", name, value)
            settings[kind][name] = value if isinstance(value, jax.Array) else np.asarray(value)
    for name, values in {"seeds": seeds, **settings["loss"], **settings["optimizer"]}.items():
        if jnp.shape(values)[:1] != (members,):
            raise ShapeError(f"fit_many: {name} has shape {jnp.shape(values)}, but there are {members} members")
    if loss is not None and settings["loss"]:
        for member in range(members):
            check_loss(jax.tree_util.Partial(loss, **{name: value[member] for name, value in settings["loss"].items()}))
    return settings


def _count_members(params: Any, model_state: Any) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((params, model_state))}
    if len(sizes) != 1 or () in sizes or (0,) in sizes:
        raise ShapeError(f"fit_many: every leaf of params needs the members along its first axis, got {sorted(sizes)}")
    return next(iter(sizes))[0]


def _check_rows(name: str, rows: Any, members: int, total: int) -> np.ndarray:
    """The members' rows; raises for what is not that."""
    chosen = np.asarray(rows)
    if chosen.ndim != 2 or len(chosen) != members or not np.issubdtype(chosen.dtype, np.integer):
        raise ShapeError(
            f"fit_many: {name} must be integers of shape ({members}, n), got {chosen.dtype} of shape {chosen.shape}"
        )
    if chosen.size and not -1 <= chosen.min() <= chosen.max() < total:
        raise ValueError(f"fit_many: {name} must lie between −1 and {total - 1}, got {chosen.min()} to {chosen.max()}")
    if not (chosen >= 0).any(1).all():
        raise ValueError(f"fit_many: {name} of member {int(np.argmin((chosen >= 0).any(1)))} names no row")
    return chosen.astype(np.int32)


def _layout_of_chosen(chosen: np.ndarray, size: int, pads: bool) -> Layout:
    """The layout where every member has rows of its own."""
    number, sizes = chosen.shape[1], (chosen >= 0).sum(1)
    steps = -(-number // size)
    if not pads:
        if len(set(sizes.tolist())) > 1:
            raise ValueError(f"fit_many: members with batch statistics need equally many rows, got {sizes.tolist()}")
        return Layout.of(number, size, 1, pads=False)
    sparse = bool((-(-sizes // size) < steps).any())
    return Layout(1, number, (size,), steps, bool((chosen < 0).any()) or steps * size != number, sparse)


def _warn_of_lost(skipped: np.ndarray, limit: int) -> None:
    lost = np.flatnonzero(skipped >= limit)
    if len(lost):
        named = ", ".join(map(str, lost[:5])) + (", …" if len(lost) > 5 else "")
        warnings.warn(
            f"fit_many: {len(lost)} of {len(skipped)} members were given up after {limit} updates that were not "
            f"finite: {named}; their params are the last that were evaluated",
            stacklevel=3,
        )
