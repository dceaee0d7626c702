"""What all pictures share: colours, axes, labels with units, and notes."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "AMBER", "BLACK", "BLUE", "GRAY", "GREEN", "ORANGE", "PURPLE", "SKY",
    "add_legend", "annotate", "in_unit", "leave_empty", "new_axes", "set_title", "write_in_corner",
]  # fmt: skip

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, SKY, PURPLE, AMBER = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#E69F00"
BLACK, GRAY = "#222222", "#777777"


def new_axes(axes: Any) -> Axes:
    """The axes given, or those of a new figure; without the two spines that carry no scale."""
    if axes is None:
        axes = Figure(figsize=(4.8, 3.8), layout="constrained").subplots()
    if not isinstance(axes, Axes):
        raise TypeError(f"axes must be one matplotlib Axes, got {type(axes).__name__}")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def in_unit(label: str, unit: str | None) -> str:
    """The label with its unit, in which a dollar is no mathematics."""
    return f"{label} ({unit})".replace("$", r"\$") if unit else label


def set_title(axes: Axes, text: str) -> None:
    """Set the title, to the left: what the picture shows, or better what it says."""
    axes.set_title(text, loc="left", fontsize=11)


def add_legend(axes: Axes) -> None:
    """Add a half-transparent legend."""
    axes.legend(loc="best", fontsize=9, framealpha=0.7, edgecolor="none")


def annotate(axes: Axes, notes: list[str]) -> Axes:
    """Put the notes below the axes, in small print."""
    text = "\n".join(note for note in notes if note)
    if text:
        axes.annotate(
            text, (1, 0), (0, -34), "axes fraction", "offset points", ha="right", va="top", fontsize=8, color=GRAY,
            annotation_clip=False,
        )  # fmt: skip
    return axes


def leave_empty(axes: Axes, why: str = "nothing to draw") -> None:
    """Say in the middle of the axes why nothing is drawn."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=GRAY, wrap=True)


def write_in_corner(axes: Axes, text: str, *, right: bool = False, top: bool = True, color: str = BLACK) -> None:
    """Write a short text in a corner of the axes, on a white ground."""
    x, y = (0.98 if right else 0.02), (0.98 if top else 0.02)
    ground = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
    sides: dict[str, Any] = {"ha": "right" if right else "left", "va": "top" if top else "bottom"}
    axes.text(x, y, text, fontsize=9, color=color, transform=axes.transAxes, bbox=ground, **sides)
