"""No gradient is NaN beside a finite value, over numbers drawn from the bits of float32.

A branch that is not taken is differentiated too, and its derivative multiplied by 0: where it overflows that is NaN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import each_loss
from families import FAMILIES, LONG, each_family

import jaxloss
from jaxloss.contract import Domain

FEW, MANY = 2**12, 2**20
UNMENDED = {"barron": 2**16, "LogNormal": 2**16}
"""How many numbers are drawn where, of a million, one to three gradients are still NaN: barron's in alpha where the
residual leaves float32, LogNormal's where exp(loc) does."""
FLOAT32 = np.finfo(np.float32)


def anywhere(random: np.random.Generator, count: int) -> np.ndarray:
    """Finite numbers of float32 by their bits; those that are to XLA 0 are 0."""
    numbers = random.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    return np.where(np.isfinite(numbers) & (np.abs(numbers) >= FLOAT32.tiny), numbers, np.float32(0))


def within(domain: Domain, numbers: np.ndarray) -> np.ndarray:
    """The numbers where the domain holds them; else their size, its negative, its fraction, or a number inside."""
    numbers = np.float32(numbers)
    size = np.abs(numbers)
    for other in (size, -size, np.floor(size), size % 1, np.full_like(size, domain.inside)):
        numbers = np.where(domain.holds(numbers), numbers, other)
    return numbers


def draw(random: np.random.Generator, domain: Domain, count: int) -> np.ndarray:
    """Half from the bits, half ordinary."""
    ordinary = random.uniform(-4, 8, count)
    return within(domain, np.where(random.uniform(size=count) < 0.5, anywhere(random, count), ordinary))


@np.errstate(over="ignore")
def near(random: np.random.Generator, centre: np.ndarray, unit: np.ndarray, domain: Domain) -> np.ndarray:
    """Half at distances of every size from the centre, in the unit; some at it; the rest anywhere."""
    count = centre.size
    beside = np.float32(centre + random.choice([-1, 1], count) * 10 ** random.uniform(-8, 8, count) * unit)
    which = random.uniform(size=count)
    chosen = np.where(which < 0.5, beside, np.where(which < 0.55, centre, anywhere(random, count)))
    return within(domain, np.where(np.isfinite(chosen), chosen, centre))


def check(function, *arguments) -> None:
    """The gradient of each value in every argument."""

    @jax.jit
    def both(*arguments):
        values, pull = jax.vjp(function, *arguments)
        return values, pull(jnp.ones_like(values))

    values, gradients = both(*arguments)
    finite = np.isfinite(values)
    assert finite.mean() > 0.1
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        wrong = np.flatnonzero(finite & np.isnan(gradient))
        if wrong.size:
            at = jax.tree.map(lambda leaf, i=wrong[0]: float(leaf[i]), arguments)
            raise AssertionError(f"{wrong.size} NaN in {jax.tree_util.keystr(path)}, as at {at}")


def check_loss(row, count: int) -> None:
    random, known = np.random.default_rng(0), jaxloss.traits(row.loss)
    pred = draw(random, known.pred, count)
    target = near(random, pred, np.maximum(np.abs(pred), FLOAT32.tiny), known.target)
    settings = {name: draw(random, row.loss.lifted.domain[name], count) for name in row.usual}

    def losses(pred, target, settings):
        return row.loss(pred, target, reduction="none", **settings)

    check(losses, pred, target, settings)
    check(lambda pred: jaxloss.slope(row.loss)(pred, target, **settings), pred)


@each_loss
def test_gradients_of_losses(row):
    check_loss(row, FEW)


@pytest.mark.slow
@each_loss
def test_gradients_of_losses_at_many_numbers(row):
    check_loss(row, FEW if row.name == "barron_nll" else UNMENDED.get(row.name, MANY))


def drawn(row, random: np.random.Generator, count: int):
    """A distribution of the family, and targets."""
    parameters = {name: draw(random, domain, count) for name, domain in row.family.domain.items()}
    dist = row.family(**{name: jnp.asarray(value) for name, value in parameters.items()})
    if row.family.support.holds(np.float32(-0.5)):
        return dist, near(random, parameters["loc"], parameters["scale"], row.family.support)
    logarithm = next(value for name, value in parameters.items() if name in ("loc", "log_mean", "log_rate"))
    centre = np.float32(np.exp(np.clip(logarithm, -85, 85)))
    return dist, near(random, centre, centre, row.family.support)


def check_family(row, count: int) -> None:
    random = np.random.default_rng(1)
    dist, target = drawn(row, random, count)
    upper = np.maximum(target, near(random, target, np.abs(target), row.family.support))
    upper = np.where(random.uniform(size=count) < 0.1, np.float32(np.inf), upper)

    def elementwise(loss, **settings):
        return lambda dist, target: loss(dist, target, reduction="none", **settings)

    def interval(dist, target, upper):
        return jaxloss.censored_nll(dist, target, censoring=1, upper=upper, reduction="none")

    check(lambda dist, target: dist._log_prob(target), dist, target)
    check(lambda dist, target: dist._cdf(target), dist, target)
    check(elementwise(jaxloss.nll), dist, target)
    check(elementwise(jaxloss.beta_nll), dist, target)
    check(elementwise(jaxloss.censored_nll, censoring=-1), dist, target)
    check(lambda dist, upper: interval(dist, target, upper), dist, upper)
    if row.crps:
        check(elementwise(jaxloss.crps), dist, target)
    if not row.family.discrete:
        level = within(Domain("", lambda x: (x >= FLOAT32.tiny) & (x < 1), 0.5), anywhere(random, count))
        check(lambda dist, level: dist._quantile(level), dist, level)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("row", FAMILIES[:2], ids=lambda row: row.name)
def test_gradients_of_families(row):
    """Of those of few operations; the slow test below has all."""
    check_family(row, FEW)


@pytest.mark.slow
@each_family
def test_gradients_of_families_at_many_numbers(row):
    check_family(row, 2**14 if row.name in LONG else UNMENDED.get(row.name, MANY))
