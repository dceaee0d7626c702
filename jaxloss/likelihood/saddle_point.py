"""Probabilities of counts in the saddle-point form of Loader, and their tails.

Loader ("Fast and accurate computation of binomial probabilities", 2000) takes them by Stirling's formula, its
correction, and unit deviances, which are sums of terms of one sign. The textbook form is a difference of numbers that
grow as count·log(count), and loses all digits of large counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.likelihood.tails import gamma_tails, hold_shape, log_integral
from jaxloss.numerics.gamma import exp_excess, log_complement, log_difference, stirling_correction
from jaxloss.numerics.partials import ratio, with_partials

__all__ = ["excess", "negative_binomial_log_mass", "negative_binomial_tails", "poisson_log_mass", "poisson_tails"]

Array = jax.Array


def _or_one(count: Array) -> Array:
    """The count, and 1 in place of a count of 0."""
    return jnp.where(count > 0, count, 1)


def _excess(count: Array, log_rate: Array) -> Array:
    """rate − count, without cancellation."""
    some = _or_one(count)
    log_ratio = log_difference(some, log_rate)
    near = (count > 0) & (jnp.abs(log_ratio) < 1)
    return jnp.where(near, some * jnp.expm1(-jnp.where(near, log_ratio, 0)), jnp.exp(log_rate) - count)


excess = with_partials(_excess, lambda count, _: -jnp.ones_like(count), lambda _, log_rate: jnp.exp(log_rate))


def _log_ratio(count: Array, log_rate: Array) -> Array:
    """log(count/rate), and 0 for a count of 0."""
    return jnp.where(count > 0, log_difference(_or_one(count), log_rate), 0)


def _deviance(count: Array, log_rate: Array) -> Array:
    """count·log(count/rate) + rate − count: half the unit deviance of Poisson."""
    log_ratio = _log_ratio(count, log_rate)
    near = (count > 0) & (jnp.abs(log_ratio) < 1)
    far = count * (log_ratio - 1) + jnp.exp(log_rate)
    return jnp.where(near, count * exp_excess(-jnp.where(near, log_ratio, 0)), far)


deviance = with_partials(_deviance, _log_ratio, excess)


def _log_peak(count: Array) -> Array:
    """log(countᶜe⁻ᶜ/count!): the log probability of a count if the rate is that count."""
    some = _or_one(count)
    return jnp.where(count > 0, -0.5 * jnp.log(2 * math.pi * some) - stirling_correction(some), 0)


def poisson_log_mass(count: Array, log_rate: Array) -> Array:
    """The log probability of a Poisson count."""
    return _log_peak(count) - deviance(count, log_rate)


def poisson_tails(count: Array, log_rate: Array) -> tuple[Array, Array]:
    """log P(Y ≤ count), log P(Y > count) for count ≥ 0: those of a gamma variable of shape count + 1."""
    above, below = gamma_tails(count + 1, -log_difference(count + 1, log_rate))
    return below, above


# Half the unit deviance of negative binomials. With n = count + concentration, the shares q = count/n, p =
# concentration/n, and u = log(count/rate), it is made of t = log(q + p·eᵘ) and v = log(p + q·e⁻ᵘ): the logarithms of
# count, and of concentration, over what n lets expect of them. t − v = u.


def _log_blend(share: Array, rest: Array, x: Array) -> Array:
    """log(rest + share·eˣ) where share + rest = 1."""
    below, above = (x < -0.5) & (share > 0.5), x > 80
    near = jnp.log1p(share * jnp.expm1(jnp.where(below | above, 0, x)))
    far_below = jnp.log(rest + share * jnp.exp(jnp.minimum(x, 0)))
    far_above = x + jnp.log(share + rest * jnp.exp(-jnp.maximum(x, 0)))
    return jnp.where(above, far_above, jnp.where(below, far_below, near))


def _count_share(count: Array, concentration: Array) -> Array:
    return count / (count + concentration)


def _concentration_share(count: Array, concentration: Array) -> Array:
    return concentration / (count + concentration)


def _of_count(count: Array, concentration: Array, u: Array) -> Array:
    return _log_blend(_concentration_share(count, concentration), _count_share(count, concentration), u)


def _of_concentration(count: Array, concentration: Array, u: Array) -> Array:
    return _log_blend(_count_share(count, concentration), _concentration_share(count, concentration), -u)


def _gap(count: Array, concentration: Array, u: Array) -> Array:
    """e⁻ᵛ − e⁻ᵗ."""
    t, v = log_of_count(count, concentration, u), log_of_concentration(count, concentration, u)
    return jnp.where(u > 0, -jnp.exp(-v) * jnp.expm1(-jnp.maximum(u, 0)), jnp.exp(-t) * jnp.expm1(jnp.minimum(u, 0)))


def _by_count(count: Array, concentration: Array, u: Array) -> Array:
    share = _concentration_share(count, concentration)
    return -share / (count + concentration) * gap(count, concentration, u)


def _by_concentration(count: Array, concentration: Array, u: Array) -> Array:
    share = _count_share(count, concentration)
    return share / (count + concentration) * gap(count, concentration, u)


log_of_count = with_partials(
    _of_count,
    _by_count,
    _by_concentration,
    lambda *at: _concentration_share(*at[:2]) * jnp.exp(-log_of_concentration(*at)),
)
log_of_concentration = with_partials(
    _of_concentration,
    _by_count,
    _by_concentration,
    lambda *at: -_count_share(*at[:2]) * jnp.exp(-log_of_count(*at)),
)
gap = with_partials(
    _gap,
    lambda *at: -gap(*at) * _by_count(*at),
    lambda *at: -gap(*at) * _by_concentration(*at),
    lambda *at: jnp.exp(-log_of_count(*at) - log_of_concentration(*at)),
)


def _spread_deviance(count: Array, concentration: Array, u: Array) -> Array:
    """count·u − n·log(n/(concentration + rate)) as a sum of two terms of one sign, count > 0."""
    t, v = log_of_count(count, concentration, u), log_of_concentration(count, concentration, u)
    return count * exp_excess(-t) + concentration * exp_excess(-v)


spread_deviance = with_partials(
    _spread_deviance,
    lambda *at: exp_excess(-log_of_count(*at)),
    lambda *at: exp_excess(-log_of_concentration(*at)),
    lambda *at: at[0] * _concentration_share(*at[:2]) * gap(*at),
)


def _log_odds(log_rate: Array, concentration: Array) -> Array:
    """log(1 + rate/concentration)."""
    far = log_rate - jnp.log(concentration)
    near = jnp.log1p(jnp.exp(jnp.where(far > 60, 0, log_rate)) / concentration)
    return jnp.where(far > 60, far, near)


log_odds = with_partials(
    _log_odds,
    lambda *at: -jnp.expm1(-log_odds(*at)),
    lambda *at: jnp.expm1(-log_odds(*at)) / at[1],
)


def _scaled(log_rate: Array, concentration: Array, odds: Array) -> Array:
    """concentration·odds, for odds that are rate/concentration where that is so small that it underflows."""
    return jnp.where(jnp.abs(odds) > 1e-30, concentration * odds, jnp.exp(log_rate))


spread_deviance_of_none = with_partials(
    lambda log_rate, concentration: _scaled(log_rate, concentration, log_odds(log_rate, concentration)),
    lambda log_rate, concentration: _scaled(log_rate, concentration, -jnp.expm1(-log_odds(log_rate, concentration))),
    lambda log_rate, concentration: exp_excess(-log_odds(log_rate, concentration)),
)
spread_deviance_of_none.__doc__ = """concentration·log(1 + rate/concentration): the half deviance of a count of 0."""


def negative_binomial_log_mass(count: Array, log_rate: Array, concentration: Array) -> Array:
    """The log probability of a negative binomial count."""
    some = _or_one(count)
    corrections = stirling_correction(some + concentration) - stirling_correction(concentration)
    peak = _log_peak(some) - 0.5 * jnp.log1p(ratio(some, concentration)) + corrections
    log_mass = peak - spread_deviance(some, concentration, log_difference(some, log_rate))
    return jnp.where(count > 0, log_mass, -spread_deviance_of_none(log_rate, concentration))


def _beta_fall(step: Array, after: Array, log_rate: Array, concentration: Array) -> Array:
    """By how much the logarithm of a tail's integrand has fallen, a step into the tail: a sum of two unit deviances."""
    step = jnp.where(log_difference(after, log_rate) <= 0, -step, step)
    own, rate = spread_deviance(after, concentration, step), jnp.exp(log_rate)
    ahead = concentration / (concentration + after) * (excess(after, log_rate) / (concentration + rate))
    return own + (after + concentration) * jnp.log1p(-ahead * gap(after, concentration, step))


def _beta_integral(after: Array, log_rate: Array, concentration: Array, reach: Array) -> Array:
    """The logarithm of a tail over its integrand at the end: of P(Y ≥ after), or where after ≤ rate of P(Y < after).

    It is the tail of a beta variable: the integral of exp(−fall) over its log odds.
    """
    return log_integral(lambda step: _beta_fall(step, after, log_rate, concentration), reach)


def _beta_tail_value(after: Array, log_rate: Array, concentration: Array, reach: Array) -> Array:
    at_end = negative_binomial_log_mass(after, log_rate, concentration) + jnp.log(after)
    return at_end + _beta_integral(after, log_rate, concentration, reach)


def _beta_tail_by_log_rate(after: Array, log_rate: Array, concentration: Array, reach: Array) -> Array:
    rate = jnp.exp(-_beta_integral(after, log_rate, concentration, reach))
    return jnp.where(log_difference(after, log_rate) <= 0, -rate, rate)


def _beta_tail_by_concentration(after: Array, log_rate: Array, concentration: Array, reach: Array) -> Array:
    def tail(concentration: Array) -> Array:
        return _beta_tail_value(after, log_rate, concentration, reach)

    return jax.jvp(tail, (concentration,), (jnp.ones_like(concentration),))[1]


def _none(after: Array, *_: Array) -> Array:
    return jnp.zeros_like(after)


_beta_tail = with_partials(_beta_tail_value, _none, _beta_tail_by_log_rate, _beta_tail_by_concentration, _none)


def negative_binomial_tails(count: Array, log_rate: Array, concentration: Array) -> tuple[Array, Array]:
    """log P(Y ≤ count), log P(Y > count) for count ≥ 0, which has no derivative."""
    after, concentration = lax.stop_gradient(count + 1), hold_shape(concentration)
    parameters = (after, log_rate, concentration)
    reach = _reach(lambda step: _beta_fall(step, *lax.stop_gradient(parameters)), after)
    tail, lower = _beta_tail(*parameters, reach), log_difference(after, log_rate) <= 0
    other = log_complement(tail)
    return jnp.where(lower, tail, other), jnp.where(lower, other, tail)


def _reach(fall: Callable[[Array], Array], like: Array) -> Array:
    """The step at which exp(−fall) is below the type's precision, to 1 %, for a convex fall that is 0 at the start."""
    info = jnp.finfo(like.dtype)
    # e⁻¹⁸ and e⁻⁴⁰ are below the precision. The bisection is over logarithms of steps, from near the least float up to
    # where the square of a step is still a float.
    enough, least, most = (18.0, -84.0, 44.0) if info.bits <= 32 else (40.0, -700.0, 350.0)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        past = fall(jnp.exp(middle)) >= enough
        return jnp.where(past, low, middle), jnp.where(past, middle, high)

    ends = jnp.full_like(like, least), jnp.full_like(like, most)
    return jnp.exp(lax.fori_loop(0, 17, halve, ends)[1])
