"""What the programs on several devices share: rows, a network, and its fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxloss import mse
from jaxloss.train import Batch, fit

jax.config.update("jax_numpy_rank_promotion", "raise")
rng = np.random.default_rng(0)
ROWS = 203
x = rng.normal(size=(ROWS, 4)).astype(np.float32)
target = (np.sin(x[:, 0]) + x[:, 1] + 0.1 * rng.normal(size=ROWS)).astype(np.float32)
weights, where = rng.uniform(0.5, 2, ROWS).astype(np.float32), rng.random(ROWS) < 0.7
where[:51] = False  # the first device has nothing to add
batch = Batch(x, np.where(where, target, np.nan), weights, where)
params = {"in": 0.3 * rng.normal(size=(4, 8)).astype(np.float32), "out": np.zeros(8, np.float32)}
optimizer = optax.adam(0.01)


def net(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def losses(data=batch, epochs=200, **settings):
    return fit(net, params, data, loss=mse, epochs=epochs, **{"optimizer": optimizer, **settings})
