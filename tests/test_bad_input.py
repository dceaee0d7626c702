"""Bad input: every loss, every setting, every way of calling it, and the one line that comes back.

One table per kind: how a setting can be bad and the ways it reaches a loss; shapes that differ; other arguments.
"""

from __future__ import annotations

import functools
import inspect
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import ROWS, each_loss
from jax.tree_util import Partial
from support import refused

import jaxloss
from jaxloss import composite, curvature, huber, irls_weight, loss_sum, mae, mse, slope
from jaxloss.contract import ABOVE_MINUS_ONE, NONNEGATIVE, OPEN_UNIT, POSITIVE, REAL, check_loss
from jaxloss.train import fit, make_step, supervised

PRED, TARGET = jnp.full((4, 3), 0.5), jnp.full((4, 3), 0.25)


# Settings


def untouched(params, x):
    raise AssertionError("a bad setting must be found before anything is traced")


def fitted(loss, settings):
    parts = {"loss": Partial(loss, **settings), "optimizer": optax.sgd(0.1), "epochs": 1}
    return fit(untouched, jnp.ones(()), (PRED, TARGET), **parts)


WAYS = {
    "called": lambda loss, settings: loss(PRED, TARGET, **settings),
    "Partial": lambda loss, settings: Partial(loss, **settings)(PRED, TARGET),
    "functools.partial": lambda loss, settings: functools.partial(loss, **settings)(PRED, TARGET),
    "slope": lambda loss, settings: slope(loss)(PRED, TARGET, **settings),
    "slope of Partial": lambda loss, settings: slope(Partial(loss, **settings))(PRED, TARGET),
    "curvature": lambda loss, settings: curvature(loss)(PRED, TARGET, **settings),
    "irls_weight": lambda loss, settings: irls_weight(loss)(PRED, TARGET, **settings),
    "loss_sum": lambda loss, settings: loss_sum(loss, PRED, TARGET, **settings),
    "loss_sum of Partial": lambda loss, settings: loss_sum(Partial(loss, **settings), PRED, TARGET),
    "composite": lambda loss, settings: composite({"head": Partial(loss, **settings)}),
    "make_step": lambda loss, settings: make_step(supervised(untouched, Partial(loss, **settings)), optax.sgd(0.1)),
    "fit": fitted,
    "check_loss": lambda loss, settings: check_loss(Partial(loss, **settings)),
}
TRACED_WAYS = {
    "jit": lambda loss, settings: jax.jit(functools.partial(loss, **settings))(PRED, TARGET),
    "grad": lambda loss, settings: jax.grad(functools.partial(loss, **settings))(PRED, TARGET),
    "vmap": lambda loss, settings: jax.vmap(functools.partial(loss, **settings))(PRED, TARGET),
}


def ways(loss, ways=WAYS):
    return [way for name, way in ways.items() if name != "irls_weight" or jaxloss.traits(loss).residual]


NUMBERS = (-np.inf, -1e9, -1.0, -1e-30, 0.0, 0.5, 1.0, 1.5, 2.5, 1e9, np.inf, np.nan)
NOT_NUMBERS = {
    "None": None,
    "text": "wide",
    "a number as text": "1.0",
    "complex": 1j,
    "NumPy complex": np.complex64(1j),
    "complex array": np.full((4, 3), 1j),
    "complex device array": jnp.full(3, 1j),
    "text array": np.array([["a", "b", "c"]] * 4),
    "array with a hole": np.array([1.0, None, 1.0]),
    "ragged list": [[1.0], [1.0, 2.0]],
    "dict": {"delta": 1.0},
}


def outside(domain):
    return [number for number in NUMBERS if not domain.holds(np.array(number))]


@each_loss
def test_every_bad_value_of_every_setting(row):
    for name in row.usual:
        domain = row.loss.lifted.domain[name]  # every setting of the catalogue declares one
        assert outside(domain)
        for number in outside(domain):
            words = (row.name, f"{name} must be {domain.words}, got {number}")
            holed = np.full((4, 3), domain.inside)
            holed[2, 1] = number
            for way in (*ways(row.loss), *ways(row.loss, TRACED_WAYS)):
                refused(ValueError, words, way, row.loss, {**row.usual, name: np.float64(number)})
            for value in (float(number), np.array(number), np.float32(number), holed):
                place = "at index [2, 1]" if value is holed else ""
                refused(ValueError, (row.name, name, place), WAYS["called"], row.loss, {**row.usual, name: value})
                refused(ValueError, (row.name, name, place), WAYS["fit"], row.loss, {**row.usual, name: value})
            check_loss(Partial(row.loss, **{**row.usual, name: jnp.float32(number)}))  # reading it would block
        for bad in NOT_NUMBERS.values():
            words = (f"{row.name}: {name} must be a real number or an array of them, got {repr(bad)[:4]}",)
            for way in (*ways(row.loss), *ways(row.loss, TRACED_WAYS)):
                refused(TypeError, words, way, row.loss, {**row.usual, name: bad})


@each_loss
def test_unknown_missing_and_misshapen_settings(row):
    defaults = row.loss.lifted.defaults
    has = f"its settings are {', '.join(defaults)}" if defaults else "it has no settings"
    for way in (*ways(row.loss), *ways(row.loss, TRACED_WAYS)):
        refused(TypeError, (f"{row.name}: unknown", has), way, row.loss, {**row.usual, "gamma": 1.0})
        for name in (name for name, default in defaults.items() if default is inspect.Parameter.empty):
            rest = {key: value for key, value in row.usual.items() if key != name}
            refused(TypeError, (f"{row.name}: needs the setting '{name}'",), way, row.loss, rest)
    for name, value in row.usual.items():
        for shape, repair in (((4,), f"`{name}[:, None]`"), ((2,), "a scalar"), ((4, 3, 1), "a scalar"), ((0,), "")):
            words = (row.name, f"{name} has shape {shape}", repair)
            for kind, way in itertools.product((np.full, jnp.full), ("called", "slope", "loss_sum")):
                given = {**row.usual, name: kind(shape, value)}
                refused(jaxloss.ShapeError, words, WAYS[way], row.loss, given)


@pytest.mark.parametrize(
    ("domain", "good", "bad"),
    [
        (REAL, [-1e30, 0, 1e30], [-np.inf, np.inf, np.nan]),
        (POSITIVE, [1e-30, 1, 1e30], [0, -1, np.inf, np.nan]),
        (NONNEGATIVE, [0, 1, 1e30], [-1, -1e-30, np.inf, np.nan]),
        (ABOVE_MINUS_ONE, [-0.999, 0, 1e30], [-1, -2, np.inf, np.nan]),
        (OPEN_UNIT, [1e-9, 0.5, 0.999], [0, 1, -0.5, 1.5, np.nan]),
    ],
)
def test_domains(domain, good, bad):
    assert domain.holds(np.array(good)).all()
    assert domain.holds(np.array(domain.inside))
    assert not domain.holds(np.array(bad, float)).any()


# Shapes of prediction and target


MISMATCHES = [
    ((32, 1), (32,), "add `[:, None]` to target or `.squeeze(-1)` to pred"),
    ((32,), (32, 1), "add `[:, None]` to pred or `.squeeze(-1)` to target"),
    ((4, 5, 1), (4, 5), "add `[..., None]` to target or `.squeeze(-1)` to pred"),
    ((3, 1), (1, 3), "transpose one of them"),
    ((), (3,), "`jnp.full_like(target, pred)`"),
    ((3,), (), "`jnp.full_like(pred, target)`"),
    ((2, 6), (3, 4), "`target.reshape(pred.shape)`"),
    ((3,), (4,), "select or reshape"),
    ((1,), (4,), "select or reshape"),
]


@pytest.fixture
def without_chex():
    chex.disable_asserts()
    yield
    chex.enable_asserts()


@pytest.mark.parametrize("asserts", ["enabled", "disabled"])
@each_loss
def test_shapes_that_differ_are_refused_with_the_repair(row, asserts, request):
    if asserts == "disabled":
        request.getfixturevalue("without_chex")
    loss = Partial(row.loss, **row.usual)
    lifted = [slope(loss), curvature(loss), *([irls_weight(loss)] if jaxloss.traits(loss).residual else [])]
    calls = [loss, *lifted, functools.partial(loss_sum, loss)]
    mapped = jax.vmap(loss), jax.vmap(jax.grad(loss)), jax.jit(jax.vmap(lifted[0]))
    for left, right, repair in MISMATCHES:
        words = (row.name, repair, str(left), str(right))
        pred, target = jnp.ones(left), jnp.ones(right)
        for call in calls:
            refused(jaxloss.ShapeError, words, call, pred, target)
        for call in mapped:
            refused(jaxloss.ShapeError, words, call, jnp.stack([pred, pred]), jnp.stack([target, target]))
        heads = composite({"head": loss})
        refused(jaxloss.ShapeError, ("head ['head']", *words), heads, {"head": pred}, {"head": target})


def test_shapes_that_differ_are_refused_in_training_and_metrics():
    left, right, repair = MISMATCHES[0]
    x, target = jnp.ones(left), jnp.ones(right)
    parts = {"loss": mse, "optimizer": optax.sgd(0.1), "epochs": 1}
    refused(jaxloss.ShapeError, (repair,), fit, jnp.multiply, jnp.ones((1, 1)), (x, target), **parts)
    refused(jaxloss.ShapeError, (repair,), jaxloss.rmse, x, target)


def test_a_shape_error_is_an_assertion_error_and_a_value_error():
    assert issubclass(jaxloss.ShapeError, AssertionError)
    assert issubclass(jaxloss.ShapeError, ValueError)


# Other arguments


FLOATS, REALS = "a prediction is a real floating-point array: pass pred.astype(jnp.float32)", "targets are real"
MASK, NUMBER = "a mask is boolean: pass where=(mask != 0)", "must be a number or an array of numbers"
ARGUMENTS = {
    "integer pred": (TypeError, {"pred": PRED.astype(int)}, "int32", FLOATS),
    "NumPy integer pred": (TypeError, {"pred": np.ones((4, 3), np.int64)}, "int", FLOATS),
    "Python integer pred": (TypeError, {"pred": 1, "target": 2}, "int32", FLOATS),
    "bool pred": (TypeError, {"pred": PRED > 0}, "bool", FLOATS),
    "complex pred": (TypeError, {"pred": PRED + 0j}, "complex64", FLOATS),
    "pred None": (TypeError, {"pred": None}, "pred", "None"),
    "pred text": (TypeError, {"pred": "high"}, "pred", NUMBER, "'high'"),
    "pred of objects": (TypeError, {"pred": np.full((4, 3), None)}, "pred", NUMBER),
    "pred a key": (TypeError, {"pred": jax.random.key(0)}, "pred", NUMBER),
    "complex target": (TypeError, {"target": TARGET + 0j}, "complex64", REALS),
    "target None": (TypeError, {"target": None}, "target", NUMBER, "None"),
    "target text": (TypeError, {"target": "high"}, "target", NUMBER),
    "target a list": (TypeError, {"target": [[0.25] * 3] * 4}, "target", "pass jnp.asarray(target)"),
    "target of text": (TypeError, {"target": np.full((4, 3), "a")}, "target", NUMBER),
}
"""What pred and target cannot be, in losses and their derivatives."""

REDUCING = {
    "where of ones": (TypeError, {"where": jnp.ones((4, 3))}, "float32", MASK),
    "where of integers": (TypeError, {"where": np.ones((4, 3), int)}, "int", MASK),
    "where an integer": (TypeError, {"where": 1}, "int32", MASK),
    "where text": (TypeError, {"where": "all"}, "where must be a boolean mask", "'all'"),
    "where a list": (TypeError, {"where": [True] * 3}, "where must be a boolean mask", "pass jnp.asarray(where)"),
    "where of lower rank": (jaxloss.ShapeError, {"where": PRED[:, 0] > 0}, "(4,)", "`where[:, None]`"),
    "where along the last": (jaxloss.ShapeError, {"where": PRED[0] > 0}, "(3,)", "`where[None, :]`"),
    "where of higher rank": (jaxloss.ShapeError, {"where": PRED[None] > 0}, "(1, 4, 3)", "rank 2"),
    "where too long": (jaxloss.ShapeError, {"where": np.ones((5, 1), bool)}, "(5, 1)", "rank 2"),
    "weights of lower rank": (jaxloss.ShapeError, {"weights": PRED[:, 0]}, "(4,)", "`weights[:, None]`"),
    "weights along the last": (jaxloss.ShapeError, {"weights": PRED[0]}, "(3,)", "`weights[None, :]`"),
    "weights of higher rank": (jaxloss.ShapeError, {"weights": PRED[None]}, "(1, 4, 3)", "rank 2"),
    "weights too long": (jaxloss.ShapeError, {"weights": np.ones((5, 1))}, "(5, 1)", "rank 2"),
    "weights text": (TypeError, {"weights": "equal"}, "weights must be a real number", "'equal'"),
    "weights complex": (TypeError, {"weights": PRED + 1j}, "weights must be a real number"),
    "weights of objects": (TypeError, {"weights": np.full((4, 3), None)}, "weights must be a real number"),
    "axis out of range": (ValueError, {"axis": 2}, "axis=2 is out of range for losses of rank 2"),
    "axis below range": (ValueError, {"axis": -3}, "axis=-3 is out of range"),
    "axis twice": (ValueError, {"axis": (0, -2)}, "twice"),
    "axis a float": (ValueError, {"axis": 0.5}, "axis=0.5 must be an integer"),
    "axis text": (ValueError, {"axis": ""}, "axis='' must be an integer"),
    "axis an array": (ValueError, {"axis": np.array([[0], [1]])}, "must be an integer"),
    "unknown reduction": (ValueError, {"reduction": "average"}, "'average'", "'mean'", "'weighted_mean'"),
    "reduction None": (ValueError, {"reduction": None}, "None", "'mean'"),
    "reduction an array": (ValueError, {"reduction": np.array([["mean"], ["sum"]])}, "'mean'"),
}
"""What reduces: of losses, and of `loss_sum`."""


@pytest.mark.parametrize("case", ARGUMENTS)
def test_bad_predictions_and_targets(case):
    kind, given, *words = ARGUMENTS[case]
    given = {"pred": PRED, "target": TARGET, **given}
    for row in ROWS:
        loss = Partial(row.loss, **row.usual)
        lifts = (slope, curvature, *([irls_weight] if jaxloss.traits(loss).residual else []))
        for call in (loss, functools.partial(loss_sum, loss), *(lift(loss) for lift in lifts)):
            refused(kind, (row.name, *words), call, **given)
        heads = {name: {"head": value} for name, value in given.items() if not isinstance(value, list | None)}
        if len(heads) == 2:
            refused(kind, ("head ['head']", row.name, *words), composite({"head": loss}), **heads)


@pytest.mark.parametrize("case", REDUCING)
def test_bad_masks_weights_and_reductions(case):
    kind, given, *words = REDUCING[case]
    for row in ROWS:
        loss = Partial(row.loss, **row.usual)
        for call in (loss, functools.partial(loss_sum, loss)):
            refused(kind, (row.name, *words), call, PRED, TARGET, **given)


def product(pred, target):
    return pred * target


HEAD = {"head": PRED}, {"head": TARGET}
OTHERS = {
    "axis with none": (ValueError, lambda: mse(PRED, TARGET, axis=0, reduction="none"), "reduction='none'"),
    "loss_sum of a sum": (ValueError, lambda: loss_sum(mse, PRED, TARGET, reduction="sum"), "'sum'"),
    "loss_sum of none": (ValueError, lambda: loss_sum(mse, PRED, TARGET, reduction="none"), "'none'"),
    "loss_sum of no loss": (TypeError, lambda: loss_sum("mse", PRED, TARGET), "a loss is a function", "'mse'"),
    "no loss": (TypeError, lambda: check_loss("mse"), "a loss is a function of (pred, target)", "'mse'"),
    "irls of no residual": (TypeError, lambda: irls_weight(jaxloss.pointwise(product)), "pred − target"),
    "slope of a stranger": (TypeError, lambda: slope(product), "product", "pointwise"),
    "slope of text": (TypeError, lambda: slope("mse"), "'mse'", "pointwise"),
    "slope of a composite": (TypeError, lambda: slope(composite({"head": mse})), "pointwise"),
    "traits of a stranger": (TypeError, lambda: jaxloss.traits(product), "product", "pointwise"),
    "three arguments": (TypeError, lambda: jaxloss.pointwise(lambda pred, target, delta: pred), "(pred, target"),
    "rmse where": (TypeError, lambda: jaxloss.rmse(PRED, TARGET, where=1), "rmse", MASK),
    "rmse eps": (ValueError, lambda: jaxloss.rmse(PRED, TARGET, -1.0), "rmse", "eps must be finite", "-1.0"),
    "head's bad mask": (TypeError, lambda: composite({"head": mse})(*HEAD, where={"head": 1}), "head ['head']", MASK),
    "composite's setting": (TypeError, lambda: composite({"head": huber})(*HEAD, delta=1.0), "'delta'", "Partial"),
    "its sum's setting": (
        TypeError,
        lambda: loss_sum(composite({"head": mae}), *HEAD, delta=1.0),
        "'delta'",
        "Partial",
    ),
    "its sum's axis": (ValueError, lambda: loss_sum(composite({"head": mae}), *HEAD, axis=0), "axis=0", "leave it out"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_bad_calls(case):
    kind, call, *words = OTHERS[case]
    refused(kind, words, call)


def test_bad_weights_of_composite():
    for number in outside(NONNEGATIVE):
        for value in (float(number), np.float64(number), np.array(number)):
            words = ("composite: the weight of a loss must be finite and at least 0", f"got {number}")
            refused(ValueError, words, composite, {"head": mse}, {"head": value})
    for name in {*NOT_NUMBERS} - {"ragged list", "dict", "None"}:  # those are pytrees
        words = ("composite: the weight of a loss must be a real number",)
        refused(TypeError, words, composite, {"head": mse}, {"head": NOT_NUMBERS[name]})
    for value in (np.ones(2), jnp.ones(2), [1.0]):
        refused(jaxloss.ShapeError, ("the weight of a loss", "pass a scalar"), composite, [mse], [value])


def test_an_error_of_jax_in_a_head_names_the_head():
    branching = jaxloss.pointwise(lambda pred, target: pred if pred > target else target)
    with pytest.raises(jax.errors.TracerBoolConversionError) as caught:
        composite({"head": branching})(*HEAD)
    assert caught.value.__notes__[-1] == "head ['head']"
