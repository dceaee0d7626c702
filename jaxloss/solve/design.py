"""The columns of a linear model, shifted, scaled and, where needed, made orthogonal: every solver works in these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxloss.numerics.order import power_of_two
from jaxloss.numerics.pairs import Pair, add, multiply, two_sum
from jaxloss.numerics.stages import is_concrete, stage, unless

__all__ = [
    "Centred",
    "Design",
    "Factors",
    "centred",
    "design_of",
    "exactly",
    "factors_of",
    "far_from_dependent",
    "hessian",
    "matmul",
    "matmul_of_pairs",
    "summed",
    "summed_in_pairs",
    "weighted_gram",
    "with_design",
]

Array = jax.Array
BLOCK, WIDE_BLOCK = 2**9, 2**15
"""How many sums run side by side: what stays in a CPU's cache, and what keeps an accelerator busy."""


def matmul(left: Array, right: Array) -> Array:
    """A matrix product in the full precision of its type, also on accelerators."""
    return jnp.matmul(left, right, precision="highest")


def summed(weights: Array, rows: Array) -> Array:
    """Σ weights·rows over the rows; as a product of matrices it is twice as fast as with a vector."""
    return matmul(weights[None], rows)[0]


def matmul_of_pairs(left: Pair, right: Pair, start: Array) -> Array:
    """start + left·right to the last digit of its entries, whatever cancels: summed in twice the precision."""
    start = jnp.broadcast_to(start, (len(left[0]), right[0].shape[1]))

    def more(total: Pair, term: tuple[Pair, Pair]) -> tuple[Pair, None]:
        column, factor = (
            jax.tree.map(lambda part: jnp.broadcast_to(part, start.shape), pair)
            for pair in (
                jax.tree.map(lambda part: part[:, None], term[0]),
                jax.tree.map(lambda part: part[None], term[1]),
            )
        )
        return add(total, multiply(column, factor)), None

    (high, low), _ = lax.scan(more, (start, 0 * start), (jax.tree.map(jnp.transpose, left), right))
    return high + low


def summed_in_pairs(weights: Pair, columns: Pair) -> Pair:
    """Σ weights·column over the rows, in twice the precision: many sums side by side, then those. columns: (p, n)."""

    def by(block: int) -> Callable[[Pair, Pair], Pair]:
        return lambda weights, columns: _summed_by_blocks(weights, columns, block)

    return lax.platform_dependent(weights, columns, cpu=by(BLOCK), default=by(WIDE_BLOCK))


def _summed_by_blocks(weights: Pair, columns: Pair, block: int) -> Pair:
    total, count = len(weights[0]), len(columns[0])
    number = -(-total // block)

    def blocks(values: Array) -> Array:
        padded = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, number * block - total)])
        return jnp.moveaxis(padded.reshape(*values.shape[:-1], number, block), -2, 0)

    def plus(total: Pair, block: tuple[Array, ...]) -> tuple[Pair, None]:
        high, low, first, second = block
        first, second = (jnp.broadcast_to(part, high.shape) for part in (first, second))
        return add(total, multiply((high, low), (first, second))), None

    zero = jnp.zeros((count, block), weights[0].dtype)
    (high, low), _ = lax.scan(plus, (zero, zero), tuple(blocks(values) for values in (*columns, *weights)))
    while high.shape[1] > 1:
        half = high.shape[1] // 2
        high, low = add((high[:, :half], low[:, :half]), (high[:, half:], low[:, half:]))
    return high[:, 0], low[:, 0]


class Centred(NamedTuple):
    """The columns, each less a number near its mean, and last the intercept's column of ones.

    rows: (n, p). shift: (d,), what was taken off. scale: powers of 2 that bring the columns, under `root`, near norm 1.
    """

    rows: Array
    shift: Array
    scale: Array


def centred(x: Array, root: Array, ridge: Array, intercept: bool) -> tuple[Centred, Array]:
    """x, of shape (n, d), and the Gram matrix of its scaled rows under `root`, with the ridge.

    Rows whose `root` (of the weight) is 0 become 0. ridge is that of the columns, by which they are scaled too.
    Without the shift a column of years, or the powers of one, would lose digits before any arithmetic is done.
    """
    slopes = x.shape[1]
    total, more = jnp.sum(root * root), (0, int(intercept))
    shift = jnp.zeros(slopes, x.dtype)
    if intercept:
        # From the first present row on, so that the mean of a constant column is that constant to the last bit.
        first = x[jnp.argmax(root > 0)]
        mean = jnp.sum((x - first[None]) * (root * root)[:, None], axis=0) / jnp.where(total > 0, total, 1)
        # One number wherever it is used: else a compiler may work it out anew there, and round it otherwise.
        shift = lax.optimization_barrier(first + mean)
    rows = jnp.pad(x - shift[None], ((0, 0), more), constant_values=1)
    rows = jnp.where(root[:, None] > 0, rows, 0)
    weighted = root[:, None] * rows
    gram = matmul(weighted.T, weighted)
    square = jnp.diagonal(gram)
    kept = square > 0  # else the column is constant
    penalty = jnp.pad(jnp.full(slopes, ridge * ridge), more)
    gram = jnp.where(kept[:, None] & kept[None], gram, 0) + jnp.diag(penalty)
    square = jnp.diagonal(gram)
    scale = 1 / power_of_two(jnp.where(square > 0, jnp.sqrt(square), 1))
    return Centred(jnp.where(kept[None], rows, 0), shift, scale), gram * scale[:, None] * scale[None]


def exactly(x: Array, columns: Centred) -> tuple[Centred, Array]:
    """The columns shifted once more, and what rounding took from them: x − shift is the sum of both.

    Once more, because a compiler may work out the shift anew wherever it is used, and round it otherwise.
    """
    shift = jnp.broadcast_to(-columns.shift[None], x.shape)
    high, low = (jnp.where(columns.rows[:, : x.shape[1]] == 0, 0, part) for part in two_sum(x, shift))
    rest = columns.rows[:, x.shape[1] :]
    rows, low = jnp.concatenate([high, rest], axis=1), jnp.concatenate([low, 0 * rest], axis=1)
    return columns._replace(rows=rows), low


def far_from_dependent(spectrum: Array) -> Array:
    """Whether the eigenvalues of a Gram matrix show a condition number below 100: then it loses at most four digits."""
    return spectrum[0] > 1e-4 * spectrum[-1]


class Factors(NamedTuple):
    """The singular value decomposition of the scaled rows, and of the rows of the ridge under them.

    rows: (n + d, p), orthonormal; values: (p,), and right: (p, p), so that scaled = rows·diag(values)·rightᵀ. Where a
    value is too small to be told from rounding its column of `rows` is 0, `active` False, and the value 1.
    back: (p, p), from coordinates in the basis `rows` to parameters, of least norm of the coefficients.
    """

    rows: Array
    values: Array
    right: Array
    active: Array
    back: Array


def factors_of(columns: Centred, root: Array, ridge: Array, slopes: int) -> Factors:
    """QR of the scaled rows, then the decomposition of the triangle."""
    count = columns.rows.shape[1]
    penalty = ridge * jnp.eye(slopes, count, dtype=root.dtype)
    # As a product, which is exact: XLA else transposes x for the factorisation even where `unless` skips it.
    stacked = matmul(jnp.concatenate([root[:, None] * columns.rows, penalty]), jnp.diag(columns.scale))
    rows, triangle = _orthogonal(stacked)
    left, values, right = jnp.linalg.svd(triangle)
    tiny = jnp.finfo(root.dtype).eps * max(stacked.shape)
    active = values > tiny * jnp.max(values)
    values = jnp.where(active, values, 1)
    rows = matmul(rows, left) * active[None]
    scaled = columns.scale[:, None] * right.T
    back = _least_norm(scaled * (active / values)[None], scaled * ~active[None], active, slopes)
    return Factors(rows, values, right.T, active, back)


def _orthogonal(stacked: Array) -> tuple[Array, Array]:
    """QR of a tall matrix: on accelerators, where Householder's takes one column after another, by way of Cholesky."""
    return lax.platform_dependent(stacked, cpu=_householder, default=_cholesky_twice)


def _householder(stacked: Array) -> tuple[Array, Array]:
    rows, triangle = jnp.linalg.qr(stacked)
    return rows, triangle


def _cholesky_twice(stacked: Array) -> tuple[Array, Array]:
    """CholeskyQR2 (Fukaya et al., ScalA 2014), and Householder's where the columns are too close to dependent for it.

    The first factor is orthogonal to half the digits at best; if it is roughly so, the second is to all of them.
    """

    def once(tall: Array) -> tuple[Array, Array, Array]:
        gram = matmul(tall.T, tall)
        lower = jnp.linalg.cholesky(gram)
        return gram, lax.linalg.triangular_solve(lower, tall, lower=True, transpose_a=True), lower.T

    _, rough, first = once(stacked)
    gram, rows, second = once(rough)
    good = len(gram) * jnp.max(jnp.abs(gram - jnp.eye(len(gram), dtype=gram.dtype))) < 0.5
    return lax.cond(good, lambda: (rows, matmul(second, first)), lambda: _householder(stacked))


def _least_norm(back: Array, null: Array, active: Array, slopes: int) -> Array:
    """The columns of `back` less what the null vectors say makes no difference, so that the coefficients are least."""
    directions = null[:slopes, ::-1]  # the null vectors come last in `null`; first, they are what Q starts with
    sizes = jnp.linalg.norm(directions, axis=0)
    basis = jnp.linalg.qr(directions / jnp.where(sizes > 0, sizes, 1)[None])[0]
    basis = basis * (~active)[::-1][None, : basis.shape[1]]
    coefficients = back[:slopes]
    return back.at[:slopes].set(coefficients - matmul(basis, matmul(basis.T, coefficients)))


class Design(NamedTuple):
    """A well-conditioned basis of the model's columns.

    rows: (n, p). back: (p, p), from coordinates to parameters, shifted. penalty: ½φᵀ·penalty·φ is the ridge's share
    of the objective at coordinates φ. active: which coordinates count; rank: how many.
    """

    rows: Array
    back: Array
    shift: Array
    penalty: Array
    active: Array
    rank: Array


def design_of(x: Array, weights: Array, l2: Array, intercept: bool) -> Design:
    """The basis: the scaled columns themselves where their Gram matrix proves them far from dependent."""
    if x.dtype != jnp.float64:
        return _orthogonal_design(x, weights, l2, intercept)
    good, design = _scaled_design(x, weights, l2, intercept)
    return unless(good, design, lambda bad: _orthogonal_design(x, weights * bad, l2, intercept))


@stage(3)
def _scaled_design(x: Array, weights: Array, l2: Array, intercept: bool) -> tuple[Array, Design]:
    """Whether the scaled columns are far from dependent, and the basis they are."""
    root = (weights > 0).astype(x.dtype)
    columns, gram = centred(x, root, jnp.sqrt(l2), intercept)
    basis, every = root[:, None] * columns.rows * columns.scale[None], jnp.ones(len(gram), bool)
    good = far_from_dependent(jnp.linalg.eigvalsh(gram))
    return good, _with_penalty(basis, jnp.diag(columns.scale), columns.shift, every, l2)


@stage(3)
def _orthogonal_design(x: Array, weights: Array, l2: Array, intercept: bool) -> Design:
    """The basis by QR, of any columns."""
    root, ridge = (weights > 0).astype(x.dtype), jnp.sqrt(l2)
    columns, _ = centred(x, root, ridge, intercept)
    factors = factors_of(columns, root, ridge, x.shape[1])
    return _with_penalty(factors.rows[: x.shape[0]], factors.back, columns.shift, factors.active, l2)


def _with_penalty(rows: Array, back: Array, shift: Array, active: Array, l2: Array) -> Design:
    slopes = len(shift)
    return Design(rows, back, shift, l2 * matmul(back[:slopes].T, back[:slopes]), active, jnp.sum(active))


def hessian(design: Design, bend: Array) -> Array:
    """Σ bend·row·rowᵀ + penalty, in the coordinates of the basis; those that do not count get 1 on the diagonal."""
    return weighted_gram(design.rows, bend) + design.penalty + jnp.diag(1.0 * ~design.active)


def _gram_alone(rows: Array, bend: Array) -> Array:
    """Σ bend·row·rowᵀ over the rows."""
    return matmul((rows * bend[:, None]).T, rows)


weighted_gram = custom_vmap(_gram_alone)


@weighted_gram.def_vmap
def _gram_of_many(size: int, mapped: list[bool], rows: Array, bend: Array) -> tuple[Array, bool]:
    """Of many bends with the same rows: the products of their entries, made once, serve all."""
    count = rows.shape[-1]
    if mapped[0] or size <= count:
        return jax.vmap(_gram_alone, [0 if one else None for one in mapped])(rows, bend), True
    first, second = jnp.triu_indices(count)
    packed = matmul(bend, rows[:, first] * rows[:, second])
    place = jnp.zeros((count, count), int).at[first, second].set(jnp.arange(len(first)))
    return packed[:, jnp.maximum(place, place.T)], True


def with_design(solve: Callable[..., Any], intercept: bool) -> Callable[..., tuple[Any, Design]]:
    """`solve(design, weights, *more)` as a function of (x, weights, l2, *more); also returns the design, but its rows.

    Mapped over weights or l2 but not over x, as for bootstraps, all solve in one basis, unless it is not good for each.
    """

    def alone(x: Array, weights: Array, l2: Array, *more: Any) -> tuple[Any, Design]:
        design = design_of(x, weights, l2, intercept)
        return solve(design, weights, *more), design._replace(rows=None)

    def of_many(size: int, mapped: Any, x: Array, weights: Array, l2: Array, *more: Any) -> Any:
        axes = jax.tree.map(lambda one: 0 if one else None, mapped)
        if mapped[0] or not (mapped[1] or mapped[2]):
            found = jax.vmap(alone, axes)(x, weights, l2, *more)
            return found, jax.tree.map(lambda _: True, found)
        largest = jnp.max(weights, axis=0) if mapped[1] else weights
        basis, slopes = design_of(x, largest, jnp.zeros((), x.dtype), intercept), x.shape[1]

        def good(weights: Array) -> Array:
            return far_from_dependent(jnp.linalg.eigvalsh(hessian(basis, 1.0 * (weights > 0))))

        def together(weights: Array, l2: Array, *more: Any) -> tuple[Any, Design]:
            design = basis._replace(penalty=l2 * matmul(basis.back[:slopes].T, basis.back[:slopes]))
            return solve(design, weights, *more), design._replace(rows=None)

        fine = jnp.all(jax.vmap(good)(weights) if mapped[1] else good(weights)) & jnp.all(basis.active)
        found = jax.vmap(together, axes[1:])(weights, l2, *more)
        found = unless(fine, found, lambda bad: jax.vmap(alone, axes)(x, weights * bad, l2, *more))
        return found, jax.tree.map(lambda _: True, found)

    mappable = custom_vmap(alone)
    mappable.def_vmap(of_many)
    return lambda *given: (alone if is_concrete(given) else mappable)(*given)
