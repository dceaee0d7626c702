"""What a method of a linear fit tells: where it ended in the coordinates of its basis, and how."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jaxloss.solve.interior_point import Dual

__all__ = ["Ended", "Found"]

Array = jax.Array


class Ended(NamedTuple):
    """What a search tells beside the solution: the objective, and the dual of piecewise-linear losses."""

    scale: Array
    gap: Array
    objective: Array
    dual: Dual | None = None


class Found(NamedTuple):
    """Where a search ended: coordinates in the basis, the steps taken, and whether this is a minimum."""

    phi: Array
    number: Array
    good: Array
    ended: Ended
