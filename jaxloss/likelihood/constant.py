"""The best constant prediction of a family: where training should begin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["best_constant"]

Array = jax.Array

STEPS = 30


@partial(jax.jit, static_argnums=0)
def best_constant(make: Callable[[Array], Any], start: Array, target: Array, weights: Array) -> Array:
    """The raw numbers whose distribution make(raw) is the likeliest for targets (rows, …), from a start.

    Newton's method, its steps turned downhill along directions of negative curvature and halved until they help, in
    units in which the diagonal of the Hessian is 1: raw numbers may be of very different sizes.
    """

    def objective(raw: Array) -> Array:
        dist = make(raw)
        return jnp.average(jax.vmap(lambda y: -dist._log_prob(y))(target), weights=weights)

    def step(raw: Array, _: None) -> tuple[Array, None]:
        gradient, hessian = jax.grad(objective)(raw), jax.hessian(objective)(raw)
        unit = lax.rsqrt(jnp.maximum(jnp.abs(jnp.diagonal(hessian)), jnp.finfo(raw.dtype).tiny))
        values, vectors = jnp.linalg.eigh(hessian * unit[:, None] * unit[None, :])
        along = (vectors.T @ (unit * gradient)) / jnp.maximum(jnp.abs(values), 1e-4)
        tried = raw[None, :] - (unit * (vectors @ along))[None, :] * jnp.append(2.0 ** -jnp.arange(16.0), 0)[:, None]
        found = jax.vmap(objective)(tried)
        return tried[jnp.argmin(jnp.where(jnp.isnan(found), jnp.inf, found))], None

    return lax.scan(step, start, length=STEPS)[0]
