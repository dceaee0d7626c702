"""At which parameters a run is evaluated: some optimizers step others than those that are meant to be used.

These are validated, remembered as the best, and returned. An optimizer says so by its state: `average_params`,
`optax.contrib.schedule_free` and `optax.lookahead` are known, another one's state has a method `evaluated(params)`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from jaxloss.contract import shown
from jaxloss.train.checks import check_optimizer

__all__ = ["average_params", "differentiated_params", "evaluated_params"]


@runtime_checkable
class Evaluated(Protocol):
    """A state of an optimizer, or a part of one, that knows the parameters to evaluate."""

    def evaluated(self, params: Any) -> Any:
        """Those to evaluate while `params` are stepped."""


def evaluated_params(params: Any, opt_state: Any) -> Any:
    """The parameters that are validated and returned: the optimizer's, if it has others than those it steps."""
    if isinstance(params, optax.LookaheadParams):
        params = params.slow

    def knows(node: Any) -> bool:
        return isinstance(node, optax.contrib.ScheduleFreeState) or _is_evaluated(type(node))

    for part in jax.tree.leaves(opt_state, is_leaf=knows):
        if isinstance(part, optax.contrib.ScheduleFreeState):
            return optax.contrib.schedule_free_eval_params(part, params)
        if _is_evaluated(type(part)):
            return part.evaluated(params)
    return params


@functools.cache
def _is_evaluated(kind: type) -> bool:
    """Whether nodes of this type are; asking a protocol of every leaf would take longer than forty steps."""
    return issubclass(kind, Evaluated)


def differentiated_params(params: Any) -> Any:
    """The parameters at which the gradient is taken: of a pair for `optax.lookahead` the fast ones."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


class AverageState(NamedTuple):
    """The state of `average_params`."""

    inner: Any
    average: Any
    steps: jax.Array

    def evaluated(self, params: Any) -> Any:
        """The average, in the parameters' types."""
        return jax.tree.map(lambda average, leaf: average.astype(leaf.dtype), self.average, params)


def average_params(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformationExtraArgs:
    """The optimizer with a moving average of the parameters beside it, which is evaluated and returned.

    The average after n steps is Σ decay^(n−i)·pᵢ / Σ decay^(n−i) over the parameters after each step: as in Adam, it
    owes nothing to the start. It is kept in float32 at least, where it does not stall.

    >>> optimizer = average_params(optax.sgd(1.0), 0.5)
    >>> state, params = optimizer.init(jnp.zeros(())), jnp.zeros(())
    >>> for _ in range(2):
    ...     updates, state = optimizer.update(jnp.ones(()), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> float(params), round(float(evaluated_params(params, state)), 4)
    (-2.0, -1.6667)
    """
    check_optimizer("average_params", optimizer)
    if not (isinstance(decay, float | int) and 0 <= decay < 1):
        raise ValueError(f"average_params: decay must be at least 0 and less than 1, got {shown(decay)}")
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> AverageState:
        def copy(leaf: Any) -> jax.Array:
            return jnp.array(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32))

        return AverageState(inner.init(params), jax.tree.map(copy, params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, AverageState]:
        updates, kept = inner.update(updates, state.inner, params, **extra_args)
        steps = state.steps + 1
        rate = (1 - decay) / (1 - jnp.asarray(decay, jnp.float32) ** steps)

        def mix(old: jax.Array, new: jax.Array) -> jax.Array:
            return old + rate.astype(old.dtype) * (new - old)

        average = jax.tree.map(mix, state.average, optax.apply_updates(params, updates))
        return updates, AverageState(kept, average, steps)

    return optax.GradientTransformationExtraArgs(init, update)
