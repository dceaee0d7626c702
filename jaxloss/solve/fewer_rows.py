"""Piecewise-linear losses of many rows: most rows only pull, to a side that is soon known.

A sample's solution tells the side of all rows but those near it. These few are solved for, with the pull of all others;
if none of those has changed its side, this is the solution of the whole (Portnoy and Koenker, Stat. Sci. 1997,
section 5: preprocessing). Else once more from there, and at last with every row.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.solve.descent import regress
from jaxloss.solve.design import Design, matmul, summed, unless
from jaxloss.solve.interior_point import Bounded, Dual, Rest, interior_point

__all__ = ["sample", "solve_piecewise_linear"]

Array = jax.Array
ROUNDS = 5
"""The sample, and how often its neighbourhood is solved anew."""


def sample(present: Array, size: int, dtype: Any) -> tuple[Array, Array]:
    """One row from each of so many stretches of as many present rows, at random: rows may come in any order.

    Also the share of the present rows that this is.
    """
    passed = jnp.cumsum(present.astype(dtype))
    places = (np.arange(size) + np.random.default_rng(0).uniform(size=size)) / size
    return jnp.searchsorted(passed, jnp.asarray(places, dtype) * passed[-1]), size / jnp.maximum(passed[-1], 1)


class _State(NamedTuple):
    dual: Dual  # of the rows that were solved for
    chosen: Array  # the places of these rows
    side: Array  # the dual variables of all others
    round: Array
    done: Array


def solve_piecewise_linear(design: Design, rows: Bounded, tolerance: float) -> Dual:
    """`interior_point` of all rows, by way of fewer where there are many."""
    total, count = design.rows.shape
    few = math.ceil((count * total) ** (2 / 3))
    if 4 * few > total:
        return interior_point(design, rows, tolerance)
    present = rows.high > rows.low
    length = jnp.linalg.norm(design.rows, axis=1)
    first, share = sample(present, few, design.rows.dtype)

    def round(state: _State) -> _State:
        early, phi = state.round == 0, state.dual.phi
        residual = matmul(design.rows, phi) - rows.target
        near = present & _smallest(jnp.where(present, jnp.abs(residual) / length, jnp.inf), few)
        chosen = jnp.searchsorted(jnp.cumsum(near), jnp.arange(1, few + 1))  # the first place that is none is `total`
        chosen = jnp.where(early, first, chosen)
        side = jnp.where(near | early, 0, jnp.where(residual > 0, rows.high, rows.low))
        rest = Rest(summed(side, design.rows), -jnp.sum(side * rows.target))
        part = design._replace(
            rows=design.rows.at[chosen].get(mode="fill", fill_value=0),
            penalty=jnp.where(early, share, 1) * design.penalty,
        )
        bounded = jax.tree.map(lambda leaf: leaf.at[chosen].get(mode="fill", fill_value=0), rows)
        dual = interior_point(part, bounded, tolerance, phi, rest)
        after = matmul(design.rows, dual.phi) - rows.target
        same = jnp.all(near | ~present | ((after > 0) == (residual > 0)))
        dual = dual._replace(number=state.dual.number + dual.number)
        return _State(dual, chosen, side, state.round + 1, ~early & same & (dual.gap <= tolerance) & dual.proved)

    part = design._replace(rows=design.rows[first], penalty=share * design.penalty)
    phi = regress(part, rows.target[first], present[first].astype(rows.target.dtype))
    nothing, number = jnp.zeros(few, phi.dtype), jnp.asarray(0)
    start = _State(
        Dual(phi, nothing, nothing, nothing[0], number, jnp.asarray(False)),
        first,
        jnp.zeros_like(rows.target),
        number,
        jnp.asarray(False),
    )
    state = lax.while_loop(lambda state: ~state.done & (state.round < ROUNDS), round, start)
    y, give = (
        whole.at[state.chosen].set(part, mode="drop")
        for whole, part in ((state.side, state.dual.y), (jnp.zeros_like(state.side), state.dual.give))
    )
    return unless(
        state.done,
        state.dual._replace(y=y, give=give),
        lambda bad: interior_point(design, rows._replace(target=rows.target * bad), tolerance),
    )


def _smallest(sizes: Array, few: int) -> Array:
    """Which non-negative sizes are the smallest, at most so many and nearly as many; their bits are in their order."""
    integer = jnp.int32 if sizes.dtype == jnp.float32 else jnp.int64
    bits = lax.bitcast_convert_type(sizes, integer)

    def narrower(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        fits = jnp.sum(bits <= middle) <= few
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    top = lax.bitcast_convert_type(jnp.asarray(jnp.inf, sizes.dtype), integer)
    return bits <= lax.fori_loop(0, 26, narrower, (jnp.asarray(-1, integer), top))[0]
