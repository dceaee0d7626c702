"""Derivatives of scores in every parameter and in the target, in float32 against mpmath.

Errors are relative to the largest term of the true derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from families import spread
from mpmath import erf, erfc, exp, log, mpf, pi, sqrt
from test_families import made

import jaxloss

ALLOWED = 1e-5


class Score(NamedTuple):
    """A score of a family, how to draw parameters and target, and its derivatives by name, each a list of terms."""

    name: str
    family: type
    loss: Callable[..., Any]
    draw: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    partials: dict[str, Callable[..., list]]


def far_and_near(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Scales of every size about location 0, and targets from 1e-8 to 1e20 of them away."""
    scale = spread(random, count, 1e-12, 1e12)
    target = random.choice([-1, 1], count) * scale * spread(random, count, 1e-8, 1e20)
    return {"loc": np.zeros(count), "scale": scale, "target": target}


def in_bulk(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    scale = spread(random, count, 1e-3, 1e3)
    return {"loc": np.zeros(count), "scale": scale, "target": scale * random.uniform(-30, 30, count)}


def above_underflow(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """As in the bulk, where the density is a normal number of float32."""
    given = in_bulk(random, count)
    return {**given, "target": given["scale"] * random.uniform(-12, 12, count)}


def with_df(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {"df": spread(random, count, 1.5, 1e4), **far_and_near(random, count)}


def z_of(target: mpf, loc: mpf, scale: mpf) -> mpf:
    return (target - loc) / scale


def density(z: mpf) -> mpf:
    return exp(-z * z / 2) / sqrt(2 * pi)


def hazard(z: mpf) -> mpf:
    """density/P(Y ≤ z) of the standard normal."""
    return 2 * density(z) / erfc(-z / sqrt(2))


def location_scale(by_target: Callable, by_scale: Callable) -> dict[str, Callable]:
    """The partials in target and scale as functions of z and the shapes, and that in loc."""

    def at(function: Callable, sign: int = 1) -> Callable:
        def partial(target, loc, scale, **shapes):
            return [sign * term for term in function(z_of(target, loc, scale), **shapes)]

        return partial

    return {"target": at(by_target), "loc": at(by_target, -1), "scale": at(by_scale)}


def student_tail(z: mpf, df: mpf) -> mpf:
    """P(|T| > |z|)."""
    return mpmath.betainc(df / 2, mpf(1) / 2, 0, df / (df + z * z), regularized=True)


def student_scale_terms(z: mpf, df: mpf) -> list:
    peak = mpmath.gamma((df + 1) / 2) / mpmath.gamma(df / 2) / sqrt(pi * df)
    inside = (df + z * z) * peak * (1 + z * z / df) ** (-(df + 1) / 2)
    spread = 2 * sqrt(df) * mpmath.beta(mpf(1) / 2, df - mpf(1) / 2) / mpmath.beta(mpf(1) / 2, df / 2) ** 2
    return [2 * inside / (df - 1), -spread / (df - 1)]


def over_scale(function: Callable) -> dict[str, Callable]:
    """The partials of −log of a function of z, of which the logarithmic derivative is given."""
    return {
        "target": lambda target, loc, scale: [-function(z_of(target, loc, scale)) / scale],
        "loc": lambda target, loc, scale: [function(z_of(target, loc, scale)) / scale],
        "scale": lambda target, loc, scale: [function(z := z_of(target, loc, scale)) * z / scale],
    }


def censored(side: int) -> Callable:
    return lambda dist, target: jaxloss.censored_nll(dist, target, censoring=side, reduction="none")


def elementwise(loss: Callable) -> Callable:
    return lambda dist, target: loss(dist, target, reduction="none")


def log_normal_draw(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    loc, scale = random.uniform(-8, 8, count), spread(random, count, 1e-3, 3)
    return {"loc": loc, "scale": scale, "target": np.exp(loc + scale * random.uniform(-8, 8, count))}


def log_normal_loc_terms(target: mpf, loc: mpf, scale: mpf) -> list:
    mean, z = exp(loc + scale**2 / 2), z_of(log(target), loc, scale)
    return [2 * mean * erfc(scale / 2) / 2, -mean * erfc(-(z - scale) / sqrt(2))]


def log_normal_scale_terms(target: mpf, loc: mpf, scale: mpf) -> list:
    mean, z = exp(loc + scale**2 / 2), z_of(log(target), loc, scale)
    own = log_normal_loc_terms(target, loc, scale)
    return [scale * own[0], scale * own[1], 2 * mean * density(z - scale), -mean * exp(-(scale**2) / 4) / sqrt(pi)]


NORMAL, LAPLACE, STUDENT, LOG_NORMAL = jaxloss.Normal, jaxloss.Laplace, jaxloss.StudentT, jaxloss.LogNormal
SCORES = (
    Score(
        "crps of Normal",
        NORMAL,
        elementwise(jaxloss.crps),
        far_and_near,
        location_scale(lambda z: [erf(z / sqrt(2))], lambda z: [2 * density(z), -1 / sqrt(pi)]),
    ),
    Score(
        "crps of Laplace",
        LAPLACE,
        elementwise(jaxloss.crps),
        far_and_near,
        location_scale(
            lambda z: [-mpmath.sign(z) * mpmath.expm1(-abs(z))], lambda z: [(1 + abs(z)) * exp(-abs(z)), -mpf(3) / 4]
        ),
    ),
    Score(
        "crps of StudentT",
        STUDENT,
        elementwise(jaxloss.crps),
        with_df,
        location_scale(lambda z, df: [mpmath.sign(z), -mpmath.sign(z) * student_tail(z, df)], student_scale_terms),
    ),
    Score(
        "crps of LogNormal",
        LOG_NORMAL,
        elementwise(jaxloss.crps),
        log_normal_draw,
        {
            "target": lambda target, loc, scale: [1, -erfc((log(target) - loc) / scale / sqrt(2))],
            "loc": log_normal_loc_terms,
            "scale": log_normal_scale_terms,
        },
    ),
    Score(
        "nll of Normal",
        NORMAL,
        elementwise(jaxloss.nll),
        in_bulk,
        {
            **over_scale(lambda z: -z),
            "scale": lambda target, loc, scale: [1 / scale, -(z_of(target, loc, scale) ** 2) / scale],
        },
    ),
    Score(
        "nll of Laplace",
        LAPLACE,
        elementwise(jaxloss.nll),
        in_bulk,
        {
            **over_scale(lambda z: -mpmath.sign(z)),
            "scale": lambda target, loc, scale: [1 / scale, -abs(z_of(target, loc, scale)) / scale],
        },
    ),
    Score("left-censored nll of Normal", NORMAL, censored(-1), above_underflow, over_scale(hazard)),
    Score("right-censored nll of Normal", NORMAL, censored(1), above_underflow, over_scale(lambda z: -hazard(-z))),
)


def check_score(score: Score, count: int) -> None:
    given = {name: np.float32(value) for name, value in score.draw(np.random.default_rng(0), count).items()}
    parameters = {name: value for name, value in given.items() if name != "target"}

    @jax.jit
    def gradients(dist, target):
        return jax.grad(lambda dist, target: score.loss(dist, target).sum(), (0, 1))(dist, target)

    dist = type("row", (), {"family": score.family})
    in_parameters, in_target = gradients(made(dist, parameters), jnp.asarray(given["target"]))
    got = {**vars(in_parameters), "target": in_target}
    with mpmath.workdps(50):
        for name, partial in score.partials.items():
            for index, number in enumerate(np.asarray(got[name], np.float64)):
                at = {key: mpf(float(value[index])) for key, value in given.items()}
                terms = partial(**at)
                size = max(map(abs, terms))
                error = abs(mpf(number) - sum(terms))
                assert error <= ALLOWED * size + float(np.finfo(np.float32).tiny), (
                    f"{score.name} in {name} at { {key: value[index] for key, value in given.items()} }: {number}, "
                    f"exactly {float(sum(terms))}, {float(error / size):.1e} of its largest term off"
                )


@pytest.mark.parametrize("score", SCORES, ids=[score.name for score in SCORES])
def test_derivatives_of_scores_are_accurate(score):
    check_score(score, 200)


@pytest.mark.slow
@pytest.mark.parametrize("score", SCORES, ids=[score.name for score in SCORES])
def test_derivatives_of_scores_are_accurate_at_many_numbers(score):
    check_score(score, 3000)


@pytest.mark.parametrize(
    ("family", "slope"),
    [(NORMAL, -1 / np.sqrt(np.pi)), (LAPLACE, -0.75), (STUDENT, float(student_scale_terms(mpf(0), mpf(3))[1]))],
    ids=["N", "L", "t"],
)
def test_the_crps_of_a_scale_of_0_is_that_of_a_point_mass(family, slope):
    """Its derivative there is minus half the expected distance of two draws of scale 1."""
    shapes = {"df": 3.0 * jnp.ones(4)} if family is STUDENT else {}
    scale = jnp.array([1e-6, 1e-20, 1e-38, 0.0])

    def score(loc, scale):
        return jaxloss.crps(family(loc=loc, scale=scale, **shapes), jnp.ones(4), reduction="sum")

    values, slopes = jax.value_and_grad(score, (0, 1))(jnp.zeros(4), scale)
    assert values == pytest.approx(4, rel=1e-6)
    np.testing.assert_allclose(slopes[0], -np.ones(4), rtol=1e-6)
    np.testing.assert_allclose(slopes[1], np.full(4, slope), rtol=1e-5)
    close_to_fit = jax.grad(score, 1)(jnp.ones(4), jnp.zeros(4))
    assert np.all(np.isfinite(close_to_fit))
