"""What do units do to squared error: to its value, its conditioning, the learning rate and the steps it takes?

    python -m experiments units

The way of a trip, from the straight line and the turnings (simulated: `data.trips`), in metres, in kilometres and in
standard units; a line by gradient descent and by Adam, and a small network by gradient descent, all full batch. A fit
has converged when its RMSE is within 1 % of that of least squares.

Answer, with 1000 rows at seed 0, and alike at 1 and 2:

- The mean squared error of one fit is 156,800 m² and 0.1568 km², 10⁶ times; its RMSE is 396 m in either.
- To a line under gradient descent the target's unit is nothing: the Hessian does not contain the target. The features'
  units are everything: with metres its condition is 9e8 (not converged after 2000 steps), with kilometres 2,600 (225
  steps), in standard units 9.4 (33 steps).
- A step of Adam is a length: in metres it needs 1000 times the rate that it needs in kilometres, for the same steps.
- In a network one layer multiplies another. The largest rate it bears is 3e-5 in metres, 3e-2 in kilometres and 0.1 in
  standard units; the best one in kilometres diverges in metres. With a rate of its own each fits (396 m, 427 m, 415 m):
  the unit costs the search for the rate, which in standard units is where it usually is.
- Standardised, metres and kilometres are the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments import common, data, sweeps
from experiments.models import MLP
from jaxloss import Standardizer, mae, mse, rmse
from jaxloss.train import Batch, functional, supervised

ADAM_RATES = 10.0 ** np.arange(-3, 3.1, 0.5)
NETWORK_RATES = 10.0 ** np.arange(-8, 0.6, 0.5)


TINY = {"rows": 200, "steps": 1300, "network_steps": 200, "hidden": 8}


@dataclass(frozen=True)
class Config(common.Config):
    rows: int = 1000
    steps: int = 2000
    """Of gradient descent and Adam on the line, at most."""
    network_steps: int = 500
    hidden: int = 16
    seed: int = 0
    """Of the data and of the network's initial weights."""


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, "steps", "network_steps", rows=20)
    x, way = data.trips(config.rows, config.seed)
    features, units = Standardizer.fit(x), Standardizer.fit(way)
    inputs = {"metres": x, "kilometres": x * [1e-3, 1.0], "standard": features.transform(x)}
    targets = {"metres": way, "kilometres": way / 1000, "standard": units.transform(way)}
    metres = {"metres": 1.0, "kilometres": 1000.0, "standard": float(units.scale[0])}
    values = values_of(x, way)
    # The largest eigenvalue over the smallest: descent takes steps of that order.
    conditions = {name: float(np.linalg.cond(hessian(part, way))) for name, part in inputs.items()}
    descent, curves = steps_of_descent(config, inputs, targets, metres, values["rmse"][0])
    adam = steps_of_adam(config, inputs["standard"], targets, metres, values["rmse"][0])
    network = errors_of_network(config, inputs["standard"], targets, metres)
    _print(values, conditions, descent, adam, network)
    _draw(folder, config, curves, adam, network, values["rmse"][0])
    best, largest = best_rates(network), largest_rates(network)
    claims = {
        "mean squared error in metres is 10⁶ times that in kilometres": close(values["mse"][0], 1e6 * values["mse"][1]),
        "RMSE and MAE are the same lengths": all(close(values[n][0], 1e3 * values[n][1]) for n in ("rmse", "mae")),
        "the Hessian of a line does not know the target's unit": all(
            close(hessian(part, way), hessian(part, way / 1000)) for part in inputs.values()
        ),
        "features in metres are worse conditioned than in kilometres by 10⁴ or more, and standard ones best": (
            conditions["metres"] > 1e4 * conditions["kilometres"] > 1e4 * conditions["standard"]
        ),
        "a line takes descent equally many steps in metres and in kilometres": all(
            descent[name]["metres"] == descent[name]["kilometres"] for name in inputs
        ),
        "descent converges on standard features, not on features in metres": (
            descent["standard"]["metres"] is not None and descent["metres"]["metres"] is None
        ),
        "Adam in metres needs 1000 times the learning rate that it needs in kilometres": shifted(adam),
        "the network's best rate in kilometres diverges in metres": best["kilometres"] > largest["metres"],
        "the network bears no more than a hundredth of the rate in metres": (
            100 * largest["metres"] < min(largest["kilometres"], largest["standard"])
        ),
        "standardised, metres and kilometres are the same targets": close(
            targets["standard"], Standardizer.fit(way / 1000).transform(way / 1000)
        ),
    }
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return {
        "values": values, "conditions": conditions, "descent": descent, "adam": adam, "network": network,
        "best_rates": best, "largest_rates": largest, "claims": {name: bool(holds) for name, holds in claims.items()},
    }  # fmt: skip


def close(left: Any, right: Any) -> bool:
    return bool(np.allclose(left, right, rtol=1e-4, atol=1e-9))


def values_of(x: np.ndarray, way: np.ndarray) -> dict[str, tuple[float, float]]:
    """MSE, RMSE and MAE of the least-squares line, in metres and in kilometres."""
    pred = np.column_stack([x, np.ones(len(x))]) @ data.least_squares(x, way)
    losses = {"mse": mse, "rmse": rmse, "mae": mae}
    return {name: (float(loss(pred, way)), float(loss(pred / 1000, way / 1000))) for name, loss in losses.items()}


def line(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["slopes"] + params["intercept"][None]


def start() -> dict[str, jax.Array]:
    return {"slopes": jnp.zeros((2, 1)), "intercept": jnp.zeros(1)}


def hessian(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The Hessian of the mean squared error in (slopes, intercept), in float64."""
    with jax.enable_x64(True):
        design, target = (jnp.asarray(part) for part in (np.column_stack([x, np.ones(len(x))]), target))
        return np.asarray(jax.hessian(lambda flat: mse((design @ flat)[:, None], target))(jnp.zeros(3)))


def batch_of(x: np.ndarray, target: np.ndarray) -> Batch:
    return Batch(jnp.asarray(x, jnp.float32), jnp.asarray(target, jnp.float32))


def converged(losses: np.ndarray, limit: float) -> int | None:
    """Steps until the loss is at the limit for the first time."""
    reached = losses <= limit
    return int(np.argmax(reached)) if reached.any() else None


def steps_of_descent(config: Config, inputs: Any, targets: Any, metres: Any, floor: float) -> tuple[Any, Any]:
    """Steps of gradient descent at rate 1/λ, λ the Hessian's largest eigenvalue, and RMSE in metres by step."""
    steps: dict[str, dict[str, int | None]] = {}
    curves = {}
    for name, x in inputs.items():
        rate = 1 / np.linalg.eigvalsh(hessian(x, targets["metres"]))[-1]
        steps[name] = {}
        for unit in ("metres", "kilometres"):
            objective, batch = supervised(line, mse), batch_of(x, targets[unit])
            _, (losses,) = sweeps.train_at_rates(objective, start(), batch, optax.sgd, [rate], config.steps)
            steps[name][unit] = converged(losses, (1.01 * floor / metres[unit]) ** 2)
            curves[name, unit] = np.sqrt(losses) * metres[unit]
    return steps, curves


def steps_of_adam(config: Config, x: np.ndarray, targets: Any, metres: Any, floor: float) -> dict[str, list[Any]]:
    """Steps of Adam on standard features, at each of its rates."""
    steps = {}
    for unit, target in targets.items():
        objective, batch = supervised(line, mse), batch_of(x, target)
        _, losses = sweeps.train_at_rates(objective, start(), batch, optax.adam, ADAM_RATES, config.steps)
        steps[unit] = [converged(curve, (1.01 * floor / metres[unit]) ** 2) for curve in losses]
    return steps


def shifted(adam: dict[str, list[Any]]) -> bool:
    """Whether the steps in metres are those in kilometres at a thousandth of the rate, up to rounding."""
    pairs = list(zip(adam["kilometres"], adam["metres"][6:]))  # six half decades on
    both = [(here, there) for here, there in pairs if here is not None and there is not None]
    agree = all((here is None) == (there is None) for here, there in pairs)
    return agree and bool(both) and all(abs(here - there) <= 2 + 0.02 * here for here, there in both)


def errors_of_network(config: Config, x: np.ndarray, targets: Any, metres: Any) -> dict[str, list[float]]:
    """The network's RMSE in metres after its steps of gradient descent, at each rate; NaN where it diverged."""
    apply, params = functional(MLP((2, config.hidden, 1), rngs=nnx.Rngs(config.seed)))
    errors = {}
    for unit, target in targets.items():
        objective, batch = supervised(apply, mse), batch_of(x, target)
        _, losses = sweeps.train_at_rates(objective, params, batch, optax.sgd, NETWORK_RATES, config.network_steps)
        errors[unit] = [float(np.sqrt(loss)) * metres[unit] for loss in losses[:, -1]]
    return errors


def best_rates(network: dict[str, list[float]]) -> dict[str, float]:
    return {unit: float(NETWORK_RATES[np.nanargmin(errors)]) for unit, errors in network.items()}


def largest_rates(network: dict[str, list[float]]) -> dict[str, float]:
    return {unit: float(NETWORK_RATES[np.isfinite(errors)].max()) for unit, errors in network.items()}


def _print(values: Any, conditions: Any, descent: Any, adam: Any, network: Any) -> None:
    rows = [(name.upper(), *pair, pair[0] / pair[1]) for name, pair in values.items()]
    common.print_table("Least squares", ("", "in metres", "in kilometres", "ratio"), rows)
    told = [(name, conditions[name], *(shown(steps) for steps in descent[name].values())) for name in descent]
    columns = ("features in", "condition", "target in metres", "in kilometres")
    common.print_table("\nA line by gradient descent at rate 1/λ: steps", columns, told)
    rows = [(f"{rate:.2g}", *(shown(adam[unit][index]) for unit in adam)) for index, rate in enumerate(ADAM_RATES)]
    common.print_table("\nA line on standard features by Adam: steps", ("learning rate", *adam), rows)
    best, largest = best_rates(network), largest_rates(network)
    rows = [(unit, f"{best[unit]:.1e}", f"{largest[unit]:.1e}", float(np.nanmin(network[unit]))) for unit in best]
    columns = ("target in", "best rate", "largest that does not diverge", "RMSE, metres")
    common.print_table("\nA network on standard features by gradient descent", columns, rows)


def shown(steps: int | None) -> str:
    return "—" if steps is None else str(steps)


def _draw(folder: Path, config: Config, curves: Any, adam: Any, network: Any, floor: float) -> None:
    figure, (left, middle, right) = common.figure(3)
    for name, color in (("metres", "#D55E00"), ("kilometres", "#009E73"), ("standard", "#0072B2")):
        for unit, width in (("metres", 4), ("kilometres", 1.2)):
            steps, label = np.arange(1, config.steps + 1), f"features: {name}" if width == 4 else None
            alpha = 0.4 if width == 4 else 1
            left.plot(steps, curves[name, unit], color=color, linewidth=width, alpha=alpha, label=label)
        taken = [np.nan if steps is None else steps for steps in adam[name]]
        middle.plot(ADAM_RATES, taken, "o-", color=color, markersize=4, label=f"target: {name}")
        right.plot(NETWORK_RATES, network[name], "o-", color=color, markersize=4, label=f"target: {name}")
    left.axhline(floor, color="gray", linestyle="--", linewidth=1)
    left.set(xscale="log", yscale="log", xlabel="step", ylabel="RMSE (m)")
    left.set_title("descent on a line: features matter,\nthe target's unit (thin: km) does not", fontsize=10)
    middle.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="steps to converge")
    middle.set_title("Adam: the rate has the target's unit", fontsize=10)
    right.axhline(floor, color="gray", linestyle="--", linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="RMSE (m)")
    title = f"a network after {config.network_steps} steps of descent;\nwhere a curve ends, it diverges"
    right.set_title(title, fontsize=10)
    for axes in (left, middle, right):
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "figure.png", dpi=140)
