"""Standard units: features and targets with mean 0 and standard deviation 1, and the way back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.contract import Prediction, ShapeError, check_where, require_broadcastable
from jaxloss.numerics.shards import gather_shards

__all__ = ["Standardizer"]


class Standardizer(NamedTuple):
    """Per-column mean and standard deviation (of the population: ddof 0) along the first axis; a pytree.

    Fitted on NumPy data the statistics are float64 on the host, so an offset of 1e9 is survived; on JAX arrays they
    have the data's type, at least float32, and fitting runs under `jit`. A column that is constant has scale 1.

    >>> x = np.array([[1.0, 5.0], [3.0, 5.0]])
    >>> units = Standardizer.fit(x)
    >>> units.transform(x).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    >>> units.inverse(units.transform(x)).tolist()
    [[1.0, 5.0], [3.0, 5.0]]
    """

    count: Any
    """Rows seen; of each column where entries are masked."""
    mean: Any
    """Mean of each column, of shape x.shape[1:]; 0 of a column of which nothing was seen."""
    squares: Any
    """Sum of squared deviations from the mean, of each column."""

    @classmethod
    def fit(cls, x: Any, *, where: Any = None) -> Standardizer:
        """The statistics of an array of shape (rows, …).

        where: boolean, of the rank of x with each axis equal or 1: entries where it is False are absent. With
            `where=observed(x)` NaN means missing.

        >>> x = np.array([[1.0, 5.0], [np.nan, 6.0], [3.0, 7.0]])
        >>> Standardizer.fit(x, where=observed(x)).mean.tolist()
        [2.0, 6.0]
        """
        xp = jnp if isinstance(x, jax.Array) or isinstance(where, jax.Array) else np
        x = xp.asarray(x)
        if x.ndim == 0 or x.shape[0] == 0:
            raise ValueError(f"Standardizer.fit: needs at least one row, got an array of shape {x.shape}")
        x = x.astype(xp.promote_types(x.dtype, xp.float32 if xp is jnp else xp.float64))
        if where is None:
            deviation = x - x[:1]  # exactly 0 in a constant column, and small beside any offset
            shift = deviation.mean(0, keepdims=True)
            return cls(xp.asarray(x.shape[0]), x[0] + shift[0], xp.square(deviation - shift).sum(0))
        check_where("Standardizer.fit", where)
        require_broadcastable("Standardizer.fit", "where", where, x.shape)
        where = xp.broadcast_to(xp.asarray(where), x.shape)
        count = where.sum(0)
        some = xp.take_along_axis(x, xp.argmax(where, 0)[None], 0)  # type: ignore[arg-type]
        some = xp.where(count == 0, xp.zeros_like(some), some)
        deviation = xp.where(where, xp.where(where, x, some) - some, xp.zeros_like(x))
        shift = (deviation.sum(0) / xp.maximum(count, 1))[None]
        squares = xp.where(where, xp.square(deviation - shift), xp.zeros_like(x)).sum(0)
        return cls(count, some[0] + shift[0], squares)

    @classmethod
    def fit_stream(cls, batches: Iterable[Any]) -> Standardizer:
        """The statistics of all rows of a stream of arrays, one batch in memory at a time.

        >>> Standardizer.fit_stream(np.full((2, 1), float(value)) for value in range(3)).mean.tolist()
        [1.0]
        """
        parts: Iterator[Standardizer] = map(cls.fit, batches)
        first = next(parts, None)
        if first is None:
            raise ValueError("Standardizer.fit_stream: the stream holds no batch")
        return functools.reduce(Standardizer.merge, parts, first)

    def merge(self, other: Standardizer) -> Standardizer:
        """The statistics of both data sets together (Chan, Golub & LeVeque 1983)."""
        if np.shape(self.mean) != np.shape(other.mean):
            raise ShapeError(f"Standardizer.merge: columns of shape {np.shape(self.mean)} and {np.shape(other.mean)}")
        xp = jnp if any(isinstance(leaf, jax.Array) for leaf in (*self, *other)) else np
        count = self.count + other.count
        share = other.count / xp.maximum(count, 1)
        gap = xp.where(self.count * other.count == 0, 0, other.mean - self.mean)
        mean = xp.where(self.count == 0, other.mean, self.mean + gap * share)
        return Standardizer(count, mean, self.squares + other.squares + gap * gap * (self.count * share))

    def all_merge(self, axis_name: Any) -> Standardizer:
        """The statistics of all shards of a mesh axis together, inside `shard_map` or `vmap`: the same on each."""
        parts = gather_shards(self, axis_name)
        shards = [jax.tree.map(lambda leaf, shard=shard: leaf[shard], parts) for shard in range(parts.count.shape[0])]
        return functools.reduce(Standardizer.merge, shards)

    @property
    def scale(self) -> Any:
        """The standard deviation of each column; 1 where it is 0."""
        xp = jnp if isinstance(self.squares, jax.Array) else np
        scale = xp.sqrt(self.squares / xp.maximum(self.count, 1))
        return xp.where(scale == 0, xp.ones_like(scale), scale)

    def transform(self, x: Any) -> Any:
        """(x − mean) / scale: from the data's units to standard units."""
        mean, scale = self._matching("transform", x)
        return (x - mean) / scale

    def inverse(self, x: Any) -> Any:
        """x · scale + mean: from standard units to the data's."""
        mean, scale = self._matching("inverse", x)
        return x * scale + mean

    def inverse_distribution(self, dist: Any) -> Any:
        """A distribution or interval predicted in standard units, in the data's: that of mean + scale·Y.

        Its negative log-likelihood there is that in standard units plus log(scale).

        >>> units = Standardizer.fit(np.array([[10.0], [14.0]]))
        >>> pred = units.inverse_distribution(Normal(jnp.zeros((1, 1)), jnp.ones((1, 1))))
        >>> float(pred.loc[0, 0]), float(pred.scale[0, 0])
        (12.0, 2.0)
        """
        if not isinstance(dist, Prediction):
            raise TypeError(f"Standardizer.inverse_distribution: got {type(dist).__name__}; for arrays use inverse")
        mean, scale = self._matching("inverse_distribution", jax.ShapeDtypeStruct(dist.shape, jnp.float32))
        return dist.affine(mean, scale)

    def _matching(self, what: str, x: Any) -> tuple[Any, Any]:
        columns, shape = np.shape(self.mean), np.shape(x)
        if shape[len(shape) - len(columns) :] != columns or len(shape) < len(columns):
            raise ShapeError(f"Standardizer.{what}: fitted on columns of shape {columns}, got shape {shape}")
        aligned = (1,) * (len(shape) - len(columns)) + columns  # no silent rank promotion
        mean, scale = self.mean.reshape(aligned), self.scale.reshape(aligned)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.asarray(mean, x.dtype), jnp.asarray(scale, x.dtype)
        return mean, scale
