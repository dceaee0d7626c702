"""From a function that draws entries to one that draws predictions and targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from matplotlib.axes import Axes

from jaxloss.plots.canvas import annotate, new_axes
from jaxloss.plots.entries import entries_of

__all__ = ["Picture", "picture"]


class Picture(Protocol):
    """How a picture of residuals is called; its further settings, such as `unit` and `seed`, are in its signature."""

    def __call__(  # noqa: D102
        self,
        pred: Any,
        target: Any,
        *,
        weights: Any = None,
        where: Any = None,
        axes: Axes | None = None,
        **settings: Any,
    ) -> Axes: ...


def picture(name: str, draw: Callable[..., list[str]]) -> Picture:
    """Make `draw(axes, entries, *, settings)`, which returns its notes, a picture that is called like a loss."""

    def drawn(pred, target, *, weights=None, where=None, axes=None, **settings):
        signature.bind(pred, target, **settings)
        entries = entries_of(name, pred, target, weights, where)
        axes = new_axes(axes)
        return annotate(axes, draw(axes, entries, **settings))

    shared = list(inspect.signature(drawn).parameters.values())
    own = [p for p in inspect.signature(draw).parameters.values() if p.kind is p.KEYWORD_ONLY]
    signature = inspect.Signature([*shared[:-2], *own, shared[-2]])
    drawn.__signature__ = signature  # type: ignore[attr-defined]
    drawn.__name__ = drawn.__qualname__ = name
    drawn.__doc__, drawn.__module__ = draw.__doc__, draw.__module__
    return drawn
