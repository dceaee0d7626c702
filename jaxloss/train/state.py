"""All that training changes, as one pytree."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

__all__ = ["TrainState"]


class TrainState(NamedTuple):
    """Everything training changes, as one pytree."""

    params: Any
    opt_state: Any
    model_state: Any
    """What the model carries beside its parameters (BatchNorm statistics, …); None if nothing."""
    key: jax.Array
    """The run's random key; the key of a step is this one folded with `step`."""
    step: jax.Array
    """Steps taken."""

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation, *, model_state: Any = None, seed: int = 0
    ) -> TrainState:
        """The state before the first step."""
        return cls(params, optimizer.init(params), model_state, jax.random.key(seed), jnp.zeros((), jnp.int32))
