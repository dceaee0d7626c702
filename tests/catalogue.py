"""The one table of losses: one row each. Every property test runs over every row; an exported loss with no row fails.

A row's oracles are mpmath functions of one prediction and one target, written from the definition, with no jax. At a
kink they follow the library's convention: the slope is the subgradient of least magnitude, the curvature the one on
the side of the smaller |residual|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from mpmath import mp, mpf, sign

import jaxloss

mp.dps = 120  # log cosh(1e-30) is 5e-61: the oracle's own cancellation must leave digits

Settings = dict[str, Any]
Oracle = Callable[..., Any]


class Line(NamedTuple):
    """Where predictions and targets live, and how to draw them."""

    lower: float
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


REAL = Line(-np.inf, lambda random, shape: 2 * random.standard_normal(shape))
POSITIVE = Line(0.0, lambda random, shape: np.exp(random.standard_normal(shape)))
ABOVE_MINUS_ONE = Line(-1.0, lambda random, shape: np.expm1(random.standard_normal(shape)))


class Row(NamedTuple):
    """What the tests need to know of a loss."""

    loss: Any
    value: Oracle
    """value(pred, target, **settings), exact."""
    slope: Oracle
    """Its derivative in pred."""
    curvature: Oracle
    """Its second derivative in pred."""
    settings: tuple[Settings, ...] = ({},)
    """Ordinary settings; the first is used where one is enough, and names every setting a test should vary."""
    sweep: tuple[Settings, ...] = ({},)
    """Settings over their whole range, for the accuracy."""
    corners: Callable[..., tuple[float, ...]] = lambda target, **settings: ()
    """corners(target, **settings): the predictions at which slope or curvature jumps."""
    line: Line = REAL
    curvature_size: Oracle | None = None
    """The largest term of the curvature's formula, where it changes sign; the error is relative to it."""
    tolerance: float = 1.0
    """5 where float32 exp and pow themselves enter."""
    pairs: Callable[[Settings, bool], tuple[np.ndarray, np.ndarray]] | None = None
    """pairs(settings, full): predictions and targets for the accuracy; by default residuals of every magnitude."""
    zero_at_fit: bool = True
    """False for a likelihood, which is not 0 at a perfect fit and may be negative."""
    unbounded: bool = True
    """Whether the loss tends to infinity with the residual."""
    torch: str = ""
    """The same loss in torch.nn.functional, with the same names of settings."""

    @property
    def name(self) -> str:
        return self.loss.__name__

    @property
    def usual(self) -> Settings:
        return self.settings[0]


def across(name: str, **fixed: float) -> tuple[Settings, ...]:
    """One setting over its whole range, the others fixed."""
    return tuple({name: value, **fixed} for value in (1e-3, 0.037, 1.0, 41.0, 1e3))


def of_residual(function: Oracle) -> Oracle:
    """An oracle of (pred, target) from one of the residual."""
    return lambda pred, target, **settings: function(pred - target, **settings)


def at_residuals(residuals: Callable[..., tuple[float, ...]]) -> Callable[..., tuple[float, ...]]:
    """Corners as predictions, from corners as residuals."""
    return lambda target, **settings: tuple(target + r for r in residuals(**settings))


def residual_row(loss: Any, value: Oracle, slope: Oracle, curvature: Oracle, **rest: Any) -> Row:
    """A row of a loss of the residual: its oracles and corners take residuals."""
    rest["corners"] = at_residuals(rest.pop("corners", lambda **settings: ()))
    if "curvature_size" in rest:
        rest["curvature_size"] = of_residual(rest["curvature_size"])
    return Row(loss, of_residual(value), of_residual(slope), of_residual(curvature), **rest)


def huber(r, delta):
    return r**2 / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)


def huber_slope(r, delta):
    return r if abs(r) <= delta else delta * sign(r)


def huber_curvature(r, delta):
    return mpf(abs(r) <= delta)


def far(r) -> bool:
    """Where cosh r is e^|r|/2 to all digits, and needs no number of 10³⁰ digits."""
    return abs(r) > 1000


RESIDUAL_LOSSES = (
    residual_row(jaxloss.mse, lambda r: r**2, lambda r: 2 * r, lambda r: mpf(2), torch="mse_loss"),
    residual_row(jaxloss.mae, abs, sign, lambda r: mpf(0), corners=lambda: (0.0,), torch="l1_loss"),
    residual_row(
        jaxloss.huber,
        huber,
        huber_slope,
        huber_curvature,
        settings=({"delta": 1.0}, {"delta": 0.3}),
        sweep=across("delta"),
        corners=lambda delta: (-delta, delta),
        torch="huber_loss",
    ),
    residual_row(
        jaxloss.smooth_l1,
        lambda r, beta: huber(r, beta) / beta,
        lambda r, beta: huber_slope(r, beta) / beta,
        lambda r, beta: huber_curvature(r, beta) / beta,
        settings=({"beta": 1.0}, {"beta": 0.3}),
        sweep=across("beta"),
        corners=lambda beta: (-beta, beta),
        torch="smooth_l1_loss",
    ),
    residual_row(
        jaxloss.pseudo_huber,
        lambda r, delta: delta**2 * (mp.sqrt(1 + (r / delta) ** 2) - 1),
        lambda r, delta: r / mp.sqrt(1 + (r / delta) ** 2),
        lambda r, delta: (1 + (r / delta) ** 2) ** mpf(-1.5),
        settings=({"delta": 1.0}, {"delta": 0.3}),
        sweep=across("delta"),
    ),
    residual_row(
        jaxloss.log_cosh,
        lambda r: abs(r) - mp.log(2) if far(r) else mp.log(mp.cosh(r)),
        lambda r: sign(r) if far(r) else mp.tanh(r),
        lambda r: mpf(0) if far(r) else 1 / mp.cosh(r) ** 2,
    ),
)

ROWS: tuple[Row, ...] = (*RESIDUAL_LOSSES,)


def each(rows: list[Row]) -> Any:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


each_loss = each(list(ROWS))
each_residual_loss = each([row for row in ROWS if jaxloss.traits(row.loss).residual])


def lifted_losses(module: Any) -> dict[str, Any]:
    """The losses made by `pointwise` that a module holds, by name."""
    return {name: value for name, value in vars(module).items() if hasattr(value, "lifted")}
