"""A distribution known by samples: an ensemble's predictions, or draws of a family without closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp

from jaxloss.contract import ShapeError, shown
from jaxloss.likelihood.distribution import Distribution, family, parameter
from jaxloss.likelihood.joint import Mixture
from jaxloss.numerics import kink

__all__ = ["Ensemble", "ensemble_predict"]

Array = jax.Array


@family
class Ensemble(Distribution):
    """Equally likely samples: `values` of shape target.shape + (m,), m ≥ 2.

    mean and variance (by m − 1) are those of the sample; cdf and quantile those of the empirical distribution. `crps`
    is the fair estimate of the score of the distribution that the samples are from, so it may be slightly negative.

    >>> members = jnp.array([[1.0, 10.0], [3.0, 14.0]])      # two members' predictions of two targets
    >>> Ensemble.of(members).mean.tolist(), Ensemble.of(members).variance.tolist()
    ([2.0, 12.0], [2.0, 8.0])
    """

    values: Any = parameter(None, trailing=1)

    @classmethod
    def of(cls, samples: Any) -> Self:
        """From samples along the first axis, as `sample(key, (m,))` draws them."""
        if jnp.ndim(samples) == 0 or jnp.shape(samples)[0] < 2:
            raise ShapeError(f"Ensemble.of: needs at least 2 samples along the first axis, got {jnp.shape(samples)}")
        return cls(jnp.moveaxis(jnp.asarray(samples), 0, -1))

    def _mean(self) -> Array:
        return self.values.mean(-1)

    def _variance(self) -> Array:
        return self.values.var(-1, ddof=1)

    def _cdf(self, target: Array) -> Array:
        return (self.values <= target[..., None]).mean(-1, dtype=self.values.dtype)

    def _crps(self, target: Array) -> Array:
        """mean|x − target| − ½ mean|x − x′| over different pairs, of one target.

        In order, x counts as often as there are lesser samples, less once for each greater one.
        """
        deviations = jnp.sort(self.values - target)
        count = deviations.size
        ranks = sum(jnp.searchsorted(deviations, deviations, side=side) for side in ("left", "right")) - count
        return kink.absolute(deviations).mean() - (ranks * deviations).sum() / (count * (count - 1))

    def _sample(self, key: Array) -> Array:
        index = jax.random.randint(key, (*self.shape, 1), 0, self.values.shape[-1])
        return jnp.take_along_axis(self.values, index, -1)[..., 0]

    def _affine(self, shift: Any, scale: Any) -> Self:
        shift, scale = (value if jnp.ndim(value) == 0 else jnp.asarray(value)[..., None] for value in (shift, scale))
        return type(self)(shift + scale * self.values)


def ensemble_predict(apply: Callable, params: Any, x: Any) -> Distribution:
    """The prediction of an ensemble, as a distribution with `mean`, `variance`, `quantile` and the rest.

    apply: `apply(params, x) -> pred`. params: with the members along the first axis, as `train.fit_many` returns them.

    Of predictions that are numbers it is their `Ensemble`; of distributions the equally weighted `Mixture`, whose
    variance is that within the members plus that between them (Lakshminarayanan et al. 2017).

    >>> params = jnp.array([[1.0], [3.0]])
    >>> ensemble_predict(lambda params, x: x @ params, params, jnp.ones((5, 1))).mean.tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if len(sizes) != 1 or () in sizes or (0,) in sizes:
        raise ShapeError(f"ensemble_predict: every leaf of params needs the members first, got {sorted(sizes)}")
    preds = jax.vmap(apply, in_axes=(0, None))(params, x)
    if isinstance(preds, jax.Array):
        return Ensemble.of(preds)
    if not isinstance(preds, Distribution):
        raise TypeError(f"ensemble_predict: apply must give an array or a distribution, got {shown(type(preds))}")
    components = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), preds)
    return Mixture(jnp.zeros_like(jax.tree.leaves(components)[0]), components)
