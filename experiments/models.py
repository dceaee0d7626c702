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


class Locator(nnx.Module):
    """Where in an image an object is: a small convolutional network that votes, cell by cell, and takes the mean.

    Two convolutions: windows of 4 × 4 pixels side by side, one a cell, then 3 × 3 cells. Each cell gives a score and a
    place relative to its own middle; the output is the mean place, weighted by the softmax of the scores, as (row,
    column) in units of half the image, 0 in the middle. From (n, size, size, 1) to (n, 2); size a multiple of 4.
    """

    def __init__(self, size: int, channels: int, *, rngs: nnx.Rngs):
        self.cells = size // 4
        self.patches = nnx.Conv(1, channels, (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.neighbours = nnx.Conv(channels, channels, (3, 3), rngs=rngs)
        self.votes = nnx.Linear(channels, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        votes = self.votes(nnx.relu(self.neighbours(nnx.relu(self.patches(x)))))
        middles = (2 * jnp.arange(self.cells, dtype=x.dtype) + 1) / self.cells - 1
        grid = jnp.stack(jnp.meshgrid(middles, middles, indexing="ij"), -1)
        scores = jax.nn.softmax(votes[..., 0].reshape(len(x), -1))
        places = (votes[..., 1:] + grid[None]).reshape(len(x), -1, 2)
        return jnp.einsum("nc,nck->nk", scores, places)


class Autoencoder(nnx.Module):
    """An MLP down to a linear code, and its mirror image back; widths are those from the input to the code."""

    def __init__(self, widths: Sequence[int], *, rngs: nnx.Rngs):
        self.encoder = MLP(widths, rngs=rngs)
        self.decoder = MLP(widths[::-1], rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decoder(self.encoder(x))
