"""bare|arrays|validated|stream: prints the most memory that training holds beyond the start, in copies of 256 MiB."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxloss import mse
from jaxloss.train import fit

SIZE, LAYERS, COPY = 4096, 4, 256 * 2**10
rng = np.random.default_rng(0)
params = [jnp.asarray(rng.normal(size=(SIZE, SIZE)) / SIZE**0.5, jnp.float32) for _ in range(LAYERS)]
x = rng.normal(size=(256, SIZE)).astype(np.float32)
target = np.sin(x[:, 0])
optimizer = optax.adamw(1e-4)
parts = [(x[first : first + 64], target[first : first + 64]) for first in range(0, 256, 64)]


def apply(params, x):
    for weight in params:
        x = jnp.tanh(x @ weight)
    return x[:, 0]


def kilobytes(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[what].split()[0])


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(params, state, x, target):
    updates, state = optimizer.update(jax.grad(lambda params: mse(apply(params, x), target))(params), state, params)
    return optax.apply_updates(params, updates), state


jax.block_until_ready(params)
begun = kilobytes("VmRSS")
settings = {"loss": mse, "optimizer": optimizer, "epochs": 3}
if sys.argv[1] == "bare":
    own, state = jax.tree.map(jnp.copy, params), optimizer.init(params)
    for part in parts * 3:
        own, state = step(own, state, *part)
    jax.block_until_ready(own)
elif sys.argv[1] == "stream":
    fit(apply, params, parts, **settings)
else:
    held_out = (x, target) if sys.argv[1] == "validated" else None
    fit(apply, params, (x, target), batch_size=64, validation=held_out, **settings)
print((kilobytes("VmHWM") - begun) / COPY)
