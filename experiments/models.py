"""The models of the experiments, as flax NNX modules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
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


class Denoiser(nnx.Module):
    """The middle of a window of samples: a first guess, which is the last column of x, and what an MLP adds to it.

    The MLP sees how the window differs from the guess, bent down by tanh beyond `unit`, and puts out multiples of it.
    """

    def __init__(self, widths: Sequence[int], unit: float, *, rngs: nnx.Rngs):
        self.unit = unit
        self.mlp = MLP(widths, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        window, guess = x[..., :-1], x[..., -1:]
        return guess + self.unit * self.mlp(jnp.tanh((window - guess) / self.unit))


class Exponential(nnx.Module):
    """An MLP whose output is positive: exp of it."""

    def __init__(self, widths: Sequence[int], *, rngs: nnx.Rngs):
        self.mlp = MLP(widths, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.exp(self.mlp(x))
