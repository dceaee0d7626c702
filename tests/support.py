"""What several test files share: data, comparisons, fresh interpreters."""

from __future__ import annotations

import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import Row
from mpmath import mpf

ROOT = pathlib.Path(__file__).parents[1]


def sample(row: Row, shape: tuple[int, ...] = (4, 3), seed: int = 0, dtype=np.float32) -> tuple[jax.Array, jax.Array]:
    """An ordinary prediction and target of the row's loss, away from its corners."""
    random = np.random.default_rng(seed)
    pred, target = (row.line.draw(random, shape).astype(dtype) for _ in range(2))
    for corner in row.corners(target.astype(np.float64), **row.usual):
        pred = np.where(np.abs(pred - corner) < 0.05, pred + dtype(0.125), pred)
    return jnp.asarray(pred), jnp.asarray(target)


def settings_tree(row: Row, shape: tuple[int, ...] = (), dtype=np.float32) -> dict[str, jax.Array]:
    """The row's usual settings as arrays, so that they can be differentiated, mapped and masked."""
    return {name: jnp.full(shape, value, dtype) for name, value in row.usual.items()}


def exact(oracle, row, pred, target, **settings):
    """The oracle over arrays, as float64."""
    settings = {name: mpf(float(value)) for name, value in settings.items()}
    numbers = zip(np.ravel(pred), np.ravel(target), strict=True)
    flat = [float(oracle(mpf(float(p)), mpf(float(t)), **settings)) for p, t in numbers]
    return np.reshape(flat, np.shape(pred))


def close(got, want, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    """Assert that two pytrees agree in structure, shapes and values."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jnp.shape(left) == jnp.shape(right)
        np.testing.assert_allclose(np.asarray(left, np.float64), np.asarray(right, np.float64), rtol, atol)


def hvp(function, point, direction):
    """The Hessian of the function times a direction, forward over reverse."""
    return jax.jvp(jax.grad(function), (point,), (direction,))[1]


def refused(kind, words, call, *arguments, **keywords):
    """Assert that the call raises exactly this kind of error, in one line that has all the words."""
    with pytest.raises(kind) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    assert all(word in message for word in words), (message, words)


def count_all_reduces(program: str) -> int:
    """How many all-reduces a compiled program holds, those of tuples included."""
    return len(re.findall(r"= [^=]*? all-reduce(?:-start)?\(", program))


def start_program(name: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """Start tests/programs/NAME.py in a fresh interpreter in the repository root."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, **environment}
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "programs" / f"{name}.py"), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def run_program(name: str, *arguments: object, **environment: str) -> str:
    """Run it to its end; its output. Fails with its standard error, which must be empty."""
    process = start_program(name, *arguments, **environment)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-4000:]
    assert errors == ""
    return output


def dumping(folder: pathlib.Path) -> dict[str, str]:
    """An environment in which XLA writes each program it compiles to the folder."""
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_train"
    return {"XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}


def free_address() -> str:
    """An address of this machine at which no one listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def run_python(code: str, **environment: str) -> str:
    """Run the code in a fresh interpreter in the repository root; its output. Fails with its standard error."""
    return _run(["-c", code], environment)


def _run(words: list[str], environment: dict[str, str]) -> str:
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths), **environment}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def order_of(seed, epoch, rows, shard=0):
    """The order in which a fit takes the rows: their numbers, sorted by a keyed bijection of 32-bit words."""

    def mix(word):
        for factor in (0x85EBCA6B, 0xC2B2AE35):
            word = (word ^ word >> 16) * factor % 2**32
        return word ^ word >> 16

    keys = [0x6A09E667, 0xBB67AE85]  # the roots of 2 and 3
    for word in (seed % 2**32, seed % 2**64 // 2**32, epoch, shard):
        keys = [mix(key ^ word) for key in keys]
    return np.array(sorted(range(rows), key=lambda row: mix(mix(row ^ keys[0]) ^ keys[1])))


def orders_of(seed, epochs, rows):
    """The orders of the first epochs, of shape (epochs, rows)."""
    return np.stack([order_of(seed, epoch, rows) for epoch in range(epochs)])
