"""What every family of distributions shares: a prediction with parameters in place of a number.

A family is a frozen dataclass whose fields are arrays, registered as a pytree by `family`: it passes through `jit`,
`vmap`, `grad` and every loss made by `pointwise` like any prediction. Each field is a `parameter`, which says what
values it may take, and how it is made of a network's output. It has the shape of the target, and `trailing` axes more
where it says so, as a mixture's components do.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.contract import (
    REAL,
    Domain,
    Prediction,
    ShapeError,
    check_settings,
    check_support,
    computing_dtype,
    is_host_value,
    loss_shape,
    to_dtype,
)
from jaxloss.likelihood.constant import best_constant, moments
from jaxloss.numerics.gamma import log_complement
from jaxloss.numerics.order import bisect, float_of_rank, rank_of_float

__all__ = ["FREE", "Distribution", "Link", "above", "family", "parameter", "within"]

Array = jax.Array
Family = TypeVar("Family", bound=type)


class Link(NamedTuple):
    """How a parameter is made of a raw number, which may be any, and the way back."""

    of_raw: Callable[[Array], Array]
    to_raw: Callable[[Array], Array]


FREE = Link(lambda raw: raw, lambda value: value)
"""The parameter is the raw number itself."""


def above(floor: float) -> Link:
    """softplus(raw) + floor, which is linear far out; the way back takes the floor for a value a little above it."""

    def to_raw(value: Array) -> Array:
        excess = jnp.maximum(value - floor, 1e-3 * floor)
        return excess + log_complement(-excess)

    return Link(lambda raw: jax.nn.softplus(raw) + floor, to_raw)


def within(bound: float) -> Link:
    """bound·tanh(raw/bound), ≈ raw well inside ±bound; the way back takes a value past a bound for one just inside."""
    return Link(
        lambda raw: bound * jnp.tanh(raw / bound),
        lambda value: bound * jnp.arctanh(jnp.clip(value / bound, -0.99, 0.99)),
    )


def parameter(domain: Domain | None = REAL, link: Link | None = None, trailing: int = 0) -> Any:
    """Declare a field of a family.

    domain: the values it may take; None for any, and for a field that is itself a distribution.
    link: how `from_raw` makes it of a network's output; None where the family does that by itself.
    trailing: how many axes it has beyond those of the target.
    """
    return dataclasses.field(metadata={"domain": domain, "link": link, "trailing": trailing})


def _declared(fields: tuple[dataclasses.Field, ...]) -> dict[str, Any]:
    """What the fields of a family declare, by the class attribute that holds it."""
    found: dict[str, Any] = {
        what: {field.name: field.metadata[what] for field in fields if field.metadata.get(what)}
        for what in ("domain", "link", "trailing")
    }
    found["raw_size"] = len(found["link"])
    return {what: value for what, value in found.items() if value}


@dataclass_transform(frozen_default=True, field_specifiers=(parameter,))
def family(cls: Family) -> Family:
    """Make the class a frozen dataclass and a pytree of its fields.

    Unflattening checks nothing and casts nothing: a gradient in a distribution has its structure, not its domain.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))
    for attribute, value in _declared(dataclasses.fields(cls)).items():
        setattr(cls, attribute, value)

    def unflatten(_: Any, children: Any) -> Any:
        made = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(made, name, child)
        return made

    jax.tree_util.register_pytree_with_keys(
        cls,
        lambda self: ([(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names], None),
        unflatten,
        lambda self: ([getattr(self, name) for name in names], None),
    )
    return cls


class Distribution(Prediction):
    """A prediction that is a distribution.

    Methods take a value of the distribution's shape, or a scalar, and work elementwise; nothing else is broadcast.
    Under `vmap` a method takes one element. Parameters in half precision are computed with in float32. A parameter
    given as a Python or NumPy number is checked when the distribution is made; traced and device values are not read,
    and outside their domain give NaN.
    """

    support: ClassVar[Domain] = REAL
    """The values the target may take; elsewhere the density is 0."""
    domain: ClassVar[Mapping[str, Domain]] = {}
    """The values each parameter may take."""
    link: ClassVar[Mapping[str, Link]] = {}
    """How each parameter is made of a raw number; none where the family has a `from_raw` of its own."""
    raw_size: ClassVar[int] = 0
    """How many numbers `from_raw` takes for one element, if always as many."""
    trailing: ClassVar[Mapping[str, int]] = {}
    """How many axes beyond the target's each parameter has; 0 where not named."""
    event_ndim: ClassVar[int] = 0
    """1 for a distribution of vectors: the target's last axis is then one value."""
    discrete: ClassVar[bool] = False
    """Whether values are whole numbers, and densities probabilities."""

    def __post_init__(self) -> None:
        check_settings(type(self).__name__, vars(self), vars(self), self.domain)

    def trailing_axes(self) -> Any:
        """A pytree like this: for each array, how many axes it has beyond those of the target."""
        counts = [
            self.trailing.get(name, 0) for name, value in vars(self).items() for _ in range(len(jax.tree.leaves(value)))
        ]
        return jax.tree.unflatten(jax.tree.structure(self), counts)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the target: that of the parameters, less their trailing axes."""
        leaf, extra = jax.tree.leaves(self)[0], jax.tree.leaves(self.trailing_axes())[0]
        return jnp.shape(leaf)[: jnp.ndim(leaf) - extra]

    @property
    def mean(self) -> Array:
        """The mean; NaN or inf where there is none."""
        return self._computing()._mean()

    @property
    def variance(self) -> Array:
        """The variance; NaN or inf where there is none."""
        return self._computing()._variance()

    def log_prob(self, target: Any) -> Array:
        """The log density (of a discrete family the log probability) at the target; −inf outside the support."""
        return self._at("log_prob", type(self)._log_prob, target)

    def cdf(self, target: Any) -> Array:
        """The probability of values up to and with the target."""
        return self._at("cdf", type(self)._cdf, target)

    def quantile(self, level: Any) -> Array:
        """The least value whose cdf is at least `level`, in (0, 1)."""
        return self._at("quantile", type(self)._quantile, level)

    def sample(self, key: Array, shape: tuple[int, ...] = ()) -> Array:
        """Draws, of shape `shape` followed by the distribution's own."""
        each = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape + leaf.shape), self._computing())
        return each._sample(key)

    def affine(self, shift: Any, scale: Any) -> Self:
        """The distribution of shift + scale·Y, for scale > 0, each a scalar or of the target's rank."""
        return self._computing()._affine(shift, scale)

    @classmethod
    def from_raw(cls, raw: Any) -> Self:
        """Valid parameters from unconstrained numbers, such as a network's outputs: the last axis, of `raw_size`."""
        size = cls.raw_size
        if size == 0:
            raise TypeError(f"{cls.__name__}.from_raw: not offered")
        if jnp.ndim(raw) == 0 or jnp.shape(raw)[-1] != size:
            raise ShapeError(
                f"{cls.__name__}.from_raw: raw has shape {jnp.shape(raw)}; its last axis must be {size}, "
                f"one entry to a parameter: give the network {size} outputs per target"
            )
        raw = jnp.asarray(raw)
        return cls(*(link.of_raw(raw[..., index]) for index, link in enumerate(cls.link.values())))

    @classmethod
    def initial_bias(cls, target: Any, weights: Any = None) -> Array:
        """The raw numbers of the likeliest constant prediction: of shape target.shape[1:] + (raw_size,).

        Set the bias of a network's last layer to it (raveled, for several targets), and its kernel to about 0: training
        then starts from the best constant, in whatever units the targets are. weights: one to a row.
        """
        return cls._initial_bias(target, weights, cls.support, cls.from_raw, cls._start)

    # What a family writes, on arrays of one type and shape.

    def _mean(self) -> Array:
        raise self._without("mean")

    def _variance(self) -> Array:
        raise self._without("variance")

    def _log_prob(self, target: Array) -> Array:
        raise self._without("log_prob")

    def _cdf(self, target: Array) -> Array:
        raise self._without("cdf")

    def _quantile(self, level: Array) -> Array:
        return solve_quantile(self, level)

    def _sample(self, key: Array) -> Array:
        raise self._without("sample")

    def _crps(self, target: Array) -> Array:
        raise self._without("crps", ": score samples, crps(Ensemble.of(dist.sample(key, (m,))), target)")

    def _log_tails(self, target: Array) -> tuple[Array, Array]:
        """log P(Y ≤ target) and log P(Y > target)."""
        raise self._without("log_cdf")

    def _affine(self, shift: Any, scale: Any) -> Self:
        raise self._without("affine", ": shift + scale·Y has a distribution of another family")

    @classmethod
    def _of_moments(cls, mean: Array, variance: Array) -> tuple[Array, ...]:
        """The parameters of about the distribution with these moments."""
        raise TypeError(f"{cls.__name__}.initial_bias: not offered")

    @classmethod
    def _start(cls, column: Array, weights: Array) -> Array:
        """Raw numbers from which to look for the likeliest constant."""
        return cls._to_raw(*cls._of_moments(*moments(column, weights)))

    # Help for the above.

    @classmethod
    def _to_raw(cls, *parameters: Array) -> Array:
        """The raw numbers of which `from_raw` makes these parameters, along the last axis."""
        return jnp.stack([link.to_raw(value) for link, value in zip(cls.link.values(), parameters, strict=True)], -1)

    @classmethod
    def _initial_bias(cls, target: Any, weights: Any, support: Domain, make: Callable, start: Callable) -> Array:
        name = f"{cls.__name__}.initial_bias"
        check_support(name, target, None, support)
        target = jnp.asarray(target)
        target = target.astype(jnp.promote_types(target.dtype, jnp.float32))
        if target.ndim <= cls.event_ndim or target.shape[0] < 2:
            raise ShapeError(f"{name}: needs targets of at least two rows, got shape {target.shape}")
        weights = jnp.ones(len(target)) if weights is None else jnp.asarray(weights)
        if weights.shape != target.shape[:1]:
            raise ShapeError(f"{name}: weights has shape {weights.shape}; it must have one entry to each row of target")

        def of_column(column: Array) -> Array:
            return best_constant(make, start(column, each), column, each)

        each, mapped = weights.astype(target.dtype), of_column
        for _ in range(1, target.ndim - cls.event_ndim):
            mapped = jax.vmap(mapped, 1)
        return mapped(target)

    def _where(self, used: Any) -> Self:
        """This distribution where it is used, else a standard one of its family, of which no derivative overflows."""
        hidden = [
            value._where(used)
            if isinstance(value, Distribution)
            else jnp.where(used, value, jnp.asarray(self.domain[name].inside, value.dtype))
            for name, value in vars(self).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves(hidden))

    def _without(self, what: str, instead: str = "") -> TypeError:
        return TypeError(f"{type(self).__name__} has no closed form of {what}{instead}")

    def _computing(self) -> Self:
        """With parameters as arrays of the computing type."""
        dtype = computing_dtype(type(self).__name__, self)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self)

    def _at(self, name: str, method: Callable, value: Any) -> Array:
        if jnp.ndim(value) == 0:
            value = np.full(self.shape, value) if is_host_value(value) else jnp.full(self.shape, value)
        name = f"{type(self).__name__}.{name}"
        loss_shape(name, self, value, self.event_ndim)  # a value outside the support has density 0: it is no error
        return _compiled(method, self._computing(), jnp.asarray(to_dtype(value, computing_dtype(name, self))))


@functools.partial(jax.jit, static_argnums=0)
def _compiled(method: Callable, dist: Distribution, value: Array) -> Array:
    """As one program: operation by operation, the first call of a method with long series takes seconds."""
    return method(dist, value)


def solve_quantile(dist: Distribution, level: Array) -> Array:
    """The least float whose cdf is at least `level`, by bisection over the floats in their order.

    As many steps as a float has bits find it to the last one, whatever its size. Derivatives are the implicit ones.
    """
    frozen = lax.stop_gradient(dist)
    info = jnp.finfo(level.dtype)
    # Where the cdf steps, a level that is a cdf is to give its value back, whatever either was rounded to.
    reached = level * (1 - 16 * info.eps) if dist.discrete else level
    top = rank_of_float(jnp.full_like(level, info.max))
    _, least = bisect(lambda rank: frozen._cdf(float_of_rank(rank, level.dtype)) >= reached, -top - 1, top)
    quantile = float_of_rank(least, level.dtype)
    inside = (level > 0) & (level < 1)
    quantile = jnp.where(inside, quantile, jnp.where(level == 0, -jnp.inf, jnp.where(level == 1, jnp.inf, jnp.nan)))
    if dist.discrete:
        return quantile
    density = jnp.exp(frozen._log_prob(quantile))
    safe = inside & (density >= info.tiny)
    miss = (dist._cdf(lax.stop_gradient(quantile)) - level) / jnp.where(safe, density, 1)
    return quantile - jnp.where(safe, miss - lax.stop_gradient(miss), 0)
