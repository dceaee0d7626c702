"""The one table of losses, one row each. Every property test runs over every row; a loss with no row fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import grids
import numpy as np
import oracles as o
import pytest
from mpmath import exp, log, mp, mpf, sign
from oracles import Oracle, largest, of_residual, summed

import jaxloss

Settings = dict[str, Any]


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
    sizes: tuple[Oracle, Oracle, Oracle]
    """What the errors of value, slope and curvature are relative to: themselves, or the formula's largest term."""
    partials: Mapping[str, Oracle] = {}
    """Its derivatives in each setting and, as "target", in the target."""
    settings: tuple[Settings, ...] = ({},)
    """Ordinary settings; the first is used where one is enough, and names every setting a test should vary."""
    sweep: tuple[Settings, ...] = ({},)
    """Settings over their whole range, for the accuracy."""
    corners: Callable[..., tuple[float, ...]] = lambda target, **settings: ()
    """corners(target, **settings): the predictions at which slope or curvature jumps."""
    line: Line = REAL
    tolerance: float = 1.0
    """5 where float32 exp and pow themselves enter."""
    least: float = 1.0
    """Exact results below this many times float32's smallest normal number are held to an absolute error of it."""
    pairs: Callable[[Any, Settings, bool], tuple[np.ndarray, np.ndarray]] = grids.of_residuals
    """pairs(row, settings, full): predictions and targets for the accuracy."""
    zero_at_fit: bool = True
    """False for a likelihood, which is not 0 at a perfect fit and may be negative."""
    unbounded: bool = True
    """Whether the loss tends to infinity with the residual."""
    nan_curvature: bool = True
    """Whether the curvature of NaN is NaN; a loss whose curvature is made of constants may give one of them."""

    @property
    def name(self) -> str:
        return self.loss.__name__

    @property
    def usual(self) -> Settings:
        return self.settings[0]


def row(loss: Any, *parts: Oracle, **rest: Any) -> Row:
    """A row from the oracles of value, slope and curvature."""
    return Row(loss, *map(summed, parts), sizes=tuple(map(largest, parts)), **rest)  # type: ignore[arg-type]


def residual_row(
    loss: Any,
    *parts: Oracle,
    corners: Callable = lambda **settings: (),
    partials: Mapping[str, Oracle] = {},
    **rest: Any,
) -> Row:
    """A row of a loss of the residual: its oracles and corners take residuals."""

    def at_residuals(target, **settings):
        return tuple(target + r for r in corners(**settings))

    in_settings = {name: of_residual(partial) for name, partial in partials.items()}
    in_settings["target"] = of_residual(lambda r, **settings: -parts[1](r, **settings))
    return row(loss, *map(of_residual, parts), corners=at_residuals, partials=in_settings, **rest)


def grid(**values: tuple[float, ...]) -> tuple[Settings, ...]:
    """Every combination of the values given for each setting."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))


LENGTHS = (1e-3, 0.037, 1.0, 41.0, 1e3)
LEVELS = (1e-3, 0.1, 0.5, 0.75, 0.999)
TO_TWO = (0.0, 1e-3, 0.5, 1.0, 1.5, 1.999, 2.0)
ALPHAS = (-np.inf, -1e6, -1e3, -2.0, -1.0, -1e-3, *TO_TWO)
POWERS = (-3.0, -1e-3, 0.0, 1.0, 1.001, 1.25, 1.5, 1.75, 1.999, 2.0, 2.001, 3.0, 5.5, 30.0)


def by_scale(first: float = 1.0) -> dict[str, Any]:
    return {"settings": grid(scale=(first, 0.5)), "sweep": grid(scale=LENGTHS)}


RESIDUAL_LOSSES = (
    residual_row(jaxloss.mse, lambda r: r**2, lambda r: 2 * r, lambda r: mpf(2), nan_curvature=False),
    residual_row(jaxloss.mae, abs, sign, lambda r: mpf(0), corners=lambda: (0.0,), nan_curvature=False),
    residual_row(
        jaxloss.huber,
        o.huber,
        o.huber_slope,
        o.huber_curvature,
        partials={"delta": lambda r, delta: o.excess(r, delta)},
        settings=grid(delta=(1.0, 0.3)),
        sweep=grid(delta=LENGTHS),
        corners=lambda delta: (-delta, delta),
    ),
    residual_row(
        jaxloss.smooth_l1,
        lambda r, beta: o.huber(r, beta) / beta,
        lambda r, beta: o.huber_slope(r, beta) / beta,
        lambda r, beta: o.huber_curvature(r, beta) / beta,
        partials={"beta": lambda r, beta: -(min(abs(r) / beta, mpf(1)) ** 2) / 2},
        settings=grid(beta=(1.0, 0.3)),
        sweep=grid(beta=LENGTHS),
        corners=lambda beta: (-beta, beta),
    ),
    residual_row(
        jaxloss.pseudo_huber,
        lambda r, delta: delta**2 * (mp.sqrt(1 + (r / delta) ** 2) - 1),
        lambda r, delta: r / mp.sqrt(1 + (r / delta) ** 2),
        lambda r, delta: (1 + (r / delta) ** 2) ** mpf(-1.5),
        partials={"delta": o.pseudo_huber_delta_slope},
        settings=grid(delta=(1.0, 0.3)),
        sweep=grid(delta=LENGTHS),
    ),
    residual_row(
        jaxloss.log_cosh,
        lambda r: abs(r) - log(2) if o.far(r) else log(mp.cosh(r)),
        lambda r: sign(r) if o.far(r) else mp.tanh(r),
        lambda r: mpf(0) if o.far(r) else 1 / mp.cosh(r) ** 2,
    ),
    residual_row(
        jaxloss.epsilon_insensitive,
        o.excess,
        lambda r, epsilon: sign(r) if abs(r) > epsilon else mpf(0),
        lambda r, epsilon: mpf(0),
        partials={"epsilon": lambda r, epsilon: -mpf(abs(r) > epsilon)},
        settings=grid(epsilon=(0.1, 0.5)),
        sweep=grid(epsilon=(0.0, *LENGTHS)),
        corners=lambda epsilon: (-epsilon, epsilon),
        nan_curvature=False,
    ),
    residual_row(
        jaxloss.squared_epsilon_insensitive,
        lambda r, epsilon: o.excess(r, epsilon) ** 2,
        lambda r, epsilon: 2 * sign(r) * o.excess(r, epsilon),
        lambda r, epsilon: mpf(2 if abs(r) > epsilon or epsilon == 0 else 0),
        partials={"epsilon": lambda r, epsilon: -2 * o.excess(r, epsilon)},
        settings=grid(epsilon=(0.1, 0.5)),
        sweep=grid(epsilon=(0.0, *LENGTHS)),
        corners=lambda epsilon: (-epsilon, epsilon),
    ),
)

RELATIVE_LOSSES = (
    row(
        jaxloss.msle,
        lambda p, t: o.log_ratio(p, t) ** 2,
        lambda p, t: 2 * o.log_ratio(p, t) / (1 + p),
        o.msle_curvature,
        partials={"target": lambda p, t: -2 * o.log_ratio(p, t) / (1 + t)},
        line=ABOVE_MINUS_ONE,
        pairs=grids.above_minus_one,
        tolerance=5,
    ),
    row(
        jaxloss.mape,
        lambda p, t, epsilon: abs(p - t) / max(abs(t), epsilon),
        lambda p, t, epsilon: sign(p - t) / max(abs(t), epsilon),
        lambda p, t, epsilon: mpf(0),
        partials={
            "epsilon": lambda p, t, epsilon: -abs(p - t) / epsilon**2 if abs(t) < epsilon else mpf(0),
            "target": o.mape_target_slope,
        },
        settings=grid(epsilon=(0.5, 1e-6)),
        sweep=grid(epsilon=(1e-6, *LENGTHS)),
        corners=lambda target, epsilon: (target,),
        pairs=grids.of_relative_errors,
        nan_curvature=False,
    ),
    row(
        jaxloss.smape,
        lambda p, t, epsilon: 2 * abs(p - t) / max(abs(p) + abs(t), epsilon),
        o.smape_slope,
        o.smape_curvature,
        partials={
            "epsilon": lambda p, t, epsilon: -2 * abs(p - t) / epsilon**2 if abs(p) + abs(t) < epsilon else mpf(0),
            "target": lambda p, t, epsilon: o.smape_slope(t, p, epsilon),
        },
        settings=grid(epsilon=(0.5, 1e-6)),
        sweep=grid(epsilon=(1e-6, *LENGTHS)),
        corners=lambda target, epsilon: (target, 0 * target, abs(target) - epsilon, epsilon - abs(target)),
        pairs=grids.of_relative_errors,
        unbounded=False,
    ),
)

ROBUST_LOSSES = (
    residual_row(
        jaxloss.cauchy,
        lambda r, scale: scale**2 / 2 * log(1 + (r / scale) ** 2),
        lambda r, scale: r / (1 + (r / scale) ** 2),
        o.cauchy_curvature,
        partials={"scale": o.cauchy_scale_slope},
        **by_scale(),
    ),
    residual_row(
        jaxloss.welsch,
        lambda r, scale: scale**2 / 2 * (1 - exp(-((r / scale) ** 2))),
        lambda r, scale: r * exp(-((r / scale) ** 2)),
        o.welsch_curvature,
        partials={"scale": o.welsch_scale_slope},
        unbounded=False,
        tolerance=5,
        **by_scale(),
    ),
    residual_row(
        jaxloss.geman_mcclure,
        lambda r, scale: r**2 / 2 / (1 + (r / scale) ** 2),
        lambda r, scale: r / (1 + (r / scale) ** 2) ** 2,
        o.geman_mcclure_curvature,
        partials={"scale": o.geman_mcclure_scale_slope},
        unbounded=False,
        **by_scale(),
    ),
    residual_row(
        jaxloss.tukey,
        o.tukey,
        o.tukey_slope,
        o.tukey_curvature,
        partials={"scale": o.tukey_scale_slope},
        unbounded=False,
        **by_scale(4.685),
    ),
    residual_row(
        jaxloss.fair,
        lambda r, scale: scale**2 * (abs(r) / scale - log(1 + abs(r) / scale)),
        lambda r, scale: r / (1 + abs(r) / scale),
        lambda r, scale: 1 / (1 + abs(r) / scale) ** 2,
        partials={"scale": o.fair_scale_slope},
        **by_scale(),
    ),
    residual_row(
        jaxloss.barron,
        o.barron,
        o.barron_slope,
        o.barron_curvature,
        settings=({"alpha": 0.5, "scale": 1.0}, {"alpha": 1.5, "scale": 0.5}, {"alpha": -2.0, "scale": 1.0}),
        sweep=grid(alpha=ALPHAS, scale=(1e-3, 1.0, 1e3)),
        partials={"alpha": o.barron_alpha_slope, "scale": o.barron_scale_slope},
        tolerance=5,
    ),
    residual_row(
        jaxloss.barron_nll,
        o.barron_nll,
        o.barron_slope,
        o.barron_curvature,
        settings=({"alpha": 0.5, "scale": 1.0}, {"alpha": 1.5, "scale": 0.5}, {"alpha": 2.0, "scale": 1.0}),
        sweep=grid(alpha=TO_TWO, scale=(1e-3, 1.0, 1e3)),
        partials={"alpha": o.barron_nll_alpha_slope, "scale": o.barron_nll_scale_slope},
        tolerance=5,
        zero_at_fit=False,
    ),
)

QUANTILE_LOSSES = (
    residual_row(
        jaxloss.quantile,
        lambda r, level: o.weight(r, level) * abs(r),
        lambda r, level: o.weight(r, level) * sign(r),
        lambda r, level: mpf(0),
        partials={"level": lambda r, level: -r},
        settings=grid(level=(0.3, 0.9)),
        sweep=grid(level=LEVELS),
        corners=lambda level: (0.0,),
        nan_curvature=False,
    ),
    residual_row(
        jaxloss.expectile,
        lambda r, level: o.weight(r, level) * r**2,
        lambda r, level: o.weight(r, level) * 2 * r,
        lambda r, level: o.least_weight(r, level) * 2,
        partials={"level": lambda r, level: -r * abs(r)},
        settings=grid(level=(0.3, 0.9)),
        sweep=grid(level=LEVELS),
        corners=lambda level: (0.0,),
        nan_curvature=False,
    ),
    residual_row(
        jaxloss.quantile_huber,
        lambda r, level, delta: o.weight(r, level) * o.huber(r, delta) / delta,
        lambda r, level, delta: o.weight(r, level) * o.huber_slope(r, delta) / delta,
        lambda r, level, delta: o.least_weight(r, level) * o.huber_curvature(r, delta) / delta,
        partials={
            "level": lambda r, level, delta: -sign(r) * o.huber(r, delta) / delta,
            "delta": lambda r, level, delta: -o.weight(r, level) * min(abs(r) / delta, mpf(1)) ** 2 / 2,
        },
        settings=({"level": 0.3, "delta": 1.0}, {"level": 0.9, "delta": 0.3}),
        sweep=grid(level=LEVELS, delta=(1e-3, 1.0, 1e3)),
        corners=lambda level, delta: (0.0, -delta, delta),
        nan_curvature=False,
    ),
)

DEVIANCES = (
    row(
        jaxloss.poisson_deviance,
        lambda p, t: o.tweedie(p, t, 1),
        lambda p, t: 2 * (p - t) / p,
        lambda p, t: 2 * t / p**2,
        partials={"target": lambda p, t: o.tweedie_target_slope(p, t, 1)},
        line=POSITIVE,
        pairs=grids.of_means,
    ),
    row(
        jaxloss.gamma_deviance,
        lambda p, t: o.tweedie(p, t, 2),
        lambda p, t: 2 * (p - t) / p**2,
        lambda p, t: o.tweedie_curvature(p, t, 2),
        partials={"target": lambda p, t: o.tweedie_target_slope(p, t, 2)},
        line=POSITIVE,
        pairs=grids.of_means,
    ),
    row(
        jaxloss.tweedie_deviance,
        o.tweedie,
        o.tweedie_slope,
        o.tweedie_curvature,
        partials={"power": o.tweedie_power_slope, "target": o.tweedie_target_slope},
        settings=grid(power=(1.7, 0.0, 1.0, 2.0, 3.0)),  # 1.7, of which six tenths are still in the domain
        sweep=grid(power=POWERS),
        line=POSITIVE,
        pairs=grids.of_means,
        tolerance=5,
        nan_curvature=False,
    ),
)

ROWS: tuple[Row, ...] = (*RESIDUAL_LOSSES, *RELATIVE_LOSSES, *ROBUST_LOSSES, *QUANTILE_LOSSES, *DEVIANCES)
ROW = {row.name: row for row in ROWS}


LONG = ("barron", "barron_nll", "tweedie_deviance")
"""Losses of so many operations that the tests that compile most of them are left to the slow suite."""

KINDS = ("huber", "mape", "tukey", "quantile", "poisson_deviance")
"""One loss of each family, for quick tests of the lifting, which is one for all; the slow suite has the rest."""


def each(rows: list[Row], slow: tuple[str, ...] = ()) -> Any:
    """The test over the rows; those named are slow."""
    marked = [pytest.param(row, marks=pytest.mark.slow) if row.name in slow else row for row in rows]
    return pytest.mark.parametrize("row", marked, ids=[row.name for row in rows])


each_loss = each(list(ROWS))
each_short_loss = each(list(ROWS), slow=LONG)
each_kind_of_loss = each(list(ROWS), slow=tuple(row.name for row in ROWS if row.name not in KINDS))
each_residual_loss = each([row for row in ROWS if jaxloss.traits(row.loss).residual])


def lifted_losses(module: Any) -> dict[str, Any]:
    """The losses made by `pointwise` that a module holds, by name."""
    return {name: value for name, value in vars(module).items() if hasattr(value, "lifted")}
