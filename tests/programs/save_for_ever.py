"""FOLDER: goes on from the last checkpoint, and saves until it is killed."""

import sys

from test_checkpoint import killable

from jaxloss.train import Checkpoints

checkpoints = Checkpoints(sys.argv[1], keep=2)
step, _ = checkpoints.restore(killable(0)) or (0, None)
print("restored", step, flush=True)
while True:
    step += 1
    checkpoints.save(step, killable(step), metric=-step)
    print("saved", step, flush=True)
