"""Which losses are there, what does each estimate, and how does each treat a large residual?

    python -m experiments losses

Prints the README's table of losses, read off the losses themselves, and draws value and slope of each loss of the
residual. `--readme README.md` writes the table between the marks in that file; a test fails when it is stale.

Answer: the losses differ in two things, what the best constant is (mean, median, quantile, …) and whether a single row
can pull it any distance (unbounded slope) or not.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxloss
from experiments import common

MARKS = "<!-- losses -->", "<!-- end of losses -->"
SHAPES = {"barron": {"alpha": 0.5}, "quantile": {"level": 0.75}, "expectile": {"level": 0.75}}
SHAPES |= {"quantile_huber": {"level": 0.75}}


@dataclass(frozen=True)
class Config:
    readme: Path | None = None
    """A Markdown file whose table of losses is to be brought up to date."""
    out: Path | None = None
    """Run folder; a new one under runs/losses if not given."""


def run(config: Config, folder: Path) -> dict[str, Any]:
    markdown = table()
    (folder / "losses.md").write_text(markdown)
    if config.readme is not None:
        config.readme.write_text(inserted(config.readme.read_text(), markdown))
    print(markdown)
    _draw(folder)
    return {"losses": [loss.__name__ for loss in _losses()]}


def inserted(text: str, markdown: str) -> str:
    """The text with the table between its marks."""
    first, last = MARKS
    if first not in text or last not in text:
        raise common.UserError(f"the file has no lines {first} and {last}")
    return re.sub(f"{first}.*{last}", lambda _: f"{first}\n{markdown}{last}", text, flags=re.DOTALL)


def table() -> str:
    """The table of losses, in Markdown."""
    lines = ["| loss | definition | estimates | convex | bounded slope |", "|---|---|---|---|---|"]
    for loss in _losses():
        known = jaxloss.traits(loss)
        marks = ("yes" if known.convex else "", "yes" if known.bounded_influence else "")
        cells = (f"`{_call(loss)}`", _definition(loss), known.estimates, *marks)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _losses() -> list[Any]:
    """The losses, by family as in the package."""
    order = ("residual", "quantile", "robust", "barron", "relative", "deviance")
    losses = list(common.catalogue().values())
    return sorted(losses, key=lambda loss: (order.index(loss.__module__.split(".")[-1]), loss.__name__))


def _call(loss: Any) -> str:
    """The loss with its settings and their defaults."""
    settings = [p for p in inspect.signature(loss).parameters.values() if p.name in loss.lifted.defaults]
    told = [p.name if p.default is p.empty else f"{p.name}={p.default:g}" for p in settings]
    return loss.__name__ + (f"({', '.join(told)})" if told else "")


def _definition(loss: Any) -> str:
    """The first sentence of the docstring, without its source and how it is computed."""
    sentence = loss.__doc__.split("\n\n")[0].split("\n")[0].strip()
    sentence = re.split(r", computed as|, by the series|, by way of", sentence)[0]
    return re.sub(r"\s*\([^()]*(?:19|20)\d\d[^()]*\)?$", "", sentence.rstrip(".")).rstrip(".")


def _draw(folder: Path) -> None:
    figure, (left, right) = common.figure(2, height=4.4)
    residual = jnp.linspace(-6, 6, 601)
    for number, loss in enumerate(loss for loss in _losses() if jaxloss.traits(loss).residual):
        if loss.__name__ == "barron_nll":
            continue
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10], "label": loss.__name__}
        settings = SHAPES.get(loss.__name__, {})
        left.plot(residual, loss(residual, jnp.zeros(601), reduction="none", **settings), **style)
        right.plot(residual, np.asarray(jaxloss.slope(loss)(residual, jnp.zeros(601), **settings)), **style)
    left.set(xlabel="residual", title="loss", ylim=(0, 6))
    right.set(xlabel="residual", title="slope: the pull of a row", ylim=(-3, 3))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(folder / "figure.png", dpi=140)
