"""Many fits in one compiled program: sweeps, ensembles, cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxloss.contract import ShapeError, check_loss, check_number, shown
from jaxloss.likelihood.distribution import Distribution
from jaxloss.likelihood.ensemble import Ensemble
from jaxloss.likelihood.joint import Mixture
from jaxloss.train.data import Layout, as_batch, count_rows, epoch_orders, screen
from jaxloss.train.epochs import Clock
from jaxloss.train.fitting import ALL_STEPS, check_batch_size, check_numbers, choose_objective, limits_of
from jaxloss.train.objective import Objective
from jaxloss.train.placement import automatic, place, returned, within
from jaxloss.train.sources import Arrays
from jaxloss.train.step import check_optimizer, check_params, whole

__all__ = ["FitManyResult", "ensemble_predict", "fit_many"]


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
    apply: Callable | None,
    params: Any,
    data: Any,
    *,
    loss: Callable | None = None,
    optimizer: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    epochs: int,
    batch_size: int | None = None,
    seeds: Any = None,
    rows: Any = None,
    loss_settings: Mapping[str, Any] | None = None,
    optimizer_settings: Mapping[str, Any] | None = None,
    validation: Any = None,
    validation_rows: Any = None,
    patience: int | None = None,
    objective: Objective | None = None,
    model_state: Any = None,
    micro_batches: int = 1,
    average: float | None = None,
    nonfinite: str = "error",
    max_skipped: int = 10,
    mesh: Mesh | None = None,
) -> FitManyResult:
    """Train K members at once, by `vmap`: each as `fit` would train it alone, with its own seed, rows and settings.

    params: with the members along the first axis of every leaf: `jax.vmap(init)(keys)`, or one model's copied K times.
        So too `model_state`.
    seeds: K integers, of the members' orders and random keys; default 0, 1, ….
    rows: integers of shape (K, n): the rows of `data` each member learns from, in any number of repetitions; −1 fills
        up a shorter list. Default: all. validation_rows: those it is validated on, in place of `validation`.
    loss_settings: settings of the loss, by name, each an array whose first axis is the members'. Given to `objective`
        as keywords if there is one.
    optimizer_settings: the same for the optimizer, which is then a function of them, such as `optax.adamw`.
    mesh: spreads the members over the devices of its one axis; nothing is communicated but whether to go on.

    The rest is that of `fit`. A member whose patience ends, or that has `max_skipped` updates skipped, is done and the
    others go on; the latter is told in a warning.

    >>> from jaxloss import huber
    >>> x = jnp.linspace(-1, 1, 64)
    >>> line = lambda params, x: params["slope"] * x + params["intercept"]
    >>> start = {"slope": jnp.zeros(3), "intercept": jnp.zeros(3)}
    >>> rates = {"learning_rate": jnp.array([0.01, 0.1, 0.3])}
    >>> result = fit_many(
    ...     line, start, (x, 3 * x + 2), loss=huber, optimizer=optax.sgd, optimizer_settings=rates, epochs=100
    ... )
    >>> result.history["loss"][:, -1].round(3).tolist()
    [1.077..., 0.00..., 0.0]
    """
    objective = choose_objective("fit_many", apply, loss, objective, stateful=model_state is not None)
    members = _members("fit_many", params, model_state)
    seeds = np.arange(members) if seeds is None else np.asarray(seeds)
    if not np.issubdtype(seeds.dtype, np.integer):
        raise TypeError(f"fit_many: seeds must be integers, got {seeds.dtype}")
    for what, values in (("loss_settings", loss_settings), ("optimizer_settings", optimizer_settings)):
        if not isinstance(values or {}, Mapping):
            raise TypeError(f"fit_many: {what} must be arrays by name, got {shown(values)}")
        for name, value in (values or {}).items():
            check_number("fit_many", name, value)
    given = {"loss": loss_settings or {}, "optimizer": optimizer_settings or {}}
    settings: dict[str, Any] = {
        kind: {name: value if isinstance(value, jax.Array) else np.asarray(value) for name, value in values.items()}
        for kind, values in given.items()
    }
    for name, values in {"seeds": seeds, **settings["loss"], **settings["optimizer"]}.items():
        if jnp.shape(values)[:1] != (members,):
            raise ShapeError(f"fit_many: {name} has shape {jnp.shape(values)}, but there are {members} members")
    if loss is not None and settings["loss"]:
        for member in range(members):
            check_loss(jax.tree_util.Partial(loss, **{name: value[member] for name, value in settings["loss"].items()}))
    if settings["optimizer"] and (isinstance(optimizer, optax.GradientTransformation) or not callable(optimizer)):
        raise TypeError("fit_many: with optimizer_settings, optimizer is a function of them, such as optax.adamw")
    if not settings["optimizer"]:
        check_optimizer("fit_many", optimizer)
    check_params("fit_many", params)
    given, mesh = mesh, automatic("fit_many", mesh)
    if mesh is not None and len(mesh.axis_names) != 1:
        raise ValueError(f"fit_many: the mesh needs one axis, that of the members, it has {mesh.axis_names}")
    batch = screen("data", as_batch("data", data), nonfinite)
    held_out = None if validation is None else screen("validation", as_batch("validation", validation), nonfinite)
    if validation is not None and validation_rows is not None:
        raise TypeError("fit_many: give validation or validation_rows, not both")
    validated = validation is not None or validation_rows is not None
    check_numbers("fit_many", epochs, patience, validated or None, average, max_skipped, micro_batches)
    chosen = _rows("rows", rows, members, batch)
    if validation_rows is not None:
        settings["held_out"] = _rows("validation_rows", validation_rows, members, batch)
    layout, orders = _drawn(batch, chosen, batch_size, seeds)

    def spread(tree: Any, axis: bool) -> Any:
        def put(leaf: Any) -> Any:
            if mesh is None:
                return jnp.asarray(leaf)
            (name,) = mesh.axis_names
            fill = -members % mesh.size if axis else 0  # the last member again: the devices have equally many
            repeated = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], fill, 0)]) if fill else leaf
            return place(repeated, mesh, PartitionSpec(name) if axis else PartitionSpec())

        return jax.tree.map(put, tree)

    limits = limits_of(patience, max_skipped)
    source = Arrays(
        objective, optimizer, None if held_out is None else spread(held_out, False), limits, average, None, None,
        data=spread(batch, False), layout=layout, epochs=epochs, micro_batches=micro_batches, orders=orders, many=True,
        settings=spread(settings, True), place_orders=lambda orders: spread(orders, True),
    )  # fmt: skip
    start = [spread(tree, True) for tree in (params, model_state, seeds.astype(np.uint32))]
    clock, going, parts = Clock(0, 0), True, []
    with within(mesh):
        run = source.begin(*start)
        while clock.epoch < epochs and going:
            run, clock, going, ended = source.advance(run, clock, ALL_STEPS, epochs)
            parts.append(ended)
        run = jax.tree.map(lambda leaf: leaf[:members], run._replace(state=None, sums=None, average=None))
    names = parts[0] if parts else {"loss": None, "skipped": None} | ({"validation_loss": None} if validated else {})
    empty = [np.zeros((0, members), np.float32)]
    curves = {name: np.concatenate([part[name] for part in parts] or empty)[:, :members].T for name in names}
    active = curves.pop("active", np.ones((members, 0))) > 0
    if not validated:
        curves.pop("validation_loss", None)
    _warn_of(np.asarray(run.skipped), max_skipped)
    history = {name: np.where(active, curve, np.nan) for name, curve in curves.items()}
    skipped = np.minimum(np.asarray(run.skipped), max_skipped)
    return FitManyResult(returned(run.best_params, given), history, np.asarray(run.best_epoch), skipped)


def _members(name: str, params: Any, model_state: Any = None) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((params, model_state))}
    if len(sizes) != 1 or () in sizes or (0,) in sizes:
        raise ShapeError(f"{name}: every leaf of params needs the members along its first axis, got {sorted(sizes)}")
    return next(iter(sizes))[0]


def _rows(name: str, rows: Any, members: int, batch: Any) -> np.ndarray | None:
    if rows is None:
        return None
    chosen, total = np.asarray(rows), count_rows(batch)
    if chosen.ndim != 2 or len(chosen) != members or not np.issubdtype(chosen.dtype, np.integer):
        raise ShapeError(
            f"fit_many: {name} must be integers of shape ({members}, n), got {chosen.dtype} of shape {chosen.shape}"
        )
    if chosen.size and not -1 <= chosen.min() <= chosen.max() < total:
        raise ValueError(f"fit_many: {name} must lie between −1 and {total - 1}, got {chosen.min()} to {chosen.max()}")
    if not (chosen >= 0).any(1).all():
        raise ValueError(f"fit_many: {name} of member {int(np.argmin((chosen >= 0).any(1)))} names no row")
    return chosen.astype(np.int32)


def _drawn(batch: Any, chosen: np.ndarray | None, batch_size: int | None, seeds: np.ndarray) -> tuple[Layout, Any]:
    """The layout, and the members' orders of some epochs: of shape (members, epochs, steps, 1, places)."""
    total = count_rows(batch)
    if chosen is None:
        size = check_batch_size(batch_size, batch)
        layout = Layout.of(total, size, 1)
        if layout.steps == 1:
            return layout, None
        return layout, lambda first, count, capacity: np.stack(
            [layout.orders(int(seed), first, count, capacity) for seed in seeds]
        )
    number = chosen.shape[1]
    size = number if batch_size is None else batch_size
    if not 1 <= whole("fit_many", "batch_size", size) <= number:
        raise ValueError(f"fit_many: batch_size={batch_size} must be between 1 and the number of rows, {number}")
    steps = -(-number // size)
    sizes = (chosen >= 0).sum(1)
    sparse = bool((-(-sizes // size) < steps).any())
    layout = Layout(1, total, (size,), steps, bool((chosen < 0).any()) or steps * size != number, sparse)
    if steps == 1:
        return layout, lambda first, count, capacity: chosen[:, None, None, None, :]

    def orders(first: int, count: int, capacity: int) -> np.ndarray:
        drawn = np.full((len(chosen), capacity, steps * size), -1, np.int32)
        for member, own in enumerate(chosen):
            present = own[own >= 0]
            for epoch, (order,) in enumerate(epoch_orders(int(seeds[member]), first, count, len(present))):
                drawn[member, epoch, : len(present)] = present[order]
        return drawn.reshape(len(chosen), capacity, steps, 1, size)

    return layout, orders


def _warn_of(skipped: np.ndarray, limit: int) -> None:
    lost = np.flatnonzero(skipped >= limit)
    if len(lost):
        named = ", ".join(map(str, lost[:5])) + (", …" if len(lost) > 5 else "")
        warnings.warn(
            f"fit_many: {len(lost)} of {len(skipped)} members were given up after {limit} updates that were not "
            f"finite: {named}; their params are the last that were evaluated",
            stacklevel=3,
        )


def ensemble_predict(apply: Callable, params: Any, x: Any) -> Distribution:
    """The prediction of an ensemble, as a distribution with `mean`, `variance`, `quantile` and the rest.

    apply: `apply(params, x) -> pred`. params: with the members along the first axis, as `fit_many` returns them.

    Of predictions that are numbers it is their `Ensemble`; of distributions the equally weighted `Mixture`, whose
    variance is that within the members plus that between them (Lakshminarayanan et al. 2017).

    >>> params = jnp.array([[1.0], [3.0]])
    >>> ensemble_predict(lambda params, x: x @ params, params, jnp.ones((5, 1))).mean.tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    _members("ensemble_predict", params)
    preds = jax.vmap(apply, in_axes=(0, None))(params, x)
    if isinstance(preds, jax.Array):
        return Ensemble.of(preds)
    if not isinstance(preds, Distribution):
        raise TypeError(f"ensemble_predict: apply must give an array or a distribution, got {shown(type(preds))}")
    components = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), preds)
    return Mixture(jnp.zeros_like(jax.tree.leaves(components)[0]), components)
