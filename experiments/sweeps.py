"""Many fits in one compiled program, over learning rates and seeds, and what they come to on average."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxloss.train import Batch, TrainState, fit_many, make_step


def train_at_rates(
    objective: Any, params: Any, batch: Batch, optimizer: Callable, rates: Sequence[float], steps: int
) -> tuple[Any, np.ndarray]:
    """Full-batch training at several learning rates at once: last parameters, and losses of shape (rates, steps).

    objective: as `supervised` makes it. optimizer: from a learning rate to an optax optimizer.
    The loss of a step is that before it.
    """
    params, losses = _train_at_rates(
        objective, params, batch, jnp.asarray(rates, jnp.float32), optimizer=optimizer, steps=steps
    )
    return params, np.asarray(losses)


@functools.partial(jax.jit, static_argnames=("optimizer", "steps"))
def _train_at_rates(objective: Any, params: Any, batch: Batch, rates: Any, *, optimizer: Callable, steps: int) -> Any:
    def train(rate: Any) -> Any:
        chosen = optimizer(rate)
        step = make_step(objective, chosen, guard=False)  # a rate that diverges is to be seen

        def one(state: TrainState, _: Any) -> Any:
            state, metrics = step(state, batch)
            return state, metrics["loss"].mean

        state, losses = jax.lax.scan(one, TrainState.create(params, chosen), None, length=steps)
        return state.params, losses

    return jax.vmap(train)(rates)


def grid(rates: Sequence[float], seeds: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The learning rate and the seed of each member of a sweep, every rate with seeds first, first + 1, …"""
    return np.repeat(np.float32(rates), seeds), np.tile(np.arange(first, first + seeds), len(rates))


@functools.cache  # the same object for the same number, so that `fit_many` compiles once
def decaying_adam(steps: int, warmup: int = 1) -> Callable[..., optax.GradientTransformation]:
    """Adam whose learning rate goes to 0 along a cosine, as a function of its highest, as `fit_many` wants it.

    warmup: in the first steps it is lower, and rises in proportion to their number.
    """

    def optimizer(learning_rate: Any) -> optax.GradientTransformation:
        decay = optax.cosine_decay_schedule(learning_rate, steps)
        return optax.adam(lambda step: decay(step) * jnp.minimum((step + 1) / warmup, 1))

    return optimizer


class Sweep(NamedTuple):
    """What `fit_seeds` found."""

    params: Any
    """Of every seed at the chosen rate, along the first axis of the leaves."""
    rate: float
    validation: np.ndarray
    """The best validation loss of every fit, of shape (rates, seeds)."""


def fit_seeds(
    apply: Callable, starts: Sequence[Any], data: Any, rows: Sequence[np.ndarray], *,
    loss: Callable | None = None, rates: Sequence[float], epochs: int, batch_size: int,
    first: int = 0,
) -> Sweep:  # fmt: skip
    """Fit from every start at every learning rate, in one program; the rate with the lowest mean validation loss.

    starts: parameters, one tree a seed. rows: the training and the validation rows of each seed, of shape (seeds, n).
    rates: of Adam, decaying to 0. first: the seed of the first start's order.
    """
    chosen, numbers = grid(rates, len(starts), first)
    found = fit_many(
        apply,
        jax.tree.map(lambda *leaves: jnp.stack(leaves * len(rates)), *starts),
        data,
        loss=loss,
        optimizer=decaying_adam(epochs * -(-rows[0].shape[1] // batch_size)),
        settings={"optimizer": {"learning_rate": chosen}},
        seeds=numbers,
        rows=np.tile(rows[0], (len(rates), 1)),
        validation=np.tile(rows[1], (len(rates), 1)),
        epochs=epochs,
        batch_size=batch_size,
    )
    lowest = np.nanmin(found.history["validation_loss"], axis=1).reshape(len(rates), len(starts))
    best = int(np.argmin(np.nan_to_num(lowest.mean(1), nan=np.inf)))
    params = jax.tree.map(lambda leaf: leaf[best * len(starts) :][: len(starts)], found.params)
    return Sweep(params, float(rates[best]), lowest)


@functools.partial(jax.jit, static_argnums=0)
def predict_seeds(apply: Callable, params: Any, x: Any) -> jax.Array:
    """The predictions of every seed's parameters for its own rows."""
    return jax.vmap(apply)(params, x)


class Estimate(NamedTuple):
    """A mean over seeds and its standard error."""

    mean: float
    error: float
    """NaN of fewer than two."""

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Estimate:
        values, count = np.asarray(values, np.float64), len(values)
        return cls(float(values.mean()), float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan"))

    def __str__(self) -> str:
        """Both to the error's first digit."""
        if not 0 < self.error < np.inf:
            return f"{self.mean:.4g}"
        places = max(0, -int(f"{self.error:.0e}".split("e")[1]))
        return f"{self.mean:,.{places}f}±{self.error:.{places}f}"

    @property
    def beyond_chance(self) -> bool:
        """Above zero by more than two standard errors."""
        return self.mean > 2 * self.error


def print_rates(rates: dict[str, float]) -> None:
    """The learning rate chosen for each loss."""
    print("learning rates: " + ", ".join(f"{name} {rate:g}" for name, rate in rates.items()))
