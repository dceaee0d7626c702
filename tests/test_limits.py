"""Losses join their neighbours, in value and slope, and have their limits at the ends of their domain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import close

import jaxloss
from jaxloss import quantile_huber

RANDOM = np.random.default_rng(0)
REAL = tuple(np.float32(3 * RANDOM.standard_normal(40)) for _ in range(2))
POSITIVE = tuple(np.float32(np.exp(RANDOM.standard_normal(40))) for _ in range(2))


def part(name, factor=1.0, **settings):
    """factor times the loss, as a function of (pred, target)."""
    loss = getattr(jaxloss, name)
    return lambda pred, target: factor * loss(pred, target, reduction="none", **settings)


NEIGHBOURS = {
    "huber, large delta": (part("huber", delta=1e3), part("mse", 0.5), 1e-6),
    "huber, small delta": (part("huber", 1e4, delta=1e-4), part("mae"), 1e-3),
    "smooth_l1": (part("smooth_l1", beta=0.3), part("huber", 1 / 0.3, delta=0.3), 2e-6),
    "smooth_l1, small beta": (part("smooth_l1", beta=1e-4), part("mae"), 1e-3),
    "pseudo_huber, large delta": (part("pseudo_huber", delta=1e4), part("mse", 0.5), 1e-6),
    "pseudo_huber, small delta": (part("pseudo_huber", 1e5, delta=1e-5), part("mae"), 1e-3),
    "quantile": (part("quantile", level=0.5), part("mae", 0.5), 1e-6),
    "expectile": (part("expectile", level=0.5), part("mse", 0.5), 1e-6),
    "quantile_huber, small delta": (part("quantile_huber", level=0.8, delta=1e-4), part("quantile", level=0.8), 1e-3),
    "quantile_huber, large delta": (
        part("quantile_huber", 2e3, level=0.8, delta=1e3),
        part("expectile", level=0.8),
        1e-5,
    ),
    "quantile_huber, middle": (part("quantile_huber", level=0.5, delta=0.3), part("smooth_l1", 0.5, beta=0.3), 2e-6),
    "epsilon_insensitive": (part("epsilon_insensitive", epsilon=0.0), part("mae"), 1e-6),
    "squared_epsilon_insensitive": (part("squared_epsilon_insensitive", epsilon=0.0), part("mse"), 1e-6),
    "tweedie 0": (part("tweedie_deviance", power=0.0), part("mse"), 1e-6),
    "tweedie 1": (part("tweedie_deviance", power=1.0), part("poisson_deviance"), 1e-5),
    "tweedie 2": (part("tweedie_deviance", power=2.0), part("gamma_deviance"), 1e-5),
    "tweedie beside 1": (part("tweedie_deviance", power=1 + 1e-6), part("poisson_deviance"), 1e-4),
    "tweedie beside 2": (part("tweedie_deviance", power=2 - 1e-6), part("gamma_deviance"), 1e-4),
    **{
        f"{name}, large scale": (part(name, scale=1e4), part("mse", 0.5), 1e-5 if name != "fair" else 2e-3)
        for name in ("cauchy", "welsch", "geman_mcclure", "tukey", "fair")
    },
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbours_join(name):
    one, other, relative = NEIGHBOURS[name]
    pred, target = POSITIVE if name.startswith("tweedie") else REAL
    close(one(pred, target), other(pred, target), rtol=relative, atol=relative / 10)
    slopes = (jax.grad(lambda p, f=f: f(p, target).sum())(pred) for f in (one, other))
    close(*slopes, rtol=relative, atol=1e-6)


def test_level_of_quantile_huber_is_that_of_quantile():
    over, under = quantile_huber(np.float32([2.0, -2.0]), np.zeros(2), level=0.9, delta=1e-3, reduction="none")
    close((over, under), (np.float32(0.2), np.float32(1.8)), rtol=1e-3)


INF = np.inf
PREDS = (0.0, 0.0, 0.0, 2.0, 2.0, INF, INF)
TARGETS = (0.0, 2.0, INF, 0.0, INF, 0.0, 2.0)
ENDS = {
    "poisson_deviance": (0, INF, INF, 4, INF, INF, INF),
    "gamma_deviance": (INF, INF, INF, INF, INF, INF, INF),
    "msle": (0, np.log(3) ** 2, INF, np.log(3) ** 2, INF, INF, INF),
    "mape": (0, 1, 1, 2e6, 1, INF, INF),
    "smape": (0, 2, 2, 2, 2, 2, 2),
    "tweedie_deviance 0": (0, 4, INF, 4, INF, INF, INF),
    "tweedie_deviance -1": (0, 8 / 3, INF, 16 / 3, INF, INF, INF),
    "tweedie_deviance 1": (0, INF, INF, 4, INF, INF, INF),
    "tweedie_deviance 1.5": (0, INF, INF, 4 * 2**0.5, INF, INF, INF),
    "tweedie_deviance 2": (INF, INF, INF, INF, INF, INF, INF),
    "tweedie_deviance 3": (INF, INF, INF, INF, INF, INF, 1 / 2),
    "tweedie_deviance 30": (INF, INF, INF, INF, INF, INF, 2 * 2.0**-28 / (29 * 28)),
    "barron -inf": (0, 1 - np.exp(-2), 1, 1 - np.exp(-2), 1, 1, 1),
    "barron -2": (0, 1, 2, 1, 2, 2, 2),
    "barron 0": (0, np.log(3), INF, np.log(3), INF, INF, INF),
    "barron 1.5": (0, 3**-1 * (9**0.75 - 1), INF, 3**-1 * (9**0.75 - 1), INF, INF, INF),
}
"""The limits of the loss where prediction and target are 0 or infinite, by the convention 0·log 0 = 0."""


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ENDS)
def test_the_ends_of_the_domain(name):
    """The limits of the value; the slope is that of values beside them, so never NaN."""
    name, *setting, want = *name.split(), ENDS[name]
    loss, names = getattr(jaxloss, name), {"tweedie_deviance": "power", "barron": "alpha"}
    settings = {names[name]: float(setting[0])} if setting else {}
    pred, target = jnp.array(PREDS), jnp.array(TARGETS)
    close(loss(pred, target, reduction="none", **settings), np.array(want), rtol=1e-6)
    slopes = np.asarray(jaxloss.slope(loss)(pred, target, **settings))
    assert not np.isnan(slopes).any()
    assert (slopes[(pred > target)] >= 0).all()
    assert (slopes[(pred < target)] <= 0).all()
    gradients = jax.grad(lambda pred: loss(pred, target, reduction="sum", **settings))(pred)
    np.testing.assert_array_equal(gradients, slopes)


def test_the_slope_of_mape_vanishes_with_an_infinite_target():
    """Or is the least number, which a CPU takes for 0."""
    assert abs(float(jax.grad(jaxloss.mape)(2.0, INF))) <= np.finfo(np.float32).tiny


@pytest.mark.parametrize("power", [1.5, 3.0, 30.0])
def test_the_slope_of_tweedie_is_infinite_with_the_target(power):
    """Also where pred^−power underflows."""
    slopes = jaxloss.slope(jaxloss.tweedie_deviance)(np.float32([2, 1e9, 1e38]), np.full(3, INF), power=power)
    np.testing.assert_array_equal(slopes, -INF)
