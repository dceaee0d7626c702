"""FOLDER EPOCHS SECONDS [ADDRESS RANK]: a fit that saves and resumes; its last line is its result, to the last bit."""

import sys

import jax
import numpy as np
import optax
from flax import nnx

from jaxloss import mse
from jaxloss.train import RunDir, fit, functional

folder, epochs, seconds, *of_two = sys.argv[1:]
mesh = None
if of_two:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(of_two[0], 2, int(of_two[1]), heartbeat_timeout_seconds=10)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.drop = nnx.Linear(4, 16, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.first(x))))[:, 0]


rng = np.random.default_rng(0)
x = rng.normal(size=(2003, 4)).astype(np.float32)
target = np.sin(x[:, 0]) + x[:, 1]
apply, params, model_state = functional(Net(nnx.Rngs(0)))
print("ready", flush=True)
result = fit(
    apply, params, (x, target), loss=mse, model_state=model_state, optimizer=optax.adam(1e-2), epochs=int(epochs),
    batch_size=32, validation=(x[:100], target[:100]), sharding=mesh,
    run_dir=RunDir(folder, save_every=float(seconds), resume=True),
)  # fmt: skip
leaves = jax.tree.leaves((result.params, result.state.params, result.state.opt_state))
print("digest", *(np.asarray(leaf).tobytes().hex() for leaf in leaves))
