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

from jaxloss.numerics.order import smallest
from jaxloss.numerics.stages import FEW_ROWS, is_concrete, stage, unless, while_loop
from jaxloss.solve.design import Design, matmul, summed
from jaxloss.solve.interior_point import Dual, Rest, interior_point
from jaxloss.solve.newton import regress
from jaxloss.solve.vertex import Bounded

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
    going: Array


class _Part(NamedTuple):
    """The rows to be solved for, and the sides of all others."""

    design: Design
    rows: Bounded
    rest: Rest
    chosen: Array
    side: Array
    near: Array
    above: Array  # which rows lie above their target


def solve_piecewise_linear(design: Design, rows: Bounded, tolerance: float) -> Dual:
    """`interior_point` of all rows, by way of fewer where there are many."""
    total, count = design.rows.shape
    few = math.ceil((count * total) ** (2 / 3))
    if 4 * few > total or (is_concrete(rows) and total <= FEW_ROWS):  # compiling the rounds costs more than they save
        return interior_point(design, rows, tolerance)
    first, share, start = _first(design, rows, few)

    def round(state: _State) -> _State:
        part = _choose(design, rows, state, first, share)
        dual = interior_point(part.design, part.rows, tolerance, True, state.dual.phi, part.rest)
        return _check(design, rows, part, state, dual, tolerance)

    state = while_loop(lambda state: state.going, round, start)

    def every(bad: Array) -> Dual:
        return interior_point(design, rows._replace(target=rows.target * bad), tolerance)

    return unless(state.done, _of_all(state), every)


@stage(2)
def _first(design: Design, rows: Bounded, few: int) -> tuple[Array, Array, _State]:
    """A sample's places and its share of the rows, and the state before it is solved for."""
    present = rows.high > rows.low
    first, share = sample(present, few, design.rows.dtype)
    part = design._replace(rows=design.rows[first], penalty=share * design.penalty)
    phi = regress(part, rows.target[first], present[first].astype(rows.target.dtype))
    nothing, number = jnp.zeros(few, phi.dtype), jnp.asarray(0)
    dual = Dual(phi, nothing, nothing, jnp.asarray(jnp.inf, phi.dtype), number, jnp.asarray(False))
    return first, share, _State(dual, first, jnp.zeros_like(rows.target), number, jnp.asarray(False), jnp.asarray(True))


@stage()
def _choose(design: Design, rows: Bounded, state: _State, first: Array, share: Array) -> _Part:
    """The sample at first; later the rows nearest to the last fit, with the pull of all others."""
    early, few = state.round == 0, len(first)
    present = rows.high > rows.low
    residual = matmul(design.rows, state.dual.phi) - rows.target
    away = jnp.where(present, jnp.abs(residual) / jnp.linalg.norm(design.rows, axis=1), jnp.inf)
    near = present & smallest(away, few)
    chosen = jnp.searchsorted(jnp.cumsum(near), jnp.arange(1, few + 1))  # the first place that is none is past the end
    chosen = jnp.where(early, first, chosen)
    side = jnp.where(near | early, 0, jnp.where(residual > 0, rows.high, rows.low))
    rest = Rest(summed(side, design.rows), -jnp.sum(side * rows.target))
    part = design._replace(
        rows=design.rows.at[chosen].get(mode="fill", fill_value=0),
        penalty=jnp.where(early, share, 1) * design.penalty,
    )
    bounded = jax.tree.map(lambda leaf: leaf.at[chosen].get(mode="fill", fill_value=0), rows)
    return _Part(part, bounded, rest, chosen, side, near | ~present, residual > 0)


@stage(5, light=True)
def _check(design: Design, rows: Bounded, part: _Part, state: _State, dual: Dual, tolerance: float) -> _State:
    """Whether a row that was left out has changed its side."""
    above = matmul(design.rows, dual.phi) - rows.target > 0
    done = (state.round > 0) & jnp.all(part.near | (above == part.above)) & (dual.gap <= tolerance)
    dual = dual._replace(number=state.dual.number + dual.number)
    after = state.round + 1
    return _State(dual, part.chosen, part.side, after, done, ~done & (after < ROUNDS))


@stage(light=True)
def _of_all(state: _State) -> Dual:
    """The solution of all rows, from that of the chosen ones."""
    y, give = (
        whole.at[state.chosen].set(part, mode="drop")
        for whole, part in ((state.side, state.dual.y), (jnp.zeros_like(state.side), state.dual.give))
    )
    return state.dual._replace(y=y, give=give)
