"""FOLDER, where XLA dumps its programs: members over two devices are those of one, and only ask whether to go on."""

import re
import sys
from pathlib import Path

import jax
import numpy as np
import optax
from test_many import data, linear, starts

from jaxloss import mse
from jaxloss.train import fit_many

KINDS = "all-reduce|all-gather|all-to-all|collective-permute"
mesh = jax.make_mesh((2,), ("member",))
settings = {"loss": mse, "optimizer": optax.adam(0.05), "epochs": 9, "batch_size": 16}
settings |= {"validation": data(seed=2), "patience": 3}
start = starts()
spread = fit_many(linear, start, data(), sharding=mesh, **settings)
(program,) = Path(sys.argv[1]).glob("*jit_train*after_optimizations.txt")
print(sorted(set(re.findall(rf"({KINDS})(?:-start)?[(]", program.read_text()))))
alone = fit_many(linear, start, data(), **settings)
for name in alone.history:
    np.testing.assert_allclose(spread.history[name], alone.history[name], 1e-6)
assert spread.best_epoch.tolist() == alone.best_epoch.tolist()
