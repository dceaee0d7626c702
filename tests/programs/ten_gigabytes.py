"""A stream of ten gigabytes, generated as it is read; prints the most memory the process ever held, in GiB."""

from pathlib import Path

import numpy as np
import optax

from jaxloss import mse
from jaxloss.train import fit

base = np.random.default_rng(0).normal(size=(50_000, 50)).astype(np.float32)
slopes = np.linspace(-1, 1, 50, dtype=np.float32)
read = []


class Stream:
    def __iter__(self):
        for number in range(1000):
            x = base * np.float32(1 + 1e-3 * number)
            read.append(x.nbytes)
            yield x, x @ slopes


start, optimizer = np.zeros(50, np.float32), optax.adam(0.01)
result = fit(lambda params, x: x @ params, start, Stream(), loss=mse, optimizer=optimizer, epochs=1)
assert sum(read) == 10**10, sum(read)
assert np.abs(result.params - slopes).max() < 0.01
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 2**20)  # not ru_maxrss, which begins with that of the process it came from
