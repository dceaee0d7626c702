"""Rows of `speed` that compare jaxloss with itself: what watching costs, files against memory, many fits at once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import common
from experiments.models import MLP
from jaxloss import mse
from jaxloss.train import RunDir, fit, fit_many, functional

WIDTHS = (10, 64, 64, 1)
OPTIMIZER, SGD = optax.adamw(1e-3), optax.sgd(0.1)


def network(widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> tuple[Any, Any]:
    return functional(MLP(widths, rngs=nnx.Rngs(seed)))


def watched(line: Any, rows: Any, rounds: int, seed: int) -> dict[str, float]:
    """Each loop bare, and with validation, early stopping, the guard (always on) and a log in a folder."""
    apply, params = network()
    straight, start = functional(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    x, y = rows
    folders = tempfile.TemporaryDirectory()
    count = iter(range(10**9))

    def linear(**more: Any) -> None:
        settings = {"loss": mse, "optimizer": SGD, "epochs": 1000, **more}
        jax.block_until_ready(fit(straight, start, line, **settings).params)

    def mlp(**more: Any) -> None:
        settings = {"loss": mse, "optimizer": OPTIMIZER, "epochs": 4, "batch_size": 32, **more}
        jax.block_until_ready(fit(apply, params, (x, y), **settings).params)

    def folder() -> dict[str, Any]:
        return {"run_dir": RunDir(Path(folders.name) / str(next(count)), save_every=None)}

    held_out = line[0][:100], line[1][:100]
    loops = {
        "linear": linear,
        "linear, watched": lambda: linear(validation=held_out, patience=1000, **folder()),
        "mlp": mlp,
        "mlp, watched": lambda: mlp(validation=(x[:1000], y[:1000]), patience=4, **folder()),
    }
    seconds = common.shortest_of_each(loops, rounds, seed)
    folders.cleanup()
    return seconds


def from_a_file(rounds: int, seed: int, rows: int = 51_200, batch_size: int = 512) -> dict[str, float]:
    """The same fit from arrays in memory and from a memory-mapped file, of a network whose step costs over 1 ms."""
    apply, params = network((64, 256, 256, 1))
    x = np.random.default_rng(seed).normal(size=(rows, 64)).astype(np.float32)
    y = np.sin(x[:, :1])
    with tempfile.TemporaryDirectory() as folder:
        for name, values in (("x", x), ("y", y)):
            np.save(Path(folder) / f"{name}.npy", values)
        mapped = tuple(np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("x", "y"))

        def trained(data: Any) -> Callable:
            settings = {"loss": mse, "optimizer": OPTIMIZER, "epochs": 1, "batch_size": batch_size}
            return lambda: jax.block_until_ready(fit(apply, params, data, **settings).params)

        seconds = common.shortest_of_each({"memory": trained((x, y)), "file": trained(mapped)}, rounds, seed)
    return seconds | {"step": seconds["memory"] / (rows // batch_size)}


def members(number: int) -> Any:
    """Parameters of so many networks, stacked."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(network(seed=seed)[1] for seed in range(number)))


def many(rows: Any, number: int, rounds: int, seed: int, devices: int = 1) -> dict[str, float]:
    """So many networks by `fit_many`, on one device and, if there are more, on all."""
    apply, _ = network()
    params = members(number)
    settings = {"loss": mse, "optimizer": OPTIMIZER, "epochs": 1, "batch_size": 32}

    def trained(count: int) -> Callable:
        mesh = None
        if count > 1:
            mesh = jax.make_mesh((count,), ("member",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count])
        return lambda: jax.block_until_ready(fit_many(apply, params, rows, sharding=mesh, **settings).params)

    return common.shortest_of_each({f"{count} devices": trained(count) for count in sorted({1, devices})}, rounds, seed)


def on_two_devices(steps: int, number: int, rounds: int, seed: int) -> dict[str, float]:
    """`many` in a process of its own, whose CPU is two devices."""
    words = [sys.executable, "-m", "experiments._speed_rows", *map(str, (steps, number, rounds, seed))]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])


def ratios(
    line: Any, rows: Any, number: int, eager: float | None, seed: int
) -> tuple[dict[str, tuple[float, str, float]], dict[str, Any]]:
    """The ratios with their bars, and the seconds they are of. eager: of one network in PyTorch, over these rows."""
    watching, file = watched(line, rows, 9, seed), from_a_file(5, seed)
    spread = on_two_devices(len(rows[0]) // 32, number, 3, seed)
    found = {
        "linear: watched over bare": (watching["linear, watched"] / watching["linear"], "≤", 1.1),
        "mlp: watched over bare": (watching["mlp, watched"] / watching["mlp"], "≤", 1.1),
        "batches from a file over memory": (file["file"] / file["memory"], "≤", 1.3),
        f"{number} networks: one CPU device over two": (spread["1 devices"] / spread["2 devices"], "≥", 1.6),
    }
    measured = {"watching": watching, "file": file, "many": spread}
    if eager is not None:
        alone = many(rows, number, 3, seed)
        measured["many, in this process"] = alone
        fastest = min(*alone.values(), *spread.values())
        found[f"{number} networks: PyTorch one after another over fit_many"] = (number * eager / fastest, "≥", 16.0)
    return found, measured


if __name__ == "__main__":
    steps, number, rounds, seed = map(int, sys.argv[1:])
    jax.config.update("jax_num_cpu_devices", 2)
    x = np.random.default_rng(seed).normal(size=(32 * steps, WIDTHS[0])).astype(np.float32)
    print(json.dumps(many((x, np.sin(x[:, :1])), number, rounds, seed, devices=2)))
