"""AXES [ADDRESS RANK]: four devices in two processes, or one alone; prints the losses of arrays and of a stream."""

import sys

import jax
from mesh_problem import batch, losses

from jaxloss.train import Batch

axes, *of_two = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2 if of_two else 1)
firsts = range(0, 200, 50)
if of_two:
    rank = int(of_two[1])
    jax.distributed.initialize(of_two[0], 2, rank)
    assert jax.process_count() == 2
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType[axes],))
    with jax.set_mesh(mesh):
        result = losses(sharding=mesh)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(result.state)} == {mesh}
    parts = [Batch(*(leaf[first + 25 * rank :][:25] for leaf in batch)) for first in firsts]
    streamed = losses(parts, epochs=20, sharding=mesh)
else:
    result = losses()
    streamed = losses([Batch(*(leaf[first : first + 50] for leaf in batch)) for first in firsts], epochs=20)
print("losses", *result.history["loss"][[0, 99, 199]].tolist(), *streamed.history["loss"][[0, 19]].tolist())
