"""How fast is a whole fit, against the same training loops in PyTorch and against the arithmetic bound?

    pip install torch && python -m experiments speed

Both sides train the same model on the same data, in one run, their repetitions interleaved: the line of `linear` (1000
rows, 100 full-batch steps of SGD) and the network of `mlp` (1000 steps of 32 rows, AdamW), with a fresh order of the
rows each epoch where there are batches (a full batch has no order; neither side draws one). Times are medians after
warm-up, through `fit`, from NumPy arrays to trained parameters; compile time stands apart. Each PyTorch loop runs on
one thread and on all, and the faster counts. The bound is 6 × the FLOPs of the forward products of one
batch at the best rate, on one thread, of a chain of 32 × 64 × 64 products.

Answer, on two CPU cores: the line 17 times as fast as eager PyTorch (20 in another run; of its 0.6 ms the 100 steps
take a third, the rest is calling `fit`); the network 18 times, and 12 times as fast as its best variant (fused AdamW,
one thread), at 26 µs a step, 1.9 times the bound. Validation, early stopping and a log cost the network 3 %; the line,
an epoch of which takes 2 µs, takes 3.9 times as long, mostly by the log's line. From a memory-mapped file a network of
1.5 ms a step takes 1.34 times as long: each step is then dispatched by itself, which takes time from the cores that
compute. A hundred networks by `fit_many`: 42 times as fast as one after another in eager PyTorch, 1.8 times as fast on
two CPU devices as on one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from threadpoolctl import threadpool_limits

from experiments import _speed_rows, common, data
from experiments.models import MLP
from jaxloss import mse
from jaxloss.train import fit, functional

LINEAR_STEPS, BATCH = 100, 32
WIDTHS = (10, 64, 64, 1)
FORWARD_FLOPS = 2 * BATCH * sum(inputs * outputs for inputs, outputs in itertools.pairwise(WIDTHS))


SECONDS_PER_TURN = 0.05
"""A short loop is timed many times in its turn."""


TINY = {"repeats": 1, "compiled": False, "mlp_steps": 40, "members": 0}


@dataclass(frozen=True)
class Config(common.Config):
    repeats: int = 9
    """Timed repetitions of every loop, interleaved."""
    compiled: bool = True
    """Whether to time torch.compile too, which takes a minute to compile."""
    mlp_steps: int = 1000
    """Steps in an epoch of the network."""
    members: int = 100
    """Networks that `fit_many` trains at once; 0 leaves the rows on fit itself out."""
    seed: int = 0


def run(config: Config, folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(config.seed)
    line = data.noisy_line(1000, 0.2, config.seed)
    x = rng.normal(size=(config.mlp_steps * BATCH, WIDTHS[0])).astype(np.float32)
    rows = (x, np.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3])
    loops = {("linear", "jaxloss"): _jaxloss_linear(line), ("mlp", "jaxloss"): _jaxloss_mlp(rows)}
    try:
        loops |= _torch_loops(line, rows, config.compiled)
    except ModuleNotFoundError:
        print("PyTorch is not installed: pip install torch adds the comparison; timing jaxloss alone.")
    first, seconds = _time(loops, config.repeats)
    rate = max(_chain_rate_numpy(), _chain_rate_jax())
    bound = 6 * FORWARD_FLOPS / rate
    result: dict[str, Any] = {"seconds_per_loop": {}, "first_call_seconds": {}, "claims": {}}
    table = []
    for (task, name), median in seconds.items():
        steps = LINEAR_STEPS if task == "linear" else config.mlp_steps
        ratio = median / seconds[task, "jaxloss"]
        table.append((f"{task}: {name}", 1e6 * median / steps, ratio, first[task, name]))
        result["seconds_per_loop"][f"{task}: {name}"] = median
        result["first_call_seconds"][f"{task}: {name}"] = first[task, name]
    common.print_table("Training loops", ("", "µs a step", "× jaxloss", "first call, s"), table)
    step = seconds["mlp", "jaxloss"] / config.mlp_steps
    print(f"bound: 6 × {FORWARD_FLOPS} FLOPs at {rate / 1e9:.1f} GFLOP/s = {1e6 * bound:.1f} µs a step")
    result |= {"chain_flops_per_second": rate, "bound_seconds": bound, "mlp_over_bound": step / bound}
    ratios = {"mlp step over the bound": (step / bound, "≤", 2.5)}
    if len(loops) > 2:
        rivals = {key: value for key, value in seconds.items() if key[1] != "jaxloss"}

        def best(task: str, kind: str = "") -> float:
            times = [value for key, value in rivals.items() if key[0] == task and kind in key[1]]
            return min(times) / seconds[task, "jaxloss"]

        ratios["linear: PyTorch eager over jaxloss"] = (best("linear", "eager"), "≥", 20.0)
        ratios["mlp: PyTorch eager over jaxloss"] = (best("mlp", "eager"), "≥", 16.0)
        ratios["mlp: best PyTorch over jaxloss"] = (best("mlp"), "≥", 10.0)
    if config.members:
        eager = [value for key, value in seconds.items() if key[0] == "mlp" and "eager" in key[1]]
        more, measured = _speed_rows.ratios(line, rows, config.members, min(eager, default=None), config.seed)
        ratios |= more
        result["seconds_of_rows"] = measured
    for name, (value, sign, bar) in ratios.items():
        holds = value <= bar if sign == "≤" else value >= bar
        result["claims"][f"{name} {sign} {bar:g}"] = holds
        result[name] = value
        print(f"{'holds' if holds else 'FAILS'}: {name} is {value:.2f} ({sign} {bar:g})")
    _draw(folder, table)
    return result


def _time(loops: dict[Any, Callable], repeats: int) -> tuple[dict[Any, float], dict[Any, float]]:
    """Seconds of the first call of each loop, and the median of the later ones, interleaved."""
    first, times = {}, {name: [] for name in loops}
    for name, loop in loops.items():
        first[name] = common.shortest(loop, 1)[0]
    for repeat in range(repeats):
        order = list(loops)[repeat % len(loops) :] + list(loops)[: repeat % len(loops)]
        for name in order:
            turn = time.perf_counter()
            loops[name]()  # not timed: it brings back what the others pushed out of the caches
            while not times[name] or time.perf_counter() - turn < SECONDS_PER_TURN or len(times[name]) <= repeat:
                times[name].append(common.shortest(loops[name], 1)[0])
    return first, {name: float(np.median(values)) for name, values in times.items()}


def _jaxloss_linear(line: Any) -> Callable:
    apply, params = functional(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    optimizer = optax.sgd(0.1)
    return lambda: jax.block_until_ready(fit(apply, params, line, loss=mse, optimizer=optimizer, epochs=LINEAR_STEPS))


def _jaxloss_mlp(rows: Any) -> Callable:
    apply, params = functional(MLP(WIDTHS, rngs=nnx.Rngs(0)))
    settings = {"loss": mse, "optimizer": optax.adamw(1e-3), "epochs": 1, "batch_size": BATCH}
    return lambda: jax.block_until_ready(fit(apply, params, rows, **settings))


def _torch_loops(line: Any, rows: Any, compiled: bool) -> dict[Any, Callable]:
    import torch

    threads = sorted({1, torch.get_num_threads()})
    loss = torch.nn.MSELoss()

    def linear(fused: bool, number: int) -> Callable:
        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        x, y = map(torch.from_numpy, line)

        def loop() -> None:
            torch.set_num_threads(number)
            for _ in range(LINEAR_STEPS):
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()

        return loop

    def mlp(kind: str, number: int) -> Callable:
        model = torch.nn.Sequential(
            torch.nn.Linear(10, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True if kind == "fused" else None)
        x, y = map(torch.from_numpy, rows)

        def objective(x: Any, y: Any) -> Any:
            return loss(model(x), y)

        forward = torch.compile(objective) if kind == "compiled" else objective

        def loop() -> None:
            torch.set_num_threads(number)
            order = torch.randperm(len(x))
            for start in range(0, len(x), BATCH):
                index = order[start : start + BATCH]
                optimizer.zero_grad()
                forward(x[index], y[index]).backward()
                optimizer.step()

        return loop

    def label(kind: str, number: int) -> str:
        return f"torch {kind}, {number} thread{'s' if number > 1 else ''}"

    loops: dict[Any, Callable] = {}
    for number in threads:
        loops["linear", label("eager", number)] = linear(False, number)
        loops["linear", label("fused", number)] = linear(True, number)
        for kind in ("eager", "fused", *(["compiled"] if compiled else [])):
            loops["mlp", label(kind, number)] = mlp(kind, number)
    return loops


CHAIN, TRIES = 500, 40
CHAIN_FLOPS = CHAIN * 2 * 32 * 64 * 64


def _chain_rate_numpy() -> float:
    """FLOP/s of a chain of 32 × 64 × 64 products, the best of many tries, on one thread."""
    left, right = np.ones((32, 64), np.float32), np.full((64, 64), 1 / 64, np.float32)
    other = np.empty_like(left)

    def chain() -> None:
        for _ in range(CHAIN // 2):
            np.matmul(left, right, out=other)
            np.matmul(other, right, out=left)

    with threadpool_limits(1):
        return CHAIN_FLOPS / common.shortest(chain, TRIES)[0]


def _chain_rate_jax() -> float:
    """The same compiled by XLA, whose products of this size run on the calling thread."""

    @jax.jit
    def chain(left: jax.Array, right: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, CHAIN, lambda _, value: value @ right, left)

    left, right = jnp.ones((32, 64)), jnp.full((64, 64), 1 / 64)
    return CHAIN_FLOPS / common.shortest(lambda: chain(left, right).block_until_ready(), TRIES)[0]


def _draw(folder: Path, table: list[Any]) -> None:
    figure, (axes,) = common.figure(1, height=0.35 * len(table) + 1)
    figure.set_size_inches(7.5, 0.35 * len(table) + 1)
    names = [row[0] for row in table][::-1]
    bars = axes.barh(
        names, [row[1] for row in table][::-1], color=["C1" if "jaxloss" in name else "C0" for name in names]
    )
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xscale="log", xlabel="µs a step, lower is better")
    figure.savefig(folder / "figure.png", dpi=140)
