"""Statistics of residuals merged over a mesh of four devices, the last of which have no rows."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from test_residual_stats import agrees, draw, plain

from jaxloss.metrics import ResidualStats

pred, target = draw((64, 2), 1e4)
where = np.broadcast_to(np.arange(64)[:, None] < 20, pred.shape)  # the last shards are empty
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def merged(pred, target, where, rows):
    return ResidualStats.of(pred, target, where=where, rows=rows).all_merge("data")


spread = jax.shard_map(merged, mesh=mesh, in_specs=(P("data"),) * 4, out_specs=P())
stats = jax.device_get(jax.jit(spread)(pred, target, where, jnp.arange(64)))
agrees(stats, plain(pred, target, where=where), 1e-5, 1e-5)
worst = np.abs(pred - target)[:20].max()
assert stats.summary()["worst_row"][0] == np.argmax(np.abs(pred - target)[:20].max(1))
print("agree")
