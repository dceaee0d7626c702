"""The one table of distribution families, one row each, with oracles that use no jax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from mpmath import log, mp, mpf, pi

import jaxloss

Arrays = dict[str, np.ndarray]


class FamilyRow(NamedTuple):
    """What the tests need to know of a family of one number."""

    family: type
    draw: Callable[[np.random.Generator, int], Arrays]
    """draw(random, count): ordinary parameters by field, float64."""
    scipy: Callable[..., Any]
    """scipy(**parameters): the frozen distribution of scipy.stats, or one with its methods."""
    log_prob: Callable[..., list]
    """log_prob(target, **parameters): its terms in mpmath; errors are relative to the largest."""
    extreme: Callable[[np.random.Generator, int], tuple[Arrays, np.ndarray]]
    """extreme(random, count): parameters over their whole range, and targets up to 40 sd out."""
    sampled: Callable[[Any, np.random.Generator], np.ndarray] = lambda dist, random: np.asarray(
        dist.rvs(random_state=random)
    )
    """Targets from the scipy distribution."""
    location: str = "loc"
    """The parameters in which the CRPS is trained: location …"""
    scale: str = "scale"
    """… and scale; empty where there is none."""
    crps: bool = True
    """Whether there is a closed form of it."""

    @property
    def name(self) -> str:
        return self.family.__name__


def spread(random: np.random.Generator, count: int, low: float, high: float) -> np.ndarray:
    """Numbers evenly spread over decades."""
    return 10.0 ** random.uniform(np.log10(low), np.log10(high), count)


def location_scale(random: np.random.Generator, count: int) -> Arrays:
    return {"loc": 3 * random.standard_normal(count), "scale": np.exp(random.standard_normal(count))}


def far_out(random: np.random.Generator, count: int) -> tuple[Arrays, np.ndarray]:
    """Location and scale of every size, and targets up to 40 scales away, exactly in float32."""
    scale = spread(random, count, 1e-3, 1e3).astype(np.float32)
    steps = np.round(random.uniform(-40, 40, count) * 32) / 32
    loc = np.float32(np.round(random.uniform(-8, 8, count)) * scale)
    return {"loc": loc, "scale": scale}, np.float32(loc + steps.astype(np.float32) * scale)


def scipy_stats(name: str, **fixed: Any) -> Callable[..., Any]:
    """A frozen distribution of scipy.stats, looked up when it is wanted."""

    def frozen(**parameters: Any) -> Any:
        return getattr(pytest.importorskip("scipy.stats"), name)(**parameters, **fixed)

    return frozen


def normal_terms(y: Any, loc: Any, scale: Any) -> list:
    return [-(((y - loc) / scale) ** 2) / 2, -log(scale), -log(2 * pi) / 2]


FAMILIES: tuple[FamilyRow, ...] = (
    FamilyRow(jaxloss.Normal, location_scale, scipy_stats("norm"), normal_terms, far_out),
)

each_family = pytest.mark.parametrize("row", FAMILIES, ids=[row.name for row in FAMILIES])

__all__ = ["FAMILIES", "FamilyRow", "each_family", "mp", "mpf"]
