"""float32 against mpmath: residuals 1e-30 … 1e30, settings 1e-3 … 1e3, at the corners and beside them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from catalogue import Row, each_loss
from mpmath import mpf

import jaxloss

FLOAT32 = np.finfo(np.float32)
VALUE, SLOPE, CURVATURE = 2e-6, 2e-6, 2e-5


def check(got: np.ndarray, exact: list, size: list, relative: float, least: float, inputs: list, what: str) -> None:
    """Assert float32 results against exact ones, relative to `size`, wherever those are at least `least`."""
    worst, where = 0.0, None
    for number, true, unit, given in zip(got.astype(np.float64).tolist(), exact, size, inputs, strict=True):
        assert number == number, f"{what} is NaN at {given}, exactly {float(true)}"
        error = abs(mpf(number) - true) if abs(number) < np.inf else mpf("inf")
        if abs(true) > mpf(float(FLOAT32.max)):
            large = abs(number) >= 0.999 * float(FLOAT32.max) or error <= relative * abs(unit)
            assert large, f"{what} overflows exactly at {given}, got {number}"
            continue
        if abs(true) < least:
            assert error <= max(least, relative * abs(unit)), f"{what} at {given}: {number}, exactly {float(true)}"
            continue
        if error / abs(unit) > worst:
            worst, where = float(error / abs(unit)), (given, number, float(true))
    assert worst <= relative, f"{what}: relative error {worst:.2g} at {where}"


def check_accuracy(row: Row, loss, full: bool) -> None:
    """Value, slope and curvature of the loss against the row's oracles, over all its settings in one call."""
    drawn = [(settings, *row.pairs(row, settings, full)) for settings in row.sweep]
    pred, target = (np.concatenate([entry[part] for entry in drawn]) for part in (1, 2))
    settings = {
        name: np.concatenate([np.full(len(entry[1]), entry[0][name], np.float32) for entry in drawn])
        for name in row.sweep[0]
    }
    inputs = [
        (mpf(float(p)), mpf(float(t)), {name: mpf(float(array[i])) for name, array in settings.items()})
        for i, (p, t) in enumerate(zip(pred, target, strict=True))
    ]
    shown = [(float(p), float(t), {name: float(value) for name, value in given.items()}) for p, t, given in inputs]
    least = row.least * float(FLOAT32.tiny)
    device = {name: jnp.asarray(array) for name, array in settings.items()}

    def value(pred, target, **given):
        return loss(pred, target, reduction="none", **given)

    for what, function, oracle, size, relative in (
        ("value", value, row.value, row.sizes[0], VALUE),
        ("slope", jaxloss.slope(loss), row.slope, row.sizes[1], SLOPE),
        ("curvature", jaxloss.curvature(loss), row.curvature, row.sizes[2], CURVATURE),
    ):
        exact = [mpf(oracle(p, t, **given)) for p, t, given in inputs]
        unit = [mpf(size(p, t, **given)) for p, t, given in inputs]
        got = np.asarray(jax.device_get(function(jnp.asarray(pred), jnp.asarray(target), **device)))
        check(got, exact, unit, relative * row.tolerance, least, shown, f"{what} of {row.name}")


@each_loss
def test_float32_is_as_accurate_as_promised(row):
    check_accuracy(row, row.loss, full=False)


@pytest.mark.slow
@each_loss
def test_float32_is_as_accurate_as_promised_on_a_fine_grid(row):
    check_accuracy(row, row.loss, full=True)


@pytest.mark.parametrize("power", [-20.0, -3.0, 1.2, 1.999, 5.5, 30.0, 100.0])
def test_tweedie_is_accurate_to_the_ends_of_the_range(power):
    """Predictions whose powers are representable, beside targets of any size: single powers may overflow or vanish."""
    random = np.random.default_rng(0)
    pred = np.float32(10 ** random.uniform(-38 / abs(power), min(76 / abs(power - 1), 38), 300))
    target = np.float32(10 ** random.uniform(-37, 38.4, 300))
    got = np.asarray(jaxloss.tweedie_deviance(pred, target, power=power, reduction="none"))
    inputs = [(mpf(float(p)), mpf(float(t)), mpf(float(np.float32(power)))) for p, t in zip(pred, target, strict=True)]
    exact = [oracles.tweedie(*given) for given in inputs]
    check(got, exact, exact, 5 * VALUE, float(FLOAT32.tiny), [tuple(map(float, given)) for given in inputs], "tweedie")


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
