"""Every loss on four devices: the gradient of one, in a single all-reduce."""

import jax
import jax.numpy as jnp
from catalogue import ROWS
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import close, count_all_reduces, sample

from jaxloss import loss_sum

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
shards, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())


def check(row):
    _, target = sample(row, (16, 2))
    x = jnp.linspace(0.1, 1, 48).reshape(16, 3)
    params = {"kernel": jnp.full((3, 2), 0.3), "offset": jnp.full((1, 2), 0.2)}
    weights, where = jnp.linspace(0.5, 2, 16)[:, None], (jnp.arange(32) % 3 > 0).reshape(16, 2)
    where = where & (jnp.arange(16) < 9)[:, None]  # the last shards have little or nothing to add
    batch = (x, target, weights, where)

    def part(params, batch):
        x, target, weights, where = batch
        pred = x @ params["kernel"] + params["offset"]
        masks = {"weights": weights, "where": where, "reduction": "weighted_mean"}
        part = loss_sum(row.loss, pred, target, **masks, **row.usual)
        return part.total, part.weight

    def gradient(params, batch):
        (total, weight), slopes = jax.value_and_grad(part, has_aux=True)(params, batch)
        return jax.tree.map(lambda number: number / weight, (total, slopes))

    alone = jax.jit(gradient)(params, batch)
    spread = jax.device_put(params, everywhere), jax.device_put(batch, shards)
    compiled = jax.jit(gradient, out_shardings=everywhere).lower(*spread).compile()
    close(jax.device_get(compiled(*spread)), jax.device_get(alone))
    count = count_all_reduces(compiled.as_text())
    assert count == 1, (row.name, count)

    def summed(params, batch):
        (total, weight), slopes = jax.value_and_grad(part, has_aux=True)(params, batch)
        total, weight = jax.lax.psum((total, weight), "data")
        return jax.tree.map(lambda number: number / weight, (total, slopes))

    mapped = jax.shard_map(summed, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    close(jax.device_get(jax.jit(mapped)(*spread)), jax.device_get(alone))


for row in ROWS:
    check(row)
print("agree", len(ROWS))
