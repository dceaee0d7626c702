"""Four devices and micro-batches agree with one device."""

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from mesh_problem import batch, losses, net, optimizer, params, target, x

from jaxloss import mse
from jaxloss.train import Batch, Sharding, average_params, fit

jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((4,), ("data",))
alone = losses()
averaging = average_params(optimizer, 0.5)
padded = Batch(*(np.concatenate([leaf, leaf[:1]]) for leaf in batch))
padded.where[-1] = False
for name, result in {
    "devices": losses(sharding=mesh),
    "micro-batches": losses(batch_size=(7, 29)),
    "both": losses(padded, sharding=mesh, batch_size=(3, 68)),
    "sharded": losses(sharding=Sharding(mesh, lambda path, leaf: P(*[None] * (leaf.ndim - 1), "data"))),
}.items():
    np.testing.assert_allclose(result.history["loss"], alone.history["loss"], 2e-6, err_msg=name)
    np.testing.assert_allclose(result.history["loss"][-1], alone.history["loss"][-1], 1e-6, err_msg=name)
    last = jax.tree.map(lambda got, want: float(np.abs(got - want).max()), result.params, alone.params)
    assert max(last.values()) < 1e-5, (name, last)

# shuffled batches: another draw on each number of devices, but every row counts once
for size in (32, 30):
    result = losses(epochs=1, batch_size=size, sharding=mesh, optimizer=averaging, validation=(x, target))
    still = fit(net, params, batch, loss=mse, optimizer=optax.sgd(0.0), epochs=1, batch_size=size, sharding=mesh)
    np.testing.assert_allclose(still.history["loss"][0], alone.history["loss"][0], 1e-6)
    evaluated = float(mse(net(result.params, x), target))
    np.testing.assert_allclose(result.history["validation_loss"], evaluated, 1e-6)

large = (np.tile(x, (60, 1)), np.tile(target, 60))  # validated in parts
result = losses(epochs=1, sharding=mesh, validation=large)
np.testing.assert_allclose(result.history["validation_loss"], mse(net(result.params, large[0]), large[1]), 1e-5)

parts = [Batch(*(leaf[first : first + 50] for leaf in batch)) for first in range(0, 200, 50)]
streams = [losses(parts, epochs=20, **settings) for settings in ({}, {"sharding": mesh})]
np.testing.assert_allclose(*(result.history["loss"] for result in streams), 1e-5)
gradients = []
for where_to in (None, mesh):
    steps = fit(net, params, batch, loss=mse, optimizer=optax.sgd(1.0), epochs=1, sharding=where_to)
    moved = jax.tree.map(lambda new, old: np.asarray(new) - old, steps.params, params)
    gradients.append(np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(moved))))
assert abs(gradients[1] / gradients[0] - 1) < 1e-6, gradients
print("agree")
