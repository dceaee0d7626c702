"""What does a loss and its gradient cost, against optax, PyTorch, bare mean squared error and the memory's bandwidth?

    pip install torch && python -m experiments kernels

Value and gradient in the prediction of every loss (float32, reduced to its mean, compiled, waited for), from 2¹⁰ to
2²⁴ elements. All rivals run in one process, in a new random order each round (in a fixed one, whoever follows PyTorch
finds its threads still spinning); what is reported is the median over the rounds of the ratio to jaxloss or to bare
`jnp.mean((pred − target)**2)` in the same round. Each loss is also timed against itself, compiled a second time, in
each quarter of the rounds: only what exceeds the largest of these ratios counts as slower. The bandwidth bound is the
time XLA takes to add two arrays into a third, the traffic of a gradient.

Answer, from two runs on two idle CPU cores. mse and mae take the time of bare squared error, and of optax's; huber
takes two fifths of optax's from 2²² on. Eager PyTorch is ahead at 2¹⁶, where it takes half the time; torch.compile
takes 0.7 to 1.0 times our time for huber from 2²⁰ on, for the others as much or more. Elementary losses cost 0.9 to 1.6
times bare squared error, the others at most 3.3. barron, barron_nll and tweedie_deviance cost 0.5 to 1.0 times their
bare powers, but 1.3 to 1.4 at 2¹⁰. Over its bar was tukey in one run (1.6 at 2²²), in the other barron_nll (1.4, 2¹⁰).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common

REQUIRED = {
    "barron": {"alpha": 0.5},
    "barron_nll": {"alpha": 0.5, "scale": 1.0},
    "quantile_huber": {"level": 0.3},
    "tweedie_deviance": {"power": 1.5},
}
"""Settings without a default."""

ELEMENTARY = [
    "mse",
    "mae",
    "huber",
    "smooth_l1",
    "quantile",
    "expectile",
    "epsilon_insensitive",
    "squared_epsilon_insensitive",
    "tukey",
    "geman_mcclure",
]

OPTAX: dict[str, Callable] = {
    "mse": optax.losses.squared_error,
    "huber": functools.partial(optax.losses.huber_loss, delta=1.0),
    "log_cosh": optax.losses.log_cosh,
}

POWERS: dict[str, Callable] = {
    "barron": lambda p, t, a: (jnp.power(1 + (p - t) ** 2, a), lambda p, t, a: jnp.power(1 + (p - t) ** 2, a - 1)),
    "tweedie_deviance": lambda p, t, a: (jnp.power(t, a) + jnp.power(p, a - 1), lambda p, t, a: jnp.power(p, a - 2)),
}
POWERS["barron_nll"] = POWERS["barron"]
"""The powers of a traced exponent, and no more, in the textbook formulas of value and, apart, slope."""


TINY = {"losses": "mse,barron", "exponents": "8", "rounds": 2, "torch": False}


@dataclass(frozen=True)
class Config(common.Config):
    losses: str = ""
    """Names of the losses, separated by commas; all if empty."""
    exponents: str = "10,16,20,22,24"
    """Sizes, as powers of two."""
    rounds: int = 11
    """Rounds of timing at each size, at least."""
    seconds: float = 1.0
    """Time for more rounds, of one loss at one size; at most 200."""
    torch: bool = True
    """Whether to time PyTorch, if it is installed."""
    compiled: bool = True
    """Whether to time torch.compile too."""
    seed: int = 0


def run(config: Config, folder: Path) -> dict[str, Any]:
    losses = common.catalogue()
    chosen = [name for name in config.losses.split(",") if name] or list(losses)
    for name in chosen:
        common.loss_by_name(name)
    rng = np.random.default_rng(config.seed)
    result: dict[str, Any] = {"ratios": [], "claims": {}}
    table, slower, dear = [], [], []
    torch_kernels = _torch_kernels(config)
    for exponent in (int(word) for word in config.exponents.split(",")):
        size = 2**exponent
        host = (np.exp(rng.normal(size=size)).astype(np.float32), np.exp(rng.normal(size=size)).astype(np.float32))
        arrays = tuple(map(jnp.asarray, host))
        for name in chosen:
            kernels = _kernels(name, losses[name], arrays) | torch_kernels(name, host)
            ratios, seconds = _compare(kernels, config)
            spread = ratios.pop("spread")
            entry = {"loss": name, "size": size, "microseconds": 1e6 * seconds, "spread": spread} | ratios
            result["ratios"].append(entry)
            rivals = [key for key in ratios if key == "optax" or (key.startswith("torch") and exponent >= 22)]
            slower += [f"{name} at 2^{exponent} against {key}" for key in rivals if ratios[key] * spread < 1]
            bar = 1.3 if name in POWERS else 1.5 if name in ELEMENTARY else 4.0
            cost = 1 / ratios["bare power" if name in POWERS else "bare mse"]
            if cost > bar * spread:
                dear.append(f"{name} at 2^{exponent}: {cost:.2f} > {bar}")
            shown = [
                f"{ratios[key]:.2f}" if key in ratios else "" for key in ("optax", "torch eager", "torch compiled")
            ]
            own = f"{1 / ratios['bare mse']:.2f}", f"{1 / ratios['bandwidth']:.2f}"
            table.append((f"{name} {exponent}", f"{entry['microseconds']:.0f}", *own, *shown, f"{spread:.2f}"))
    columns = ("loss size", "µs", "/mse", "/band", "optax/", "torch/", "comp./", "noise")
    common.print_table("Value and gradient", columns, table)
    result["claims"] = {"nothing is slower than a rival": not slower, "nothing costs more than its bar": not dear}
    result["slower"], result["dear"] = slower, dear
    for title, found in (("slower than a rival", slower), ("over its bar", dear)):
        print(f"{title}: {', '.join(found) or 'none'}")
    _draw(folder, result["ratios"], chosen)
    return result


def _kernels(name: str, loss: Callable, arrays: Any) -> dict[str, Callable]:
    """The calls to time, each returning only when it is done; the first is the loss, the second the same again."""
    pred, target = arrays
    settings = {key: jnp.float32(value) for key, value in REQUIRED.get(name, {}).items()}

    def ready(function: Callable, *arguments: Any) -> Callable:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*arguments))

    def own(pred: Any, target: Any, settings: Any) -> Any:
        return loss(pred, target, **settings)

    def again(pred: Any, target: Any, settings: Any) -> Any:
        return loss(pred, target, **settings)

    kernels = {
        "jaxloss": ready(jax.value_and_grad(own), pred, target, settings),
        "itself": ready(jax.value_and_grad(again), pred, target, settings),
        "bare mse": ready(jax.value_and_grad(lambda p, t: jnp.mean((p - t) ** 2)), pred, target),
        "bandwidth": ready(jnp.add, pred, target),
    }
    if name in OPTAX:
        kernels["optax"] = ready(jax.value_and_grad(lambda p, t: jnp.mean(OPTAX[name](p, t))), pred, target)
    if name in POWERS:

        def bare(p: Any, t: Any, a: Any) -> Any:
            value, slope = POWERS[name](p, t, a)
            return jnp.mean(value), slope(*jax.lax.optimization_barrier((p, t, a)))

        kernels["bare power"] = ready(bare, pred, target, jnp.float32(0.4))
    return kernels


def _torch_kernels(config: Config) -> Callable[[str, Any], dict[str, Callable]]:
    """The same in PyTorch, for the losses it has; nothing where it is not installed."""
    if not config.torch:
        return lambda name, host: {}
    try:
        import torch
    except ModuleNotFoundError:
        print("PyTorch is not installed: pip install torch adds the comparison.")
        return lambda name, host: {}
    functional = torch.nn.functional
    losses = {
        "mse": functional.mse_loss,
        "mae": functional.l1_loss,
        "huber": functional.huber_loss,
        "smooth_l1": functional.smooth_l1_loss,
    }
    compiled = {name: torch.compile(loss, dynamic=True) for name, loss in losses.items()} if config.compiled else {}

    def kernels(name: str, host: Any) -> dict[str, Callable]:
        if name not in losses:
            return {}
        pred, target = torch.from_numpy(host[0]).requires_grad_(), torch.from_numpy(host[1])

        def ready(loss: Callable) -> Callable:
            def call() -> None:
                value = loss(pred, target)
                torch.autograd.grad(value, pred)

            return call

        found = {"torch eager": ready(losses[name])}
        return found | ({"torch compiled": ready(compiled[name])} if name in compiled else {})

    return kernels


def _compare(kernels: dict[str, Callable], config: Config) -> tuple[dict[str, float], float]:
    """Each kernel's time over the first's: the median over rounds; also the spread of the first against itself."""
    names = list(kernels)
    for name in names:
        kernels[name]()
    started = time.perf_counter()
    kernels["jaxloss"]()
    once = time.perf_counter() - started
    calls = max(1, min(20, int(5e-4 / once)))
    rounds = max(config.rounds, min(200, int(config.seconds / (len(names) * (calls + 1) * once))))
    times: dict[str, list[float]] = {name: [] for name in names}
    order = np.random.default_rng(config.seed)
    for _ in range(rounds):
        for name in order.permutation(names):  # not rotated: whoever follows PyTorch finds its threads still spinning
            kernel = kernels[name]
            kernel()  # not timed: it brings back what the others pushed out of the caches
            started = time.perf_counter()
            for _ in range(calls):
                kernel()
            times[name].append((time.perf_counter() - started) / calls)
    own = np.array(times["jaxloss"])
    ratios = {name: float(np.median(np.array(times[name]) / own)) for name in names[1:]}
    parts = [np.median(part) for part in np.array_split(np.array(times["itself"]) / own, 4)]
    ratios["spread"] = float(np.exp(np.max(np.abs(np.log(parts)))))
    return ratios, float(np.median(own))


def _draw(folder: Path, ratios: list[dict[str, Any]], names: list[str]) -> None:
    figure, (axes,) = common.figure(1, height=4.5)
    figure.set_size_inches(9, 4.8)
    for size in sorted({entry["size"] for entry in ratios}):
        cost = [1 / entry["bare mse"] for entry in ratios if entry["size"] == size]
        axes.plot(names, cost, "o", markersize=5, label=f"2^{size.bit_length() - 1}")
    axes.axhline(1, color="gray", linestyle="--", linewidth=1)
    axes.tick_params(axis="x", rotation=75)
    axes.set(ylabel="time of value and gradient ÷ bare mse", yscale="log", title="cost by loss and size")
    axes.legend(frameon=False, title="elements", ncols=2)
    figure.savefig(folder / "figure.png", dpi=140)
