"""The models of the experiments, as flax NNX modules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
from flax import nnx


class MLP(nnx.Module):
    """Linear layers of the given widths with ReLU, or another activation, between them."""

    def __init__(self, widths: Sequence[int], *, activation: Callable = nnx.relu, rngs: nnx.Rngs):
        self.activation = activation
        self.layers = nnx.List(
            [nnx.Linear(inputs, outputs, rngs=rngs) for inputs, outputs in itertools.pairwise(widths)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
