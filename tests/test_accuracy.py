"""float32 against mpmath: residuals 1e-30 … 1e30, settings 1e-3 … 1e3, at the corners and beside them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from catalogue import ROW, Row, Settings, each_loss
from grids import Pairs
from mpmath import mpf, sign
from oracles import Oracle, largest, summed

import jaxloss

FLOAT32 = np.finfo(np.float32)
MOST = float(FLOAT32.max)
VALUE, SLOPE, CURVATURE, PARTIAL = 2e-6, 2e-6, 2e-5, 1e-5


class Cases(NamedTuple):
    """Predictions, targets and settings of float32: the grids of a loss for all its settings, then the ends."""

    pred: np.ndarray
    target: np.ndarray
    settings: dict[str, np.ndarray]
    regular: int
    """How many come before the ends."""

    def numbers(self) -> list[tuple[mpf, mpf, dict[str, mpf]]]:
        """Each case in exact numbers."""
        names = list(self.settings)
        arrays = (array.tolist() for array in (self.pred, self.target, *self.settings.values()))
        return [
            (p, t, dict(zip(names, given, strict=True)))
            for p, t, *given in (map(mpf, case) for case in zip(*arrays, strict=True))
        ]

    def describe(self, i: int) -> str:
        given = "".join(f", {name}={array[i]}" for name, array in self.settings.items())
        return f"({self.pred[i]}, {self.target[i]}{given})"


class Exact(NamedTuple):
    """What a loss should be at each case, in float64, NaN where it should be NaN; and the error allowed."""

    result: np.ndarray
    allowed: np.ndarray
    """Infinite where anything goes."""


def ends(row: Row, settings: Settings) -> Pairs:
    """NaN, predictions outside the domain, and infinite ones."""
    pairs = [(np.nan, 0.5), (0.5, np.nan), (np.inf, 0.5)]
    if row.line.lower == -np.inf:
        pairs.append((-np.inf, 0.5))
    elif settings == row.usual:
        pairs += [(row.line.lower - 1, 0.5), (row.line.lower - 1, 0)]
    pred, target = np.float32(pairs).T
    return pred, target


@functools.cache
def cases_of(name: str, full: bool) -> Cases:
    """The cases of the accuracy of a loss: made once, and used for each of its mutants."""
    row = ROW[name]
    drawn = [(settings, *row.pairs(row, settings, full)) for settings in row.sweep]
    regular = sum(len(pred) for _, pred, _ in drawn)
    infinite = [settings for settings in row.sweep if np.inf in map(abs, settings.values())]
    drawn += [(settings, *ends(row, settings)) for settings in (*row.settings, *infinite)]
    pred, target = (np.concatenate([entry[part] for entry in drawn]) for part in (1, 2))
    settings = {
        setting: np.concatenate([np.full(len(entry[1]), entry[0][setting], np.float32) for entry in drawn])
        for setting in row.usual
    }
    return Cases(pred, target, settings, regular)


def exact_end(oracle: Oracle, pred: mpf, target: mpf, **settings: mpf) -> tuple[float, float]:
    """The result and error allowed at an end: NaN, or the limit, for which what it is at 1e37 may stand."""
    if abs(pred) < np.inf or pred != pred:
        return np.nan, 0.0
    last, near, far = (oracle(sign(pred) * mpf(10) ** digits, target, **settings) for digits in (37, 300, 600))
    if abs(far) > 1.0001 * abs(near):
        return float(sign(far) * mpf("inf")), 0.0
    return float(far), float(abs(last - far))


@functools.cache
def exact_of(name: str, full: bool, what: str) -> Exact:
    """The value, slope or curvature of a loss, or its derivative in the target or a setting by name, at its cases."""
    row, cases = ROW[name], cases_of(name, full)
    parts = {
        "value": (row.value, row.sizes[0], VALUE * row.tolerance),
        "slope": (row.slope, row.sizes[1], SLOPE * row.tolerance),
        "curvature": (row.curvature, row.sizes[2], CURVATURE * row.tolerance),
        **{name: (summed(partial), largest(partial), PARTIAL) for name, partial in row.partials.items()},
    }
    oracle, size, relative = parts[what]
    least = row.least * float(FLOAT32.tiny)
    numbers = cases.numbers()
    result = np.array([float(oracle(p, t, **given)) for p, t, given in numbers[: cases.regular]])
    allowed = relative * np.abs([float(size(p, t, **given)) for p, t, given in numbers[: cases.regular]])
    allowed = np.where(np.abs(result) < least, np.maximum(allowed, least), np.nan_to_num(allowed, posinf=MOST))
    if what in row.partials:  # of which nothing is promised there
        end, beside = np.zeros(len(numbers) - cases.regular), np.full(len(numbers) - cases.regular, np.inf)
    else:
        end, beside = np.array([exact_end(oracle, p, t, **given) for p, t, given in numbers[cases.regular :]]).T
        beside = np.maximum(beside, np.maximum(least, relative * np.abs(np.where(np.isinf(end), 0, end))))
    if what == "curvature" and not row.nan_curvature:
        beside = np.where(np.isnan(end), np.inf, beside)
    return Exact(np.concatenate([result, end]), np.concatenate([allowed, beside]))


def check_accuracy(row: Row, functions: dict[str, Callable], full: bool, every: int = 1) -> None:
    """The functions, of value, slope, curvature and derivatives in settings, against the row's oracles.

    At all cases, or at every second, third, …
    """
    cases = cases_of(row.name, full)
    arrays = jax.tree.map(lambda array: array[::every], (cases.pred, cases.target, cases.settings))
    pred, target, settings = jax.device_put(arrays)
    for what, function in functions.items():
        true, allowed = (array[::every] for array in exact_of(row.name, full, what))
        got = np.asarray(jax.device_get(function(pred, target, **settings)), np.float64)
        check(got, true, allowed, lambda i, what=what: f"{what} of {row.name} at {cases.describe(every * i)}")


def check(got: np.ndarray, true: np.ndarray, allowed: np.ndarray, describe: Callable[[int], str]) -> None:
    """Assert results within the errors allowed; where the exact one overflows, infinite ones of its sign."""
    finite = np.isfinite(got) & np.isfinite(true)
    error = np.where(finite, np.abs(np.where(finite, got, 0) - np.where(finite, true, 0)), np.inf)
    overflows = (np.abs(true) > MOST) & (np.abs(got) >= 0.999 * MOST) & (np.sign(got) == np.sign(true))
    wrong = ~(error <= allowed) & ~overflows & ~(np.isnan(true) & np.isnan(got))
    if wrong.any():
        with np.errstate(invalid="ignore"):
            i = int(np.argmax(np.where(wrong, error / np.maximum(allowed, float(FLOAT32.tiny)), -1)))
        raise AssertionError(f"{describe(i)}: {got[i]}, exactly {true[i]} ± {allowed[i]:.2g}")


def compiled(loss) -> dict[str, Callable]:
    """Value, slope and curvature of a loss, as users call them."""
    value = functools.partial(loss, reduction="none")
    return {"value": value, "slope": jaxloss.slope(loss), "curvature": jaxloss.curvature(loss)}


def gradients(row: Row) -> dict[str, Callable]:
    """The gradient of a loss in each of its settings and in the target, as users take it."""

    @jax.jit
    def all_of_them(pred, settings):
        return jax.grad(lambda rest: row.loss(pred, **rest, reduction="sum"))(settings)

    def one(name: str) -> Callable:
        return lambda pred, target, **settings: all_of_them(pred, {"target": target, **settings})[name]

    return {name: one(name) for name in row.partials}


@each_loss
def test_float32_is_as_accurate_as_promised(row):
    check_accuracy(row, compiled(row.loss), full=False)


@pytest.mark.slow
@each_loss
def test_float32_is_as_accurate_as_promised_on_a_fine_grid(row):
    check_accuracy(row, compiled(row.loss), full=True)


@each_loss
def test_derivatives_in_settings_and_target_are_as_accurate(row):
    assert set(row.partials) == {"target", *row.usual}
    check_accuracy(row, gradients(row), full=False)


@pytest.mark.slow
@each_loss
def test_derivatives_in_settings_and_target_are_as_accurate_on_a_fine_grid(row):
    check_accuracy(row, gradients(row), full=True)


@pytest.mark.parametrize("power", [-20.0, -3.0, 1.2, 1.999, 5.5, 30.0, 100.0])
def test_tweedie_is_accurate_to_the_ends_of_the_range(power):
    """Predictions whose powers are representable, beside targets of any size: single powers may overflow or vanish."""
    random = np.random.default_rng(0)
    pred = np.float32(10 ** random.uniform(-38 / abs(power), min(76 / abs(power - 1), 38), 300))
    target = np.float32(10 ** random.uniform(-37, 38.4, 300))
    got = np.asarray(jaxloss.tweedie_deviance(pred, target, power=power, reduction="none"))
    given = [[mpf(float(number)) for number in case] for case in zip(pred, target, np.full(300, np.float32(power)))]
    exact = np.array([float(oracles.tweedie(*case)) for case in given])
    allowed = np.maximum(5 * VALUE * np.abs(exact), float(FLOAT32.tiny))
    check(got.astype(np.float64), exact, np.nan_to_num(allowed, posinf=MOST), lambda i: f"{pred[i]}, {target[i]}")


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@each_loss
def test_half_precision_is_as_accurate_as_its_inputs(row, dtype):
    """The input is rounded once, by the caller; nothing is rounded to half precision after that."""
    random = np.random.default_rng(0)
    pred, target = (jnp.asarray(row.line.draw(random, (4, 3)), dtype) for _ in range(2))
    wide = [array.astype(jnp.float32) for array in (pred, target)]
    for reduction in ("none", "mean"):
        got = row.loss(pred, target, reduction=reduction, **row.usual)
        assert got.dtype == jnp.float32
        assert jnp.array_equal(got, row.loss(*wide, reduction=reduction, **row.usual))
    gradient = jax.grad(row.loss)(pred, target, **row.usual)
    assert gradient.dtype == jnp.dtype(dtype)
    assert jnp.array_equal(gradient, jax.grad(row.loss)(*wide, **row.usual).astype(dtype))
