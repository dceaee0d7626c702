"""FOLDER ADDRESS RANK: two processes agree on what is saved, what has failed, what is damaged, and when to stop."""

import os
import resource
import shutil
import signal
import sys
import threading
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloss.train import CheckpointError, Checkpoints, Interruption

folder, rank = Path(sys.argv[1]), int(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=rank)
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())


def spread(array, sharding):
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def tree(step):
    return {
        "rows": spread(step + np.arange(24, dtype=np.float32).reshape(8, 3), rows),
        "all": spread(step * np.ones(5, np.float32), everywhere),
        "key": jax.jit(lambda: jax.random.key(step), out_shardings=everywhere)(),
        "history": np.arange(3) / 3,
        "step": step,
    }


def check(checkpoints, like, step):
    found, got = checkpoints.restore(like)
    assert found == step == got["step"], (found, step)
    for name, want in tree(step).items():
        if name in ("rows", "all"):
            assert got[name].sharding == want.sharding
            for ours, theirs in zip(got[name].addressable_shards, want.addressable_shards, strict=True):
                np.testing.assert_array_equal(ours.data, theirs.data)
        else:
            read = (lambda key: np.asarray(jax.random.key_data(key))) if name == "key" else np.asarray
            np.testing.assert_array_equal(read(got[name]), read(want))


checkpoints = Checkpoints(folder, config={"processes": 2})
assert checkpoints.restore(tree(3)) is None
for step in (3, 5):
    checkpoints.save(step, tree(step))
check(checkpoints, tree(0), 5)
assert len(list((folder / "step_5/arrays").glob("ocdbt.process_*"))) == 2, "each process writes what it alone holds"

# a disk that fails in one process fails in both
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
if rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    checkpoints.save(6, tree(6))
assert any(words in str(told[-1].message) for words in ("Failed writing", "too large")), told  # by whoever fails first
with pytest.raises(CheckpointError, match="step_7"):
    checkpoints.save(7, tree(7))
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert checkpoints.steps == [3, 5]

# what one process alone sees as damaged is passed over by both: it reads a copy in which a file is cut short
seen = folder
if rank == 1:
    seen = folder.with_name("copy")
    shutil.copytree(folder, seen, ignore=shutil.ignore_patterns("unfinished_*"))  # which the other process removes
    (seen / "step_5" / "manifest.json").write_text("{")
reader = Checkpoints(seen, config={"processes": 2})
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    check(reader, tree(0), 3)
assert "step_5 is damaged and passed over: manifest.json cannot be read" in str(told[-1].message)

# a signal to one is heard by both, at the same step
with Interruption() as interruption:
    for step in range(5):
        if rank == 1 and step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        if interruption.requested():
            break
    assert step == 2, step
    assert (interruption.received is not None) == (rank == 1)
print("agree", [thread.name for thread in threading.enumerate()])
