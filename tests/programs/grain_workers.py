"""A fit on a grain dataset that two worker processes read."""

import grain
import numpy as np
import optax
from absl import app

from jaxloss import mse
from jaxloss.train import fit


def main(_):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    rows = [{"x": row, "y": row.sum()} for row in x]
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=2)
    dataset = grain.MapDataset.source(rows).shuffle(seed=1).batch(16).to_iter_dataset().mp_prefetch(options)
    start, optimizer = np.zeros(3, np.float32), optax.sgd(0.3)
    result = fit(lambda params, x: x @ params, start, dataset, loss=mse, optimizer=optimizer, epochs=2)
    assert int(result.state.step) == 8
    assert result.history["loss"][1] < result.history["loss"][0]
    print("trained")


if __name__ == "__main__":
    app.run(main)  # parses the flags that grain's workers read
