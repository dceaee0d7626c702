"""Other devices, meshes and precisions."""

from __future__ import annotations

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import each_kind_of_loss, each_loss
from support import close, count_all_reduces, exact, run_program, run_python, sample, settings_tree

import jaxloss


@each_kind_of_loss
def test_exports_for_every_platform_and_runs_here(row):
    pred, target = sample(row)
    settings = settings_tree(row)

    @jax.jit
    def program(pred, target, settings):
        value, gradient = jax.value_and_grad(row.loss)(pred, target, **settings)
        curvature = jaxloss.curvature(row.loss)(pred, target, **settings)
        return value, gradient, curvature

    exported = jax.export.export(program, platforms=("cpu", "cuda", "tpu"))(pred, target, settings)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    close(jax.jit(exported.call)(pred, target, settings), program(pred, target, settings))


@pytest.mark.slow
def test_four_devices_agree_with_one_in_a_single_all_reduce():
    assert run_program("losses_on_four_devices", JAX_NUM_CPU_DEVICES="4").startswith("agree")


@each_loss
def test_double_precision_does_not_leak_into_a_float32_program(row):
    random = np.random.default_rng(0)
    target, weights = row.line.draw(random, (3, 2)), random.uniform(size=(3, 2))
    with jax.enable_x64(True):
        pred = jnp.asarray(row.line.draw(random, (3, 2)), jnp.float32)
        settings = {name: np.float64(value) for name, value in row.usual.items()}
        where = weights > 0.1

        def value(pred):
            return row.loss(pred, target, weights=weights, where=where, **settings)

        def everything(pred):
            derivatives = jaxloss.slope, jaxloss.curvature
            part = jaxloss.loss_sum(row.loss, pred, target, weights=weights, reduction="weighted_mean", **settings)
            return jax.value_and_grad(value)(pred), part, [d(row.loss)(pred, target, **settings) for d in derivatives]

        # a scalar constant may be written as float64: it is rounded where it is used, and widens nothing
        assert not re.search(r"f64\[[^\]]", str(jax.make_jaxpr(everything)(pred)))
        assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(everything, pred))} == {jnp.dtype("float32")}


@each_loss
def test_half_precision_stores_no_array_in_float32(row):
    """On a CPU XLA stores what it does not fuse, and what half precision becomes in float32 is twice as large."""
    pred = target = jax.ShapeDtypeStruct((2**17,), "float16")
    with jax.default_device(jax.devices("cpu")[0]):
        compiled = jax.jit(jax.value_and_grad(row.loss)).lower(pred, target, **settings_tree(row)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < pred.size


def test_half_precision_adds_up_to_the_digits_of_float32():
    losses = np.random.default_rng(0).uniform(size=2**15 + 5).astype(np.float16)
    value, tangent = jax.jvp(jaxloss.mae, (losses, np.zeros_like(losses)), (losses, np.zeros_like(losses)))
    close([value, tangent], [losses.astype(np.float64).mean()] * 2)


@pytest.mark.usefixtures("eager")
@each_loss
def test_a_float64_prediction_computes_in_float64(row):
    with jax.enable_x64(True):
        pred, target = sample(row, (20,), dtype=np.float64)
        losses = row.loss(pred, target.astype(jnp.float32), reduction="none", **row.usual)
        assert losses.dtype == jnp.float64
        target = target.astype(jnp.float32).astype(jnp.float64)
        close(losses, exact(row.value, row, pred, target, **row.usual), rtol=1e-12, atol=1e-15)
        assert jax.grad(row.loss)(pred, target, **row.usual).dtype == jnp.float64


def test_float64_numpy_is_float32_without_x64():
    assert jaxloss.mse(np.ones(3), np.zeros(3)).dtype == jnp.float32
    assert jaxloss.rmse(np.ones(3), np.zeros(3)).dtype == jnp.float32


def test_the_suite_can_tell_a_backend_is_touched():
    with pytest.raises(AssertionError, match="doesnotexist"):
        run_python("import jax; jax.devices()", JAX_PLATFORMS="doesnotexist")


def test_the_pattern_counts_all_reduces_with_tuple_results():
    text = (
        "%a = (f32[], f32[3]{0}) all-reduce(%x, %y), to_apply=%add\n%b = f32[] all-reduce(%z)\n%c = f32[] add(%z, %b)"
    )
    assert count_all_reduces(text) == 2
