"""Families built of others: mixtures of a family, and vectors whose coordinates are correlated."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import erf

from jaxloss.contract import REAL, Domain, ShapeError, check_settings
from jaxloss.likelihood.constant import moments
from jaxloss.likelihood.continuous import SCALE, Normal, homogeneous
from jaxloss.likelihood.distribution import Distribution, family, parameter
from jaxloss.numerics.order import quantiles

__all__ = ["Mixture", "MultivariateNormal"]

Array = jax.Array


def _is_factor(value: np.ndarray) -> np.ndarray:
    if value.ndim < 2:
        return np.array(True)  # which is a wrong shape, and told as such
    diagonal = np.diagonal(value, axis1=-2, axis2=-1)
    return np.array(np.isfinite(value).all() and (diagonal > 0).all() and not np.triu(value, 1).any())


FACTOR = Domain("finite and lower triangular with a positive diagonal", _is_factor, 1.0)


def _log_sum(log_weights: Array, terms: Array) -> Array:
    """log Σ weight·exp(term) over the last axis; where all terms are −∞ it is −∞, with zero gradient."""
    none = jnp.all(terms == -jnp.inf, -1, keepdims=True)
    total = jax.nn.logsumexp(log_weights + jnp.where(none, 0, terms), -1)
    return jnp.where(none[..., 0], -jnp.inf, total)


@family
class Mixture(Distribution):
    """Mixture of K distributions of one family, component k with probability softmax(logits)ₖ.

    `logits` and every array of `components` have one axis more than the target, the last, of size K: with loc and
    scale of shape (batch, K), `Mixture(logits, Normal(loc, scale))` is compared with targets of shape (batch,).
    log density log Σₖ softmax(logits)ₖ·densityₖ. A density may have several modes: for targets that go one way or the
    other, where a mean between them is never right (mixture density networks: Bishop 1994).

    >>> either_way = Mixture(jnp.zeros((1, 2)), Normal(jnp.array([[-3.0, 3.0]]), jnp.ones((1, 2))))
    >>> either_way.mean.tolist(), either_way.variance.tolist()
    ([0.0], [10.0])
    >>> round(float(nll(either_way, jnp.array([3.0]))), 6)
    1.612086
    """

    logits: Any = parameter(REAL, trailing=1)
    components: Any = parameter(None, trailing=1)

    def __post_init__(self) -> None:
        check_settings("Mixture", {"logits": self.logits}, vars(self), self.domain)
        inner = self.components
        if not isinstance(inner, Distribution) or inner.event_ndim or inner.trailing:
            raise TypeError(
                "Mixture: components must be a family of one number, such as Normal(loc, scale), "
                f"got {type(inner).__name__}"
            )
        sizes = {jnp.shape(leaf)[-1:] for leaf in jax.tree.leaves(self)}
        if len(sizes) > 1 or () in sizes:
            shapes = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(inner))
            raise ShapeError(
                f"Mixture: logits has shape {jnp.shape(self.logits)} and the components' arrays {shapes}; "
                "the last axis of all of them must be the number of components"
            )

    @property
    def support(self) -> Domain:  # type: ignore[override]
        """That of the components."""
        return self.components.support

    @property
    def discrete(self) -> bool:  # type: ignore[override]
        """Whether the components are."""
        return self.components.discrete

    def _log_weights(self) -> Array:
        return jax.nn.log_softmax(self.logits)

    def _each(self, target: Array) -> Array:
        return jnp.broadcast_to(target[..., None], self.logits.shape)

    def _mean(self) -> Array:
        return jnp.sum(jnp.exp(self._log_weights()) * self.components._mean(), -1)

    def _variance(self) -> Array:
        deviation = self.components._mean() - self._mean()[..., None]
        return jnp.sum(jnp.exp(self._log_weights()) * (self.components._variance() + jnp.square(deviation)), -1)

    def _log_prob(self, target: Array) -> Array:
        return _log_sum(self._log_weights(), self.components._log_prob(self._each(target)))

    def _cdf(self, target: Array) -> Array:
        below = jnp.sum(jnp.exp(self._log_weights()) * self.components._cdf(self._each(target)), -1)
        return jnp.minimum(below, 1)  # which the weights may pass by rounding

    def _log_tails(self, target: Array) -> tuple[Array, Array]:
        below, above = self.components._log_tails(self._each(target))
        return _log_sum(self._log_weights(), below), _log_sum(self._log_weights(), above)

    def _sample(self, key: Array) -> Array:
        which, value = jax.random.split(key)
        index = jax.random.categorical(which, self.logits)[..., None]
        chosen = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, index, -1)[..., 0], self.components)
        return chosen._sample(value)

    def _crps(self, target: Array) -> Array:
        """Grimit, Gneiting, Berrocal & Johnson (2006), eq. 5."""
        if not isinstance(self.components, Normal):
            return super()._crps(target)
        loc, scale, weights = self.components.loc, self.components.scale, jnp.exp(self._log_weights())
        from_target = _expected_distance(self._each(target) - loc, scale)
        apart = _expected_distance(loc[..., None] - loc[..., None, :], jnp.hypot(scale[..., None], scale[..., None, :]))
        pairs = jnp.sum(weights[..., None] * weights[..., None, :] * apart, (-2, -1))
        return jnp.sum(weights * from_target, -1) - 0.5 * pairs

    def _affine(self, shift: Any, scale: Any) -> Self:
        shift, scale = (value if jnp.ndim(value) == 0 else jnp.asarray(value)[..., None] for value in (shift, scale))
        return type(self)(self.logits, self.components._affine(shift, scale))

    @classmethod
    def from_raw(cls, raw: Any, family: type[Distribution] = Normal) -> Self:
        """Valid parameters from a last axis of K·(1 + family.raw_size) numbers: per component its logit and its own.

        >>> Mixture.from_raw(jnp.zeros((5, 6)), Normal).logits.shape
        (5, 2)
        """
        if not issubclass(family, Distribution) or family.raw_size == 0:
            raise TypeError(f"Mixture.from_raw: family must be one of one number, such as Normal, got {family!r}")
        raw, each = jnp.asarray(raw), 1 + family.raw_size
        if raw.ndim == 0 or raw.shape[-1] == 0 or raw.shape[-1] % each:
            raise ShapeError(
                f"Mixture.from_raw: raw has shape {raw.shape}; its last axis must be a multiple of {each}, a logit and "
                f"the {family.raw_size} of {family.__name__} per component: {each}, {2 * each}, {3 * each}, …"
            )
        raw = raw.reshape(*raw.shape[:-1], raw.shape[-1] // each, each)
        return cls(raw[..., 0], family.from_raw(raw[..., 1:]))

    @classmethod
    def initial_bias(
        cls, target: Any, weights: Any = None, family: type[Distribution] = Normal, components: int = 2
    ) -> Array:
        """As that of a family, from components placed at quantiles of the targets: a maximum nearby, not the highest.

        >>> target = np.concatenate([np.linspace(-4, -2, 50), np.linspace(7, 9, 50)])
        >>> Mixture.from_raw(Mixture.initial_bias(target)).components.loc.round(1).tolist()
        [-3.0, 8.0]
        """

        def start(column: Array, each: Array) -> Array:
            middle = quantiles(column, each, (jnp.arange(components) + 0.5).astype(column.dtype) / components)
            _, variance = moments(column, each)
            own = family._to_raw(*family._of_moments(middle, jnp.full_like(middle, variance / components**2)))
            return jnp.concatenate([jnp.zeros_like(middle)[:, None], own], -1).ravel()

        make = partial(cls.from_raw, family=family)
        return cls._initial_bias(target, weights, family.support, make, start)


@homogeneous
def _expected_distance(z: Array) -> tuple[Array, Array]:
    """E|Y| for a normal Y of mean distance and standard deviation scale."""
    return erf(z / math.sqrt(2)), math.sqrt(2 / math.pi) * jnp.exp(-0.5 * z * z)


@family
class MultivariateNormal(Distribution):
    """Normal distribution of vectors, of mean `loc` and covariance scale_tril·scale_trilᵀ.

    `loc` has the target's shape (…, d), `scale_tril` (…, d, d) is lower triangular with a positive diagonal. A vector
    is one target: losses, weights and masks have shape (…). `mean` and `variance` are per coordinate.
    log density −½|z|² − Σ log(diagonal) − ½d·log(2π), where scale_tril·z = target − loc.

    >>> from jaxloss import MultivariateNormal, nll
    >>> dist = MultivariateNormal(jnp.zeros((1, 2)), jnp.array([[[1.0, 0.0], [0.6, 0.8]]]))
    >>> round(float(dist.covariance[0, 0, 1]), 6)
    0.6
    >>> nll(dist, jnp.array([[1.0, 1.0]]), reduction="none").shape
    (1,)
    """

    loc: Any = parameter(REAL)
    scale_tril: Any = parameter(FACTOR, trailing=1)

    event_ndim = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        loc, factor = jnp.shape(self.loc), jnp.shape(self.scale_tril)
        if not loc or factor[-2:] != loc[-1:] * 2:
            raise ShapeError(
                f"MultivariateNormal: loc has shape {loc} and scale_tril {factor}; they must be (…, d) and (…, d, d)"
            )

    @property
    def covariance(self) -> Array:
        """The covariance matrices, (…, d, d)."""
        factor = self._computing()._factor()
        return jnp.matmul(factor, jnp.matrix_transpose(factor), precision="highest")

    def _factor(self) -> Array:
        return jnp.tril(self.scale_tril)

    def _mean(self) -> Array:
        return self.loc

    def _variance(self) -> Array:
        return jnp.sum(jnp.square(self._factor()), -1)

    def _log_prob(self, target: Array) -> Array:
        residual = (target - self.loc)[..., None]
        z = lax.linalg.triangular_solve(self.scale_tril, residual, left_side=True, lower=True)[..., 0]
        diagonal = jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1)
        return jnp.sum(-0.5 * jnp.square(z) - jnp.log(diagonal) - 0.5 * math.log(2 * math.pi), -1)

    def _quantile(self, level: Array) -> Array:
        raise self._without("quantile")

    def _sample(self, key: Array) -> Array:
        z = jax.random.normal(key, self.shape, self.loc.dtype)[..., None]
        return self.loc + jnp.matmul(self._factor(), z, precision="highest")[..., 0]

    def _affine(self, shift: Any, scale: Any) -> Self:
        rows = scale if jnp.ndim(scale) == 0 else jnp.asarray(scale)[..., None]
        return type(self)(shift + scale * self.loc, rows * self.scale_tril)

    @classmethod
    def from_raw(cls, raw: Any) -> Self:
        """Valid parameters from a last axis of d + d(d + 1)/2 numbers: loc, the diagonal, and the rows below it.

        >>> MultivariateNormal.from_raw(jnp.zeros((5, 9))).scale_tril.shape
        (5, 3, 3)
        """
        raw = jnp.asarray(raw)
        size = raw.shape[-1] if raw.ndim else 0
        d = (math.isqrt(9 + 8 * size) - 3) // 2
        if d == 0 or size != d * (d + 3) // 2:
            raise ShapeError(
                f"MultivariateNormal.from_raw: raw has shape {raw.shape}; its last axis must be d + d(d + 1)/2 for "
                "vectors of size d: 2, 5, 9, 14, …"
            )
        loc, diagonal, below = jnp.split(raw, (d, 2 * d), -1)
        rows, columns = np.tril_indices(d, -1)
        factor = jnp.zeros((*raw.shape[:-1], d, d), raw.dtype)
        factor = factor.at[..., np.arange(d), np.arange(d)].set(SCALE.of_raw(diagonal))
        return cls(loc, factor.at[..., rows, columns].set(below))

    @classmethod
    def _start(cls, column: Array, weights: Array) -> Array:
        """The likeliest itself: the mean, and the factor of the covariance."""
        mean, variance = moments(column, weights)
        deviation = (column - mean[None, :]) * jnp.sqrt(weights / weights.sum())[:, None]
        covariance = jnp.matmul(deviation.T, deviation, precision="highest")
        factor = jnp.linalg.cholesky(covariance + 1e-6 * jnp.diag(variance))
        below = factor[np.tril_indices(len(mean), -1)]
        return jnp.concatenate([mean, SCALE.to_raw(jnp.diagonal(factor)), below])
