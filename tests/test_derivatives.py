"""Every transformation on every loss, and every closed form against automatic differentiation in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import each_kind_of_loss, each_loss, each_residual_loss, each_short_loss
from jax.test_util import check_grads
from mpmath import mpf
from support import close, exact, hvp, sample, settings_tree

import jaxloss


@each_kind_of_loss
def test_all_modes_give_the_exact_derivatives(row):
    pred, target = sample(row)
    direction = jnp.cos(jnp.arange(pred.size, dtype=jnp.float32)).reshape(pred.shape)

    def value(pred):
        return row.loss(pred, target, reduction="sum", **row.usual)

    @jax.jit
    def everything(pred, direction):
        gradient = jax.grad(value)
        return {
            "value": value(pred),
            "forward": jax.jvp(value, (pred,), (direction,))[1],
            "reverse": gradient(pred),
            "forward over reverse": hvp(value, pred, direction),
            "reverse over reverse": jax.grad(lambda p: jnp.vdot(gradient(p), direction))(pred),
            "reverse over forward": jax.grad(lambda p: jax.jvp(value, (p,), (direction,))[1])(pred),
            "forward over forward": jax.jvp(
                lambda p: jax.jvp(value, (p,), (direction,))[1], (pred,), (jnp.ones_like(pred),)
            )[1],
        }

    losses, slopes, curvatures = (
        exact(oracle, row, pred, target, **row.usual) for oracle in (row.value, row.slope, row.curvature)
    )
    product = curvatures * np.asarray(direction)
    want = {
        "value": losses.sum(),
        "forward": (slopes * np.asarray(direction)).sum(),
        "reverse": slopes,
        "forward over reverse": product,
        "reverse over reverse": product,
        "reverse over forward": product,
        "forward over forward": product.sum(),
    }
    close(everything(pred, direction), want, rtol=2e-5, atol=2e-6)
    close(jaxloss.slope(row.loss)(pred, target, **row.usual), slopes, rtol=2e-5)
    close(jaxloss.curvature(row.loss)(pred, target, **row.usual), curvatures, rtol=2e-5)


@each_kind_of_loss
def test_vmap_and_scan_are_loops(row):
    pred, target = sample(row, (4, 3))
    weights = jnp.linspace(0.5, 2, 12).reshape(4, 3)
    where = weights < 1.7
    settings = jax.tree.map(lambda value: value * jnp.linspace(0.7, 1, 4), settings_tree(row, (4,)))

    @jax.jit
    def value_and_gradient(pred, target, weights, where, settings):
        return jax.value_and_grad(row.loss)(pred, target, weights=weights, where=where, **settings)

    def body(carry, entry):
        value, gradient = value_and_gradient(*entry)
        return carry + value, (value, gradient)

    entries = (pred, target, weights, where, settings)
    loop = [value_and_gradient(*jax.tree.map(lambda array, i=i: array[i], entries)) for i in range(4)]
    loop = jax.tree.map(lambda *parts: jnp.stack(parts), *loop)
    close(jax.vmap(value_and_gradient)(*entries), loop)
    carry, scanned = jax.lax.scan(body, jnp.float32(0), entries)
    close(scanned, loop)
    close(carry, loop[0].sum())


@each_kind_of_loss
def test_closed_forms_agree_with_automatic_differentiation(row):
    """Value, all first and all second derivatives, mixed ones too, in pred, target and every setting."""
    raw = row.loss.__wrapped__
    with jax.enable_x64(True):
        pred, target = sample(row, (12,), dtype=np.float64)
        packed = jnp.stack([pred, target, *settings_tree(row, (12,), np.float64).values()], 1)

        def all_derivatives(function):
            def one(numbers):
                return function(numbers[0], numbers[1], **dict(zip(row.usual, numbers[2:], strict=True)))

            return jax.jit(jax.vmap(lambda n: (one(n), jax.jacfwd(one)(n), jax.hessian(one)(n))))(packed)

        close(all_derivatives(row.loss), all_derivatives(raw), rtol=1e-9, atol=1e-11)
        slopes = jax.vmap(jax.grad(raw))(pred, target, **settings_tree(row, (12,), np.float64))
        close(jaxloss.slope(row.loss)(pred, target, **row.usual), slopes, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("eager")
@each_short_loss
def test_derivatives_agree_with_finite_differences(row):
    with jax.enable_x64(True):
        pred, target = sample(row, (4,), dtype=np.float64)
        settings = settings_tree(row, (4,), np.float64)

        def value(pred, target, settings):
            return row.loss(pred, target, reduction="sum", **settings)

        check_grads(value, (pred, target, settings), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("eager")
@each_short_loss
def test_corners_follow_the_convention(row):
    """At a corner: the subgradient of least magnitude, the curvature on the side of the smaller |residual|."""
    target = 0.0 if row.line.lower < 0 else 1.0
    settings = {name: float(np.float32(value)) for name, value in row.settings[-1].items()}
    points = np.resize(np.float32([target, *row.corners(target, **settings)]), 8)  # one shape for all rows
    targets = np.full_like(points, target)

    def value(pred):
        return row.loss(pred, targets, reduction="sum", **settings)

    slopes, curvatures = (exact(o, row, points, targets, **settings) for o in (row.slope, row.curvature))
    close(jax.grad(value)(points), slopes, atol=1e-7)
    close(jax.jacfwd(value)(points), slopes, atol=1e-7)
    close(hvp(value, points, np.ones_like(points)), curvatures)


@each_residual_loss
def test_irls_weight_is_slope_over_residual(row):
    residual = np.float32([-1e30, -3.0, -0.2, 0.01, 0.4, 2.0, 1e30, 0.0])
    for settings in row.settings:
        want = [float(row.slope(mpf(float(r)), mpf(0), **settings) / mpf(float(r))) for r in residual[:-1]]
        tiny = mpf(10) ** -60
        kinked = row.slope(tiny, mpf(0), **settings) - row.slope(-tiny, mpf(0), **settings) > 1e-20
        want.append(np.inf if kinked else float(row.curvature(mpf(0), mpf(0), **settings)))
        got = jaxloss.irls_weight(row.loss)(residual, np.zeros_like(residual), **settings)
        close(got, np.array(want), rtol=4e-6 * row.tolerance, atol=1e-37)


@pytest.mark.usefixtures("eager")
@each_loss
def test_infinite_residuals(row):
    target = np.float32([1.0, 1.0])
    pred = np.float32([np.inf, -np.inf if row.line.lower == -np.inf else np.inf])
    values = np.asarray(row.loss(pred, target, reduction="none", **row.usual))
    assert not np.isnan(values).any()
    assert np.isinf(values).all() == row.unbounded
    assert not np.isnan(jaxloss.slope(row.loss)(pred, target, **row.usual)).any()
    assert not np.isnan(jax.grad(row.loss)(pred, target, **row.usual)).any()


@pytest.mark.usefixtures("eager")
@each_short_loss
def test_gradients_come_back_in_the_dtype_of_each_input(row):
    pred, target = (array.astype(jnp.bfloat16) for array in sample(row))
    weights = jnp.ones(pred.shape, jnp.float16)
    settings = settings_tree(row, (), jnp.bfloat16)

    def value(pred, target, weights, settings):
        return row.loss(pred, target, weights=weights, **settings)

    result, gradients = jax.value_and_grad(value, (0, 1, 2, 3))(pred, target, weights, settings)
    assert result.dtype == jnp.float32
    dtypes = jax.tree.map(lambda array: array.dtype, gradients)
    assert dtypes == jax.tree.map(lambda array: array.dtype, (pred, target, weights, settings))
