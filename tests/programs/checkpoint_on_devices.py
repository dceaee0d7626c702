"""FOLDER DEVICES save|restore: the same arrays and shardings, on any number of devices."""

import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloss.train import Checkpoints

folder, devices, action = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_num_cpu_devices", devices)
mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
tree = {
    "rows": jax.device_put(jnp.arange(24.0).reshape(8, 3), rows),
    "all": jax.device_put(jnp.arange(5, dtype=jnp.bfloat16), everywhere),
    "key": jax.device_put(jax.random.key(3), everywhere),
    "keys": jax.device_put(jax.random.split(jax.random.key(4), 8), rows),
}
checkpoints = Checkpoints(folder)
if action == "save":
    checkpoints.save(1, tree)
else:
    blank = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)
    for like in (tree, blank):
        _, got = checkpoints.restore(like)
        for name, leaf in got.items():
            assert leaf.sharding == tree[name].sharding, name
            assert len(leaf.sharding.device_set) == devices
            read = jax.random.key_data if name.startswith("key") else np.asarray
            np.testing.assert_array_equal(np.asarray(read(leaf)), np.asarray(read(tree[name])))
assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
