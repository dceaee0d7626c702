"""FOLDER: saves on a disk that takes no file beyond 50 kB: a warning, then an error, and then it goes on."""

import resource
import sys
import warnings

import jax.numpy as jnp

from jaxloss.train import CheckpointError, Checkpoints

warnings.simplefilter("error", append=True)
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, jnp.arange(1000.0))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    checkpoints.save(2, jnp.arange(1_000_000.0))
print([str(warning.message) for warning in told])
try:
    checkpoints.save(3, jnp.arange(1_000_000.0))
except CheckpointError as error:
    print(error)
checkpoints.save(4, jnp.arange(1000.0))
step, tree = checkpoints.restore(jnp.zeros(1000))
print(checkpoints.steps, step, float(tree.sum()))
