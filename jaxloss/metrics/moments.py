"""Means, and sums of products of deviations from them to the fourth, that merge by the shifts of the means.

Chan, Golub and LeVeque (1983) for the second, Pébay (SAND2008-6212) for the third and fourth: never Σy² − nȳ².
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.numerics.pairs import two_sum
from jaxloss.numerics.sums import Compensated, add, exact, total

__all__ = ["FOURTHS", "PRODUCTS", "THIRDS", "VARIABLES", "Moments", "central", "combine", "moment"]

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

THIRDS = (("target",) * 3, ("residual",) * 3, ("pred", "residual", "residual"))
"""Triples with such a sum; the last tells whether the spread of the residuals grows with the prediction."""

FOURTHS = ("target", "residual")
"""Variables with a sum of fourth powers of deviations."""


class Moments(NamedTuple):
    """Weighted means, and sums of products of deviations from them, in the order of the tables above."""

    means: Compensated
    products: Compensated
    thirds: Compensated
    fourths: Compensated


def moment(moments: Moments, *names: str) -> Any:
    """The sum of products of deviations of two, three or four variables, in any order."""
    tables = PRODUCTS, THIRDS, tuple((name,) * 4 for name in FOURTHS)
    for table, sums in zip(tables, moments[1:], strict=True):
        for place, entry in enumerate(table):
            if sorted(entry) == sorted(names):
                return sums.value[..., place]
    known = ", ".join("·".join(entry) for table in tables for entry in table)
    raise ValueError(f"ResidualStats: the moment of {'·'.join(names)} is not kept; these are: {known}")


def central(sums: jax.Array, weight: jax.Array, centre: dict[str, jax.Array]) -> Moments:
    """From sums of products of deviations from any centre, all tables in one vector, to those from the mean."""
    tables = len(VARIABLES), len(PRODUCTS), len(THIRDS), len(FOURTHS)
    means, products, thirds, fourths = jnp.split(sums, np.cumsum(tables)[:-1])
    gap = means / jnp.where(weight == 0, 1, weight)
    second, third, fourth = _shifts(weight, gap)
    products = products - second()
    thirds = thirds - third(products)
    fourths = fourths - fourth(products, thirds)
    centres = jnp.stack([centre[name] for name in VARIABLES])
    return Moments(Compensated(*two_sum(centres, gap)), exact(products), exact(thirds), exact(fourths))


def combine(moments: Moments, weight: jax.Array) -> Moments:
    """Moments within the groups, plus those of the groups' means; the groups are along the first axis."""
    heavy = weight[..., None]
    heaviest = jnp.argmax(heavy, 0, keepdims=True)  # an empty group has no mean
    origin = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, heaviest, 0), moments.means)
    gap = (moments.means.high - origin.high) + (moments.means.low - origin.low)
    gap = jnp.where(heavy == 0, 0, gap)
    whole = total(exact(heavy)).high
    shift = total(exact(heavy * gap)).high / jnp.where(whole == 0, 1, whole)
    means = add(jax.tree.map(lambda leaf: leaf[0], origin), exact(shift))
    second, third, fourth = _shifts(weight, gap - shift[None])
    products, thirds = moments.products.high, moments.thirds.high
    between = second(), third(products), fourth(products, thirds)
    parts = (total(add(part, exact(more))) for part, more in zip(moments[1:], between, strict=True))
    return Moments(means, *parts)


def _shifts(weight: jax.Array, gap: jax.Array) -> tuple[Callable, Callable, Callable]:
    """What sums of products of deviations from the mean gain when all deviations grow by the gap."""
    gaps = {name: gap[..., place] for place, name in enumerate(VARIABLES)}

    def second():
        return jnp.stack([weight * gaps[x] * gaps[y] for x, y in PRODUCTS], -1)

    def third(products):
        def mixed(x, y, z):
            return gaps[x] * products[..., PRODUCTS.index((y, z))]

        own = [mixed(x, y, z) + mixed(y, x, z) + mixed(z, x, y) for x, y, z in THIRDS]
        cubes = [weight * gaps[x] * gaps[y] * gaps[z] for x, y, z in THIRDS]
        return jnp.stack(own, -1) + jnp.stack(cubes, -1)

    def fourth(products, thirds):
        grown = []
        for x in FOURTHS:
            square = gaps[x] * gaps[x]
            own = 4 * gaps[x] * thirds[..., THIRDS.index((x, x, x))]
            grown.append(own + 6 * square * products[..., PRODUCTS.index((x, x))] + weight * square * square)
        return jnp.stack(grown, -1)

    return second, third, fourth
