"""The columns of a linear model, shifted, scaled and, where needed, made orthogonal: every solver works in these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.losses.special import sum_of

__all__ = [
    "Centred",
    "Design",
    "Factors",
    "centred",
    "design_of",
    "exactly",
    "factors_of",
    "far_from_dependent",
    "matmul",
    "summed",
    "unless",
]

Array = jax.Array


def matmul(left: Array, right: Array) -> Array:
    """A matrix product in the full precision of its type, also on accelerators."""
    return jnp.matmul(left, right, precision="highest")


def summed(weights: Array, rows: Array) -> Array:
    """Σ weights·rows over the rows; as a product of matrices it is twice as fast as with a vector."""
    return matmul(weights[None], rows)[0]


class Centred(NamedTuple):
    """The columns, each less a number near its mean, and last the intercept's column of ones.

    rows: (n, p). shift: (d,), what was taken off. scale: powers of 2 that bring the columns, under `root`, near norm 1.
    """

    rows: Array
    shift: Array
    scale: Array


def power_of_two(x: Array) -> Array:
    """The largest power of two at most x, for normal x > 0; dividing by it is exact."""
    info = jnp.finfo(x.dtype)
    bits = lax.bitcast_convert_type(x, jnp.int32 if info.bits == 32 else jnp.int64)
    return lax.bitcast_convert_type((bits >> info.nmant) << info.nmant, x.dtype)


def centred(x: Array, root: Array, ridge: Array, intercept: bool) -> Centred:
    """x, of shape (n, d); rows whose `root` (of the weight) is 0 become 0. ridge is that of the columns.

    Without the shift a column of years, or the powers of one, would lose digits before any arithmetic is done.
    """
    eps, weight = jnp.finfo(x.dtype).eps, (root * root)[:, None]
    total = jnp.sum(weight)
    shift = jnp.zeros(x.shape[1], x.dtype)
    if intercept:
        shift = jnp.sum(x * weight, axis=0) / jnp.where(total > 0, total, 1)
    less = x - shift[None]
    square, whole = jnp.sum(less * less * weight, axis=0), jnp.sum(x * x * weight, axis=0)
    kept = square > jnp.square(8 * eps) * whole  # a constant column is its mean, up to rounding
    present = root[:, None] > 0
    rows = jnp.where(kept[None] & present, less, 0)
    square = jnp.where(kept, square, 0) + ridge * ridge
    if intercept:
        rows = jnp.concatenate([rows, present.astype(x.dtype)], axis=1)
        square = jnp.append(square, total)
    return Centred(rows, shift, 1 / power_of_two(jnp.where(square > 0, jnp.sqrt(square), 1)))


def exactly(x: Array, columns: Centred) -> tuple[Centred, Array]:
    """The columns shifted once more, and what rounding took from them: x − shift is the sum of both.

    Once more, because a compiler may work out the shift anew wherever it is used, and round it otherwise.
    """
    shift = jnp.broadcast_to(-columns.shift[None], x.shape)
    high, low = (jnp.where(columns.rows[:, : x.shape[1]] == 0, 0, part) for part in sum_of(x, shift))
    rest = columns.rows[:, x.shape[1] :]
    rows, low = jnp.concatenate([high, rest], axis=1), jnp.concatenate([low, 0 * rest], axis=1)
    return columns._replace(rows=rows), low


def far_from_dependent(spectrum: Array) -> Array:
    """Whether the eigenvalues of a Gram matrix show a condition number below 100: then it loses at most four digits."""
    return spectrum[0] > 1e-4 * spectrum[-1]


def unless(good: Array, found: Any, otherwise: Callable[[Array], Any]) -> Any:
    """What was found if it is good, else `otherwise(bad)`.

    A loop of at most one turn: mapped, it is skipped where all are good; `cond` would always compute both. For this
    the work must depend on `bad`, which is True: XLA moves what does not out of a loop.
    """
    return lax.while_loop(
        lambda state: ~state[0], lambda state: (jnp.asarray(True), otherwise(~state[0])), (good, found)
    )[1]


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
    """Householder QR of the scaled rows, then the decomposition of the triangle."""
    count = columns.rows.shape[1]
    penalty = ridge * jnp.eye(slopes, count, dtype=root.dtype)
    stacked = jnp.concatenate([root[:, None] * columns.rows, penalty]) * columns.scale[None]
    rows, triangle = jnp.linalg.qr(stacked)
    left, values, right = jnp.linalg.svd(triangle)
    tiny = jnp.finfo(root.dtype).eps * max(stacked.shape)
    active = values > tiny * jnp.max(values)
    values = jnp.where(active, values, 1)
    rows = matmul(rows, left) * active[None]
    scaled = columns.scale[:, None] * right.T
    back = _least_norm(scaled * (active / values)[None], scaled * ~active[None], active, slopes)
    return Factors(rows, values, right.T, active, back)


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


def design_of(x: Array, present: Array, l2: Array, intercept: bool) -> Design:
    """The basis: the scaled columns themselves where their Gram matrix proves them far from dependent."""
    slopes = x.shape[1]
    root, ridge = present.astype(x.dtype), jnp.sqrt(l2)
    columns = centred(x, root, ridge, intercept)
    scaled = columns.rows * columns.scale[None]
    penalty = jnp.diag(l2 * jnp.square(columns.scale) * (jnp.arange(len(columns.scale)) < slopes))

    def orthogonal(bad: Array | bool) -> tuple[Array, Array, Array]:
        factors = factors_of(columns, root * bad, ridge, slopes)
        return factors.rows[: x.shape[0]], factors.back, factors.active

    if x.dtype == jnp.float64:
        spectrum = jnp.linalg.eigvalsh(matmul(scaled.T, scaled) + penalty)
        plain = scaled, jnp.diag(columns.scale), jnp.ones(len(columns.scale), bool)
        basis, back, active = unless(far_from_dependent(spectrum), plain, orthogonal)
    else:
        basis, back, active = orthogonal(True)
    penalty = l2 * matmul(back[:slopes].T, back[:slopes])
    return Design(basis, back, columns.shift, penalty, active, jnp.sum(active))
