"""Losses of a prediction that is a distribution: proper scores, all called like any loss."""

from __future__ import annotations

import jax

from jaxloss.lift import pointwise
from jaxloss.likelihood.distribution import Distribution

__all__ = ["crps", "nll"]

Array = jax.Array


@pointwise
def nll(pred: Distribution, target: Array) -> Array:
    """Negative log-likelihood −log pred.log_prob(target), constants included, so that families compare.

    >>> float(nll(Normal(jnp.zeros(1), jnp.ones(1)), jnp.zeros(1)))
    0.9189385175704956
    """
    return -pred._log_prob(target)


@pointwise
def crps(pred: Distribution, target: Array) -> Array:
    """Continuous ranked probability score ∫(F(y) − 1{y ≥ target})² dy, in the target's units.

    Gneiting & Raftery, JASA 2007, eq. 20. It is |pred − target| for a certain prediction: mae for distributions.

    >>> round(float(crps(Normal(jnp.zeros(1), jnp.ones(1)), jnp.zeros(1))), 6)
    0.233695
    """
    return pred._crps(target)
