"""The door to flax: an NNX or linen model as a pure `apply` and a pytree of parameters."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

__all__ = ["functional"]


def functional(model: Any, variables: Any = None) -> tuple[Any, ...]:
    """(apply, params) of a flax model or, of one with state or randomness, (apply, params, model_state).

    model: an NNX module, or a linen module together with its `variables` from `model.init(...)`.
    apply: `apply(params, x) -> pred`; with model state `apply(params, x, *, model_state, key, train) -> (pred,
        model_state)`, to be used with `supervised(..., stateful=True)`. Two models of the same build give equal
        `apply`s, so a program compiled for one serves the other.
    params: nested dicts of arrays: the model's `nnx.Param` variables (put trained ones back with
        `nnx.update(model, params)`), or `variables["params"]`.

    >>> from flax import nnx
    >>> apply, params = functional(nnx.Linear(3, 1, rngs=nnx.Rngs(0)))
    >>> apply(params, jnp.ones((5, 3))).shape
    (5, 1)
    """
    if isinstance(model, nnx.Module):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        params = nnx.to_pure_dict(params)
        if jax.tree.leaves(rest):
            return _StatefulNnx(graphdef), params, rest
        return _Nnx(graphdef), params
    if isinstance(model, linen.Module):
        if not isinstance(variables, dict) or "params" not in variables:
            raise TypeError("functional: a linen model needs its variables: functional(model, model.init(key, x))")
        state = {name: value for name, value in variables.items() if name != "params"}
        if state or _modes(model, train=True):
            return _StatefulLinen(model), variables["params"], state
        return _Linen(model), variables["params"]
    raise TypeError(
        f"functional: expects a flax NNX or linen module, got {type(model).__name__}; "
        "any function apply(params, x) works without it"
    )


@dataclass(frozen=True)
class _Nnx:
    graphdef: Any

    def __call__(self, params: Any, x: Any) -> Any:
        return nnx.merge(self.graphdef, params)(x)


@dataclass(frozen=True)
class _StatefulNnx:
    graphdef: Any

    def __call__(self, params: Any, x: Any, *, model_state: Any, key: Any, train: bool) -> tuple[Any, Any]:
        if not train:
            model = nnx.merge(self.graphdef, params, model_state)
            model.eval()
            return model(x), model_state
        leaves, structure = jax.tree.flatten(model_state)
        model = nnx.merge(self.graphdef, params, structure.unflatten(_reseeded(leaves, key)))
        model.train()
        pred = model(x)
        return pred, nnx.split(model, nnx.Param, ...)[2]


def _reseeded(leaves: list[Any], key: Any) -> list[Any]:
    """Every random key in the state replaced by one drawn from the step's key."""

    def fresh(number: int, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        own = jax.random.fold_in(key, number)
        return jax.random.split(own, leaf.shape) if leaf.shape else own

    return [fresh(number, leaf) for number, leaf in enumerate(leaves)]


@dataclass(frozen=True)
class _Linen:
    model: Any

    def __call__(self, params: Any, x: Any) -> Any:
        return self.model.apply({"params": params}, x)


@dataclass(frozen=True)
class _StatefulLinen:
    model: Any

    def __call__(self, params: Any, x: Any, *, model_state: Any, key: Any, train: bool) -> tuple[Any, Any]:
        variables, modes = {"params": params, **model_state}, _modes(self.model, train)
        if not train:
            return self.model.apply(variables, x, **modes), model_state
        rngs = {"dropout": key, "params": key}
        return self.model.apply(variables, x, mutable=list(model_state), rngs=rngs, **modes)


def _modes(model: Any, train: bool) -> dict[str, bool]:
    """The arguments by which linen models are told whether they are training, as far as this one has them."""
    spoken = {"train": train, "training": train, "deterministic": not train, "use_running_average": not train}
    return {name: value for name, value in spoken.items() if name in inspect.signature(model.__call__).parameters}
