"""Does gradient descent on squared error find the line y = 3x + 2 through noise, and is it the least-squares line?

    python -m experiments linear

Answer: after 100 full-batch steps the weight is 3.0 and the bias 2.0 to about 0.01, the loss equals the noise variance
0.04 up to sampling error, and the line agrees with the closed-form least-squares solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from experiments import common, data
from jaxloss.train import fit, functional


@dataclass(frozen=True)
class Config(common.Config):
    loss: str = "mse"
    """Loss by name, e.g. huber."""
    optimizer: str = "sgd"
    """sgd, adam, adamw or lion."""
    learning_rate: float = 0.1
    epochs: int = 100
    """Full-batch steps."""
    points: int = 1000
    noise: float = 0.2
    """Standard deviation of the noise on y."""
    seed: int = 0


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, points=2)
    x, y = data.noisy_line(config.points, config.noise, config.seed)
    apply, params = functional(nnx.Linear(1, 1, rngs=nnx.Rngs(config.seed)))
    loss = common.loss_by_name(config.loss)
    optimizer = common.optimizer_by_name(config.optimizer, config.learning_rate)
    fitted = fit(
        apply, params, (x, y), loss=loss, optimizer=optimizer, epochs=config.epochs, **config.session.settings(folder)
    )
    weight, bias = float(fitted.params["kernel"][0, 0]), float(fitted.params["bias"][0])
    exact_weight, exact_bias = (float(value) for value in data.least_squares(x, y)[:, 0])
    final_loss = float(loss(apply(fitted.params, x), y))
    exact_loss = float(loss((exact_weight * x + exact_bias).astype(np.float32), y))
    rows = [
        ("true line", 3.0, 2.0, ""),
        (f"gradient descent on {config.loss}", weight, bias, final_loss),
        ("least squares, closed form", exact_weight, exact_bias, exact_loss),
    ]
    common.print_table("y = 3x + 2 + noise", ("", "weight", "bias", config.loss), rows)
    print(f"noise variance {config.noise**2:.4g}: the floor of the mean squared error")
    _draw(folder, x, y, fitted.history["loss"], (weight, bias), config)
    return {
        "weight": weight,
        "bias": bias,
        "loss": final_loss,
        "noise_variance": config.noise**2,
        "least_squares": {"weight": exact_weight, "bias": exact_bias, "loss": exact_loss},
    }


def _draw(folder: Path, x: Any, y: Any, losses: Any, line: tuple[float, float], config: Config) -> None:
    figure, (left, right) = common.figure(2)
    left.plot(np.arange(1, len(losses) + 1), losses)
    if config.loss == "mse":
        left.axhline(config.noise**2, color="gray", linestyle="--", label=f"noise variance {config.noise**2:.3g}")
        left.legend(frameon=False)
    left.set(xlabel="step", ylabel=config.loss, yscale="log", title="training loss")
    right.plot(x[:, 0], y[:, 0], ".", markersize=3, alpha=0.4, label="data")
    ends = np.array([x.min(), x.max()])
    right.plot(ends, line[0] * ends + line[1], color="C1", linewidth=2, label=f"{line[0]:.3f} x + {line[1]:.3f}")
    right.set(xlabel="x", ylabel="y", title="fit")
    right.legend(frameon=False)
    figure.savefig(folder / "figure.png", dpi=140)
