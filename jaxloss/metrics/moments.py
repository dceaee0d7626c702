"""Means, and sums of products of deviations from them, that merge by the shifts of the means.

By Chan, Golub and LeVeque (1983): never Σy² − nȳ².
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloss.numerics.pairs import two_sum
from jaxloss.numerics.sums import Compensated, add, exact, total

__all__ = ["PRODUCTS", "VARIABLES", "Moments", "center_moments", "combine_moments"]

VARIABLES = ("pred", "target", "residual", "absolute")
"""What the means are of; `absolute` is |r|."""

PRODUCTS = (
    ("pred", "pred"),
    ("target", "target"),
    ("residual", "residual"),
    ("absolute", "absolute"),
    ("pred", "target"),
    ("pred", "residual"),
    ("pred", "absolute"),
)
"""Pairs with a sum of products of deviations."""


class Moments(NamedTuple):
    """Weighted means, and sums of products of deviations from them, in the order of the tables above."""

    means: Compensated
    products: Compensated


def center_moments(sums: jax.Array, weight: jax.Array, centre: dict[str, jax.Array]) -> Moments:
    """From sums of deviations from any centre, and of their products, to moments about the mean."""
    means, products = jnp.split(sums, [len(VARIABLES)])
    gap = means / jnp.where(weight == 0, 1, weight)
    centres = jnp.stack([centre[name] for name in VARIABLES])
    return Moments(Compensated(*two_sum(centres, gap)), exact(products - _products_of(weight, gap)))


def combine_moments(moments: Moments, weight: jax.Array) -> Moments:
    """Moments within the groups, plus those of the groups' means; the groups are along the first axis."""
    heavy = weight[..., None]
    heaviest = jnp.argmax(heavy, 0, keepdims=True)  # an empty group has no mean
    origin = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, heaviest, 0), moments.means)
    gap = (moments.means.high - origin.high) + (moments.means.low - origin.low)
    gap = jnp.where(heavy == 0, 0, gap)
    whole = total(exact(heavy)).high
    shift = total(exact(heavy * gap)).high / jnp.where(whole == 0, 1, whole)
    means = add(jax.tree.map(lambda leaf: leaf[0], origin), exact(shift))
    between = _products_of(weight, gap - shift[None])
    return Moments(means, total(add(moments.products, exact(between))))


def _products_of(weight: jax.Array, gap: jax.Array) -> jax.Array:
    """What sums of products of deviations from the mean gain when all deviations grow by the gap."""
    gaps = {name: gap[..., place] for place, name in enumerate(VARIABLES)}
    return jnp.stack([weight * gaps[x] * gaps[y] for x, y in PRODUCTS], -1)
