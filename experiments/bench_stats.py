"""What does one pass of `ResidualStats` over many residuals cost, against the memory's bandwidth?

    python -m experiments bench_stats --rows 100000000

Two float32 arrays are read once. The bandwidth bound is the time XLA takes to sum pred + target, which reads as much
and computes next to nothing. All variants run in one process, in a new random order each round; what is reported is the
fastest time of each, and the bound as a share of it. Σr², Σ|r| and bias are held to 40 % of the bound, all moments to
20 %; the histogram and the worst rows have no bar, their cost is stated. On an accelerator the sums are held to 60 %,
everything to 20 %.

Answer, from one run over 10⁸ residuals on two idle CPU cores: the bound, on both cores, 0.27 ns a row; the sums 0.96 ns
(28 % of the bound: their bar is not kept, they run on one core), with moments 1.34 ns (20 %), sums with worst rows
2.3 ns, with the histogram 2.1 ns, everything 3.7 ns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import common
from jaxloss.metrics import ResidualStats

VARIANTS: dict[str, dict[str, Any]] = {
    "sums": {"moments": False, "histogram": False, "worst": 0},
    "sums and moments": {"moments": True, "histogram": False, "worst": 0},
    "sums and worst rows": {"moments": False, "histogram": False, "worst": 8},
    "sums and histogram": {"moments": False, "histogram": True, "worst": 0},
    "everything": {"moments": True, "histogram": True, "worst": 8},
}
BARS = {"cpu": {"sums": 0.4, "sums and moments": 0.2}}
ON_ACCELERATORS = {"sums": 0.6, "everything": 0.2}


TINY = {"rows": 200000, "rounds": 1}


@dataclass(frozen=True)
class Config(common.Config):
    rows: int = 10_000_000
    """Residuals."""
    rounds: int = 7
    """Rounds of timing."""
    seed: int = 0


def run(config: Config, folder: Path) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(config.seed))
    target = jax.random.normal(keys[0], (config.rows,))
    pred = target + jax.random.normal(keys[1], (config.rows,))
    bound = jax.jit(lambda p, t: jnp.sum(p + t))
    calls: dict[str, Callable] = {"bound": lambda: bound(pred, target)}
    for name, parts in VARIANTS.items():
        calls[name] = lambda parts=parts: ResidualStats.of(pred, target, **parts)
    ready = {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}
    best = common.shortest_of_each(ready, config.rounds, config.seed)
    table = [
        (name, 1e9 * seconds / config.rows, 8e-9 * config.rows / seconds, best["bound"] / seconds)
        for name, seconds in best.items()
    ]
    common.print_table(f"One pass over {config.rows:,} residuals", ("part", "ns/row", "GB/s", "of the bound"), table)
    shares = {name: best["bound"] / seconds for name, seconds in best.items()}
    figure, (axes,) = common.figure(1)
    axes.barh(list(shares), list(shares.values()))
    axes.set(xlabel="share of the bandwidth bound", title=f"{config.rows:,} residuals")
    figure.savefig(folder / "figure.png", dpi=140)
    bars = BARS.get(jax.default_backend(), ON_ACCELERATORS)
    claims = {f"{name}: at least {bar:.0%} of the bound": shares[name] >= bar for name, bar in bars.items()}
    return {"seconds_per_pass": best, "shares": shares, "claims": claims}
