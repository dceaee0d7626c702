"""A mesh with explicit axes serves `fit` and `fit_many`, also where it is set."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from mesh_problem import batch, losses, net, optimizer, params

from jaxloss import mse
from jaxloss.train import RunDir, Sharding, fit_many

jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
on = jax.tree.map(lambda leaf: jax.device_put(leaf[:200], NamedSharding(mesh, P("data"))), batch)
stacked = jax.tree.map(lambda leaf: np.stack([leaf] * 3), params)
seen = []


def callback(epoch, state, line):
    seen.append(float(mse(net(state.params, on.x), jnp.nan_to_num(on.target))))


def both(ambient):
    assert jax.sharding.get_abstract_mesh().empty != ambient
    with tempfile.TemporaryDirectory() as folder:
        settings = {"sharding": mesh, "validation": (on.x, jnp.nan_to_num(on.target)), "callbacks": [callback]}
        first = losses(on, 3, run_dir=folder, **settings)
        again = losses(on, 5, run_dir=RunDir(folder, resume=True), **settings)
    stream = losses([jax.tree.map(lambda leaf: leaf[:40], batch)], 5, sharding=mesh)
    many = fit_many(net, stacked, batch, loss=mse, optimizer=optimizer, epochs=5, sharding=mesh)
    for result in (first, again, stream, many):
        for leaf in jax.tree.leaves(result.params):
            assert leaf.sharding.mesh == mesh, leaf.sharding
    net(again.params, on.x).block_until_ready()
    _ = many.params["in"][0] + again.params["in"], again.state.params["in"] + stream.params["in"]
    return again.history["loss"].tolist(), stream.history["loss"].tolist(), many.history["loss"].tolist()


outside = both(False)
with jax.set_mesh(mesh):
    assert both(True) == outside
assert len(seen) == 10, seen
for name, wrong, word in (
    ("sharding", {"sharding": 4}, "of one, got 4"),
    ("Sharding", {"sharding": Sharding(mesh, lambda path, leaf: None)}, "got None of params['in']"),
):
    with pytest.raises(TypeError, match=name) as told:
        losses(**wrong)
    assert word in str(told.value), told.value
with pytest.raises(ValueError, match="one axis"):
    fit_many(net, stacked, batch, loss=mse, optimizer=optimizer, epochs=1, sharding=jax.make_mesh((2, 2), ("a", "b")))
print("served")
