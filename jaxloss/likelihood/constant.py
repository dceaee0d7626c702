"""The best constant prediction of a family: where training should begin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["best_constant", "moments"]

Array = jax.Array

STEPS = 30
"""Steps of Newton's method. None makes the objective worse, so that those past convergence cost only time."""
DAMPINGS = np.append(0, 4.0 ** np.arange(-6, 9))
"""Tried at each step beside the pure step of Newton; in units in which the diagonal of the Hessian is 1."""


def moments(column: Array, weights: Array) -> tuple[Array, Array]:
    """The weighted mean and variance of a column."""
    mean = jnp.average(column, 0, weights)
    return mean, jnp.average(jnp.square(column - mean[None]), 0, weights)


@partial(jax.jit, static_argnums=0)
def best_constant(make: Callable[[Array], Any], start: Array, target: Array, weights: Array) -> Array:
    """The raw numbers whose distribution make(raw) is the likeliest for targets (rows, …), from a start.

    Newton's method with the best of several dampings (Levenberg, 1944), in units in which the diagonal of the Hessian
    is 1: raw numbers may be of very different sizes.
    """

    def objective(raw: Array) -> Array:
        dist = make(raw)
        return jnp.average(jax.vmap(lambda y: -dist._log_prob(y))(target), weights=weights)

    def step(raw: Array, _: None) -> tuple[Array, None]:
        gradient, hessian = jax.grad(objective)(raw), jax.hessian(objective)(raw)
        unit = lax.rsqrt(jnp.maximum(jnp.abs(jnp.diagonal(hessian)), jnp.finfo(raw.dtype).tiny))
        scaled = hessian * unit[:, None] * unit[None, :]

        def damped(damping: Array) -> Array:
            return raw - unit * jnp.linalg.solve(scaled + damping * jnp.eye(len(raw), dtype=raw.dtype), unit * gradient)

        tried = jnp.concatenate([raw[None, :], jax.vmap(damped)(jnp.asarray(DAMPINGS, raw.dtype))])
        found = jax.vmap(objective)(tried)
        return tried[jnp.argmin(jnp.where(jnp.isnan(found), jnp.inf, found))], None

    return lax.scan(step, start, length=STEPS)[0]
