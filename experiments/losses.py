"""Which losses are there, what does each estimate, and how does each treat a large residual?

    python -m experiments losses

Prints the README's table of losses, read off the losses themselves, and draws value, slope and weight of each loss of
the residual. `--readme README.md` writes the table between the marks in that file; a test fails when it is stale.

Answer: the losses differ in two things, what the best constant is (mean, median, quantile, …) and whether a single row
can pull it any distance (unbounded slope) or not.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.tree_util import Partial
from matplotlib.figure import Figure

import jaxloss
from experiments import common
from jaxloss import plots

MARKS = "<!-- losses -->", "<!-- end of losses -->"
SHAPES = {"barron": {"alpha": 0.5}, "quantile": {"level": 0.75}, "expectile": {"level": 0.75}}
SHAPES |= {"quantile_huber": {"level": 0.75}}


@dataclass(frozen=True)
class Config(common.Config):
    readme: Path | None = None
    """A Markdown file whose table of losses is to be brought up to date."""


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
    """A row of pictures to each family."""
    shown = [loss for loss in _losses() if jaxloss.traits(loss).residual and loss is not jaxloss.barron_nll]
    families = {"residual": [], "quantile": [], "robust": []}
    for loss in shown:
        family = loss.__module__.split(".")[-1].replace("barron", "robust")
        families[family].append(Partial(loss, **SHAPES.get(loss.__name__, {})))
    figure = Figure(figsize=(15, 9.6), layout="constrained")
    for row, (family, losses) in zip(figure.subplots(3, 3), families.items(), strict=True):
        for axes, kind, limits in zip(row, ("value", "slope", "irls_weight"), ((0, 6), (-3, 3), (0, 2.5)), strict=True):
            plots.loss_curves(losses, kind, reach=6, axes=axes).set(ylim=limits)
            if axes.get_legend():
                axes.get_legend().remove()
        row[0].set_ylabel(family)
        row[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(folder / "figure.png", dpi=140)
