"""Shapes, settings, weights, masks and dtypes: what every loss accepts, and what it says to the rest."""

from __future__ import annotations

import functools
import inspect

import catalogue
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ROWS, each_loss
from support import close, sample

import jaxloss
from jaxloss.contract import NONNEGATIVE, OPEN_UNIT, POSITIVE, check_loss

COLUMN = "add `[:, None]` to target or `.squeeze(-1)` to pred"
MISMATCHES = [
    ((32, 1), (32,), COLUMN),
    ((32,), (32, 1), "add `[:, None]` to pred or `.squeeze(-1)` to target"),
    ((4, 5, 1), (4, 5), "add `[..., None]` to target or `.squeeze(-1)` to pred"),
    ((3, 1), (1, 3), "transpose one of them"),
    ((), (3,), "`jnp.full_like(target, pred)`"),
    ((3,), (), "`jnp.full_like(pred, target)`"),
    ((2, 6), (3, 4), "`target.reshape(pred.shape)`"),
    ((3,), (4,), "select or reshape"),
    ((1,), (4,), "select or reshape"),
]

PRED, TARGET = jnp.ones((4, 3)), jnp.zeros((4, 3))


@pytest.fixture
def without_chex():
    chex.disable_asserts()
    yield
    chex.enable_asserts()


def one_line(caught) -> str:
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_every_exported_loss_has_a_row():
    exported = {
        name for name, loss in catalogue.lifted_losses(jaxloss).items() if loss.__module__.startswith("jaxloss.losses.")
    }
    assert {row.name for row in ROWS} == exported
    assert len(ROWS) == len(exported)
    for row in ROWS:
        assert getattr(jaxloss, row.name) is row.loss


def test_every_loss_of_the_catalogue_is_exported():
    families = [module for _, module in inspect.getmembers(jaxloss.losses, inspect.ismodule)]
    assert families
    for family in families:
        if family is jaxloss.losses.special:  # functions for losses, and none itself
            assert not catalogue.lifted_losses(family)
            continue
        assert set(catalogue.lifted_losses(family)) == set(family.__all__)
        assert set(family.__all__) <= set(vars(jaxloss))


@pytest.mark.parametrize(("left", "right", "repair"), MISMATCHES)
@pytest.mark.parametrize("disabled", [False, True])
def test_shapes_that_differ_are_refused_with_the_repair(left, right, repair, disabled, request):
    if disabled:
        request.getfixturevalue("without_chex")
    pred, target = jnp.ones(left), jnp.ones(right)
    stacked = jnp.ones((2, *left)), jnp.ones((2, *right))
    for call, given in (
        (jaxloss.mse, (pred, target)),
        (jax.jit(jaxloss.mse), (pred, target)),
        (jax.vmap(jaxloss.mse), stacked),
        (jax.jit(jax.vmap(jax.grad(jaxloss.mse))), stacked),
        (jaxloss.slope(jaxloss.mse), (pred, target)),
        (functools.partial(jaxloss.loss_sum, jaxloss.mse), (pred, target)),
        (jaxloss.rmse, (pred, target)),
    ):
        with pytest.raises(jaxloss.ShapeError) as caught:
            call(*given)
        message = one_line(caught)
        assert repair in message
        assert str(left) in message
        assert str(right) in message


@pytest.mark.parametrize(("left", "right", "repair"), MISMATCHES[:1])
@each_loss
def test_every_loss_refuses_shapes_that_differ(row, left, right, repair):
    for call in (row.loss, jaxloss.slope(row.loss), jaxloss.curvature(row.loss)):
        with pytest.raises(jaxloss.ShapeError, match="squeeze") as caught:
            call(jnp.ones(left), jnp.ones(right), **row.usual)
        assert repair in one_line(caught)


def test_a_shape_error_is_an_assertion_error_and_a_value_error():
    assert issubclass(jaxloss.ShapeError, AssertionError)
    assert issubclass(jaxloss.ShapeError, ValueError)


huber, mse = jaxloss.huber, jaxloss.mse
BAD_CALLS = {
    "integer pred": (TypeError, "int32", lambda: mse(PRED.astype(int), TARGET)),
    "bool pred": (TypeError, "bool", lambda: mse(PRED > 0, TARGET)),
    "python integer pred": (TypeError, "int32", lambda: mse(1, 2)),
    "complex pred": (TypeError, "complex64", lambda: mse(PRED + 0j, TARGET)),
    "complex target": (TypeError, "complex64", lambda: mse(PRED, TARGET + 0j)),
    "negative delta": (ValueError, "delta must be positive", lambda: huber(PRED, TARGET, delta=-1)),
    "zero delta": (ValueError, "delta must be positive", lambda: huber(PRED, TARGET, delta=0.0)),
    "nan delta": (ValueError, "delta must be positive", lambda: huber(PRED, TARGET, delta=np.nan)),
    "infinite delta": (ValueError, "delta must be positive", lambda: huber(PRED, TARGET, delta=np.inf)),
    "one bad delta": (ValueError, "delta", lambda: huber(PRED, TARGET, delta=np.array([1.0, -2.0, 1.0]))),
    "delta of slope": (ValueError, "delta", lambda: jaxloss.slope(huber)(PRED, TARGET, delta=-1)),
    "delta in loss_sum": (ValueError, "delta", lambda: jaxloss.loss_sum(huber, PRED, TARGET, delta=-1)),
    "delta in Partial": (ValueError, "delta", lambda: check_loss(jax.tree_util.Partial(huber, delta=-1))),
    "delta in partial": (ValueError, "delta", lambda: check_loss(functools.partial(huber, delta=-1))),
    "delta None": (TypeError, "delta", lambda: huber(PRED, TARGET, delta=None)),
    "delta text": (TypeError, "delta", lambda: huber(PRED, TARGET, delta="big")),
    "delta too long": (jaxloss.ShapeError, "delta", lambda: huber(PRED, TARGET, delta=np.ones(4))),
    "unknown setting": (TypeError, "its settings are delta", lambda: huber(PRED, TARGET, beta=1.0)),
    "unknown setting, none known": (TypeError, "no settings", lambda: mse(PRED, TARGET, delta=1.0)),
    "unknown setting in Partial": (TypeError, "gamma", lambda: check_loss(jax.tree_util.Partial(huber, gamma=1.0))),
    "no loss": (TypeError, "a loss is a function", lambda: check_loss("mse")),
    "unknown reduction": (ValueError, "'average'", lambda: mse(PRED, TARGET, reduction="average")),
    "reduction None": (ValueError, "one of 'mean'", lambda: mse(PRED, TARGET, reduction=None)),
    "loss_sum of a sum": (ValueError, "'sum'", lambda: jaxloss.loss_sum(mse, PRED, TARGET, reduction="sum")),
    "axis with none": (ValueError, "reduction='none'", lambda: mse(PRED, TARGET, axis=0, reduction="none")),
    "axis out of range": (ValueError, "axis=2", lambda: mse(PRED, TARGET, axis=2)),
    "axis below range": (ValueError, "axis=-3", lambda: mse(PRED, TARGET, axis=-3)),
    "axis twice": (ValueError, "twice", lambda: mse(PRED, TARGET, axis=(0, -2))),
    "axis a float": (ValueError, "axis=0.5", lambda: mse(PRED, TARGET, axis=0.5)),
    "weights of lower rank": (jaxloss.ShapeError, "`weights[:, None]`", lambda: mse(PRED, TARGET, weights=PRED[:, 0])),
    "weights along the last": (jaxloss.ShapeError, "`weights[None, :]`", lambda: mse(PRED, TARGET, weights=PRED[0])),
    "weights of higher rank": (jaxloss.ShapeError, "weights", lambda: mse(PRED, TARGET, weights=PRED[None])),
    "weights too long": (jaxloss.ShapeError, "weights", lambda: mse(PRED, TARGET, weights=jnp.ones((5, 1)))),
    "where of lower rank": (jaxloss.ShapeError, "`where[:, None]`", lambda: mse(PRED, TARGET, where=PRED[:, 0] > 0)),
    "where of ones": (TypeError, "mask != 0", lambda: mse(PRED, TARGET, where=jnp.ones((4, 3)))),
    "where an integer": (TypeError, "where", lambda: jaxloss.rmse(PRED, TARGET, where=1)),
    "irls of no residual": (TypeError, "pred − target", lambda: jaxloss.irls_weight(jaxloss.pointwise(product))),
    "slope of a stranger": (TypeError, "pointwise", lambda: jaxloss.slope(product)),
    "traits of a stranger": (TypeError, "pointwise", lambda: jaxloss.traits(product)),
    "three arguments": (TypeError, "pred, target", lambda: jaxloss.pointwise(lambda pred, target, delta: pred)),
    "needed setting": (TypeError, "'power'", lambda: jaxloss.pointwise(needy)(PRED, TARGET)),
}


def product(pred, target):
    return pred * target


def needy(pred, target, *, power):
    return (pred - target) ** power


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_raises_one_line(case):
    kind, words, call = BAD_CALLS[case]
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert words in one_line(caught)


@pytest.mark.parametrize(
    ("domain", "good", "bad"),
    [
        (POSITIVE, [1e-30, 1, 1e30], [0, -1, np.inf, np.nan]),
        (NONNEGATIVE, [0, 1, 1e30], [-1, -1e-30, np.inf, np.nan]),
        (OPEN_UNIT, [1e-9, 0.5, 0.999], [0, 1, -0.5, 1.5, np.nan]),
    ],
)
def test_domains(domain, good, bad):
    assert domain.holds(np.array(good)).all()
    assert domain.holds(np.array(domain.inside))
    assert not domain.holds(np.array(bad, float)).any()


@each_loss
def test_every_setting_has_a_domain_or_takes_any_number(row):
    for name in row.usual:
        domain = row.loss.lifted.domain.get(name)
        if domain is None:
            continue
        outside = next(value for value in (-1.0, 0.0, 1e9, np.nan) if not domain.holds(np.array(value)))
        for bad in (outside, np.float64(outside), np.array([outside])):
            with pytest.raises(ValueError, match=f"{row.name}: {name} must be") as caught:
                row.loss(jnp.ones(1), jnp.ones(1), **{**row.usual, name: bad})
            one_line(caught)
            with pytest.raises(ValueError, match=f"{row.name}: {name} must be"):
                check_loss(jax.tree_util.Partial(row.loss, **{**row.usual, name: bad}))
        check_loss(jax.tree_util.Partial(row.loss, **{**row.usual, name: jnp.asarray(outside)}))


@pytest.mark.parametrize("row", [row for row in ROWS if row.name == "huber"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 2), (0,), (3, 0)])
def test_any_rank(row, shape):
    pred, target = sample(row, shape)
    losses = row.loss(pred, target, reduction="none", **row.usual)
    assert losses.shape == shape
    assert jaxloss.slope(row.loss)(pred, target, **row.usual).shape == shape
    mean = row.loss(pred, target, **row.usual)
    assert mean.shape == ()
    close(mean, jnp.float32(losses.mean() if losses.size else 0))


def test_arrays_of_numpy_and_python_numbers_are_taken():
    close(mse(np.ones(3, np.float32), np.arange(3)), jnp.float32(2 / 3))
    close(mse(1.5, 1), jnp.float32(0.25))


def test_targets_are_cast_on_the_host():
    far = 2**31 + 2**12
    target = np.array([far, -far])
    assert target.dtype == np.int64
    close(mse(jnp.zeros(2), target, reduction="none"), jnp.full(2, np.float32(far) ** 2))
    precise = np.array([1e9 + 64.0])  # exact in float32
    assert float(mse(jnp.array([1e9]), precise)) == 4096.0
    for dtype in (np.int8, np.int32, np.uint8, bool, np.float16, np.float64):
        close(mse(jnp.zeros(2), np.array([0, 1], dtype)), jnp.float32(0.5))
        close(
            mse(jnp.zeros(2), jnp.array(np.array([0, 1]), jnp.dtype(dtype if dtype != np.float64 else "float32"))), 0.5
        )
