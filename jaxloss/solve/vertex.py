"""From vertex to vertex of a piecewise-linear objective, along edges that descend, with residuals in pairs of floats.

This is the simplex method of Barrodale and Roberts (SIAM J. Numer. Anal. 1973). A vertex meets as many rows as there
are coordinates; it is the minimum if the dual variables of these rows, which balance the pulls of all others, lie
inside their bounds. If one does not, its row is let go, and the edge followed across as many kinks as it descends.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.numerics.order import place_of_mass
from jaxloss.numerics.pairs import Pair, add
from jaxloss.solve.design import matmul, matmul_of_pairs, summed, summed_in_pairs

__all__ = ["Bounded", "Vertex", "descend_along_edges", "independent_rows"]

Array = jax.Array
STEPS = 200


class Bounded(NamedTuple):
    """Rows with loss max over low ≤ y ≤ high of y·(prediction − target)."""

    target: Array
    low: Array
    high: Array


class Vertex(NamedTuple):
    """Parameters as an unevaluated sum, the objective and the dual variables there, and which rows are met.

    good: whether the dual variables prove it the minimum. degenerate: whether more rows are met than are needed.
    """

    params: Pair
    value: Array
    y: Array
    met: Array
    number: Array
    good: Array
    degenerate: Array


class _State(NamedTuple):
    vertex: Vertex
    chosen: Array
    """The rows that are met, one a coordinate."""
    moved: Array
    """Whether the last step went to another vertex."""
    done: Array


def independent_rows(basis: Array, give: Array) -> Array:
    """As many rows of the basis as it has coordinates, chosen by elimination: first those that give way most."""
    count, eps = basis.shape[1], jnp.finfo(basis.dtype).eps
    give = jnp.maximum(give, eps * eps * jnp.max(give))  # rows at a bound give way by nothing, and can be needed still
    weighted = basis * jnp.sqrt(give)[:, None]
    # Of a row that depends on the chosen ones only rounding is left, which can be more than all of a light row.
    rounding = jnp.square(64 * eps) * jnp.sum(weighted * weighted, axis=1)

    def choose(place: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        left, frame, chosen = state
        sizes = jnp.sum(left * left, axis=1)
        row = jnp.argmax(jnp.where(sizes > rounding, sizes, 0))
        vector = left[row]
        for _ in range(2):  # against rounding
            vector = vector / jnp.maximum(jnp.linalg.norm(vector), jnp.finfo(vector.dtype).tiny)
            vector = vector - matmul(frame.T, matmul(frame, vector))
        left = left - matmul(left, vector)[:, None] * vector[None]
        return left.at[row].set(0), frame.at[place].set(vector), chosen.at[place].set(row)

    return lax.fori_loop(
        0, count, choose, (weighted, jnp.zeros_like(basis[:count], shape=(count, count)), jnp.zeros(count, int))
    )[2]


def descend_along_edges(rows: Bounded, columns: Pair, back: Array, active: Array, params: Array, give: Array) -> Vertex:
    """The minimum of Σ max y·r, from a vertex near the parameters, at rows that `give` way most.

    columns: (n, p) each. back: from coordinates in a well-conditioned basis to parameters; active: those that count.
    """
    eps, count, width = jnp.finfo(params.dtype).eps, len(params), rows.high - rows.low
    transposed = columns[0].T, columns[1].T
    present, both = width > 0, active[:, None] & active[None]
    basis = matmul_of_pairs(columns, (back, 0 * back), jnp.zeros_like(back[:1]))
    aims, unit = jnp.pad(-rows.target[:, None], ((0, 0), (count, 0))), jnp.eye(count, dtype=back.dtype)

    def step(state: _State) -> _State:
        params, chosen = state.vertex.params, state.chosen
        # In coordinates that are the residuals of the chosen rows: these are unit vectors but for rounding.
        to_params = matmul(back, jnp.linalg.inv(jnp.where(both, basis[chosen], unit)))
        factors = jnp.column_stack([to_params, params[0]]), jnp.column_stack([0 * to_params, params[1]])
        product = matmul_of_pairs(columns, factors, aims.at[chosen, :-1].add(jnp.where(both, -unit, 0)))
        rounding = jnp.where(both, product[chosen, :-1], 0)
        independent = jnp.max(jnp.abs(rounding)) <= eps ** (1 / 3)  # of the chosen rows
        correction = matmul(rounding, rounding) - rounding
        edges, off = product[:, :-1] + matmul(product[:, :-1], correction), jnp.where(active, product[chosen, -1], 0)

        chosen_rows = jnp.zeros_like(rows.target).at[chosen].add(active)
        others = present & (chosen_rows == 0)
        residual = jnp.where(others, product[:, -1] - matmul(edges, off), 0)
        side = jnp.where(others, jnp.where(residual > 0, rows.high, rows.low), 0)
        # Pulls of heavy rows cancel in the dual variable of a light one: to more digits than the type has.
        high, low = summed_in_pairs((side, 0 * side), transposed)
        # What is left to the bounds can be less than the dual variable's own rounding.
        from_params = to_params.T, matmul(to_params, correction).T
        bounds = jnp.stack([rows.high[chosen], rows.low[chosen]], axis=1)
        pull = jnp.stack([high, high], axis=1), jnp.stack([low, low], axis=1)
        room, above = matmul_of_pairs(from_params, pull, bounds).T  # high − met, low − met
        met = jnp.clip(bounds[:, 0] - room, bounds[:, 1], bounds[:, 0])
        unseen = eps**1.5 * jnp.sqrt(summed(side * side, edges * edges))
        past = jnp.maximum(-room, above)
        outside = jnp.where(active & (past > unseen), past / width[chosen], 0)
        worst = jnp.argmax(outside)
        moved = outside[worst] > 0

        speed = jnp.where(room[worst] < 0, 1, -1) * edges[:, worst]
        crossing = others & jnp.where(residual > 0, speed < 0, speed > 0)
        times = jnp.where(crossing, jnp.abs(residual / jnp.where(crossing, speed, 1)), jnp.inf)
        after = place_of_mass(times, jnp.where(crossing, width * jnp.abs(speed), 0), past[worst])
        move = jnp.where(moved, times[after] * jnp.where(room < 0, 1, -1) * unit[worst], 0) - off
        move = matmul(to_params, move + matmul(correction, move))
        sizes = jnp.abs(rows.target) + matmul(jnp.abs(edges), jnp.where(active, jnp.abs(rows.target[chosen]), 0))
        still = ~moved & ~state.moved
        vertex = Vertex(
            add(params, (move, 0 * move)),
            jnp.sum(side * residual),
            side.at[chosen].add(jnp.where(active, met, 0)),
            chosen_rows,
            state.vertex.number + 1,
            independent & still & jnp.all(jnp.isfinite(move)),
            independent & jnp.any(others & (jnp.abs(residual) <= eps**1.5 * sizes)),
        )
        return _State(vertex, jnp.where(moved, chosen.at[worst].set(after), chosen), moved, still)

    def going(state: _State) -> Array:
        vertex = state.vertex
        return ~state.done & (vertex.number < STEPS) & jnp.all(jnp.isfinite(vertex.params[0]))

    nothing, no = jnp.zeros_like(rows.target), jnp.asarray(False)
    nowhere = jnp.asarray(jnp.inf, params.dtype)
    start = Vertex((params, 0 * params), nowhere, nothing, nothing, jnp.asarray(0), no, no)
    return lax.while_loop(going, step, _State(start, independent_rows(basis, give), ~no, no)).vertex
