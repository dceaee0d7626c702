"""FOLDER, where XLA dumps its programs: the step of every loss has one all-reduce and nothing else."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from catalogue import ROWS
from jax.tree_util import Partial
from support import sample

from jaxloss.train import Batch, fit

jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
start = {"kernel": jnp.full((3, 2), 0.3), "offset": jnp.full((1, 2), 0.2)}


def line(params, x):
    return x @ params["kernel"] + params["offset"]


for row in ROWS:
    targets = np.asarray(sample(row, (48, 2))[1])
    x = np.linspace(0.1, 1, 144, dtype=np.float32).reshape(48, 3)
    weights, where = np.linspace(0.5, 2, 48, dtype=np.float32)[:, None], (np.arange(96) % 3 > 0).reshape(48, 2)
    fit(
        line, start, Batch(x, targets, weights, where), loss=Partial(row.loss, **row.usual), optimizer=optax.sgd(1e-4),
        epochs=1, batch_size=(5, 4), sharding=mesh,
    )  # fmt: skip
programs = list(Path(sys.argv[1]).glob("*jit_train*after_optimizations.txt"))
assert len(programs) == len(ROWS), len(programs)
for program in programs:
    found = re.findall(rf"= [^=]*? ({KINDS})(?:-start)?\(", program.read_text())
    assert found == ["all-reduce"], (program.name, found)
print("one each", len(ROWS))
