"""The one table of distribution families, one row each, with oracles that use no jax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from mpmath import exp, log, loggamma, mp, mpf, pi

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


def laplace_terms(y: Any, loc: Any, scale: Any) -> list:
    return [-abs((y - loc) / scale), -log(2 * scale)]


def student(random: np.random.Generator, count: int) -> Arrays:
    return {"df": spread(random, count, 1.2, 100), **location_scale(random, count)}


def student_far_out(random: np.random.Generator, count: int) -> tuple[Arrays, np.ndarray]:
    parameters, target = far_out(random, count)
    return {"df": spread(random, count, 1e-3, 1e6), **parameters}, target


def student_terms(y: Any, df: Any, loc: Any, scale: Any) -> list:
    peak = loggamma((df + 1) / 2) - loggamma(df / 2) - log(pi * df) / 2
    return [peak, -log(scale), -(df + 1) / 2 * log(1 + ((y - loc) / scale) ** 2 / df)]


def log_normal(loc: np.ndarray, scale: np.ndarray) -> Any:
    return scipy_stats("lognorm")(s=scale, scale=np.exp(loc))


def relative_error(random: np.random.Generator, count: int) -> Arrays:
    return {"loc": 2 * random.standard_normal(count), "scale": spread(random, count, 0.05, 1.5)}


def log_normal_far_out(random: np.random.Generator, count: int) -> tuple[Arrays, np.ndarray]:
    """Targets up to 40 sd out, within what a float32 holds."""
    loc, scale = random.uniform(-8, 8, count), spread(random, count, 1e-3, 10)
    return {"loc": loc, "scale": scale}, np.exp(np.clip(loc + random.uniform(-40, 40, count) * scale, -80, 80))


def log_normal_terms(y: Any, loc: Any, scale: Any) -> list:
    return [*normal_terms(log(y), loc, scale), -log(y)]


def gamma(log_mean: np.ndarray, concentration: np.ndarray) -> Any:
    return scipy_stats("gamma")(a=concentration, scale=np.exp(log_mean) / concentration)


def waiting_times(random: np.random.Generator, count: int) -> Arrays:
    return {"log_mean": 2 * random.standard_normal(count), "concentration": spread(random, count, 0.3, 100)}


def gamma_far_out(random: np.random.Generator, count: int) -> tuple[Arrays, np.ndarray]:
    """Targets up to 40 sd out, and where that leaves the half line, down to the least floats."""
    log_mean, concentration = random.uniform(-8, 8, count), spread(random, count, 1e-3, 1e6)
    relative = 1 + random.uniform(-40, 40, count) / np.sqrt(concentration)
    relative = np.where(relative > 0, relative, spread(random, count, 1e-30, 1))
    return {"log_mean": log_mean, "concentration": concentration}, np.exp(log_mean) * relative


def gamma_terms(y: Any, log_mean: Any, concentration: Any) -> list:
    a, ratio = concentration, y / exp(log_mean)
    return [a * log(a) - a - loggamma(a), -a * (ratio - 1 - log(ratio)), -log(y)]


def counts(random: np.random.Generator, count: int) -> Arrays:
    return {"log_rate": random.uniform(-1, 4, count)}


def spread_counts(random: np.random.Generator, count: int) -> Arrays:
    return {**counts(random, count), "concentration": np.exp(random.standard_normal(count))}


def far_counts(random: np.random.Generator, count: int) -> tuple[Arrays, np.ndarray]:
    """Rates of every size, and counts up to a million: any, or up to 40 sd away, or next to the rate."""
    log_rate = np.where(random.uniform(size=count) < 0.5, random.uniform(-80, 80, count), random.uniform(-3, 14, count))
    rate = np.exp(np.minimum(log_rate, 14))
    near = np.maximum(rate + np.sqrt(rate) * random.uniform(-40, 40, count) * (random.uniform(size=count) < 0.7), 0)
    target = np.where(random.uniform(size=count) < 0.6, near, spread(random, count, 0.5, 1e6))
    return {"log_rate": log_rate}, np.minimum(np.round(target), 1e6)


def far_spread_counts(random: np.random.Generator, count: int) -> tuple[Arrays, np.ndarray]:
    parameters, target = far_counts(random, count)
    return {**parameters, "concentration": spread(random, count, 1e-3, 1e6)}, target


def negative_binomial(log_rate: Any, concentration: Any) -> Any:
    share = concentration / (concentration + np.exp(log_rate))
    return scipy_stats("nbinom")(n=concentration, p=share)


def saddle_point(y: Any) -> list:
    """log(yʸe⁻ʸ/y!) by Stirling's formula and its correction."""
    return [-log(2 * pi * y) / 2, -correction(y)] if y else [mpf(0)]


def correction(a: Any) -> Any:
    return loggamma(a) - (a - mpf(1) / 2) * log(a) + a - log(2 * pi) / 2


@mp.workdps(60)
def poisson_terms(y: Any, log_rate: Any) -> list:
    deviance = (y * (log(y) - log_rate) - y if y else 0) + exp(log_rate)
    return [*saddle_point(y), -deviance]


@mp.workdps(60)
def negative_binomial_terms(y: Any, log_rate: Any, concentration: Any) -> list:
    rate, total = exp(log_rate), y + concentration
    of_concentration = -concentration * log(total / (concentration + rate))
    if not y:
        return [-of_concentration]
    deviance = y * (log(y * (concentration + rate) / total) - log_rate) + of_concentration
    peak = [-log(1 + y / concentration) / 2, correction(total), -correction(concentration)]
    return [*saddle_point(y), *peak, -deviance]


FAMILIES: tuple[FamilyRow, ...] = (
    FamilyRow(jaxloss.Normal, location_scale, scipy_stats("norm"), normal_terms, far_out),
    FamilyRow(jaxloss.Laplace, location_scale, scipy_stats("laplace"), laplace_terms, far_out),
    FamilyRow(jaxloss.StudentT, student, scipy_stats("t"), student_terms, student_far_out),
    FamilyRow(jaxloss.LogNormal, relative_error, log_normal, log_normal_terms, log_normal_far_out),
    FamilyRow(
        jaxloss.Gamma, waiting_times, gamma, gamma_terms, gamma_far_out, location="log_mean", scale="concentration"
    ),
    FamilyRow(
        jaxloss.Poisson,
        counts,
        lambda log_rate: scipy_stats("poisson")(mu=np.exp(log_rate)),
        poisson_terms,
        far_counts,
        location="log_rate",
        scale="",
    ),
    FamilyRow(
        jaxloss.NegativeBinomial,
        spread_counts,
        negative_binomial,
        negative_binomial_terms,
        far_spread_counts,
        crps=False,
    ),
)

LONG = ("StudentT", "Gamma", "Poisson", "NegativeBinomial")
"""Families whose derivatives take long to compile: those tests of them are left to the slow suite."""


def each(slow: tuple[str, ...] = ()) -> Any:
    """The test over the families; those named are slow."""
    marked = [pytest.param(row, marks=pytest.mark.slow) if row.name in slow else row for row in FAMILIES]
    return pytest.mark.parametrize("row", marked, ids=[row.name for row in FAMILIES])


each_family, each_short_family = each(), each(slow=LONG)

__all__ = ["FAMILIES", "LONG", "FamilyRow", "each", "each_family", "each_short_family", "mp", "mpf"]
