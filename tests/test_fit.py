"""`fit`: what it computes, that it compiles once, what it leaves alone, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from support import orders_of

import jaxloss
from jaxloss import huber, mae, mse
from jaxloss.train import Batch, Every, ProgressLine, TrainState, fit, make_step, supervised

ROWS, FEATURES = 50, 3
OPTIMIZER = optax.adam(0.05)


def linear(params, x):
    return jnp.matmul(x, params["weight"], precision="highest") + params["bias"]


def data(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    return x, (x @ np.array([1.0, -2.0, 0.5]) + 0.3 + 0.1 * rng.normal(size=rows)).astype(np.float32)


def start():
    return {"weight": jnp.zeros(FEATURES), "bias": jnp.zeros(())}


def test_fit_is_the_hand_written_loop():
    """Ragged batches, weights and a mask: the same numbers as stepping by hand through the same rows."""
    x, target = data()
    rng = np.random.default_rng(1)
    weights, where = rng.uniform(0.5, 2, ROWS).astype(np.float32), rng.random(ROWS) < 0.8
    batch = Batch(x, np.where(where, target, np.nan), weights, where)
    result = fit(linear, start(), batch, loss=huber, optimizer=OPTIMIZER, epochs=3, batch_size=16, seed=7)
    step = jax.jit(make_step(supervised(linear, huber), OPTIMIZER))
    state = TrainState.create(start(), OPTIMIZER, seed=7)
    losses = []
    for order in orders_of(7, 3, ROWS):
        total = 0
        for rows in np.split(order, [16, 32, 48]):
            state, metrics = step(state, jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch))
            total = metrics["loss"] + total if total else metrics["loss"]
        losses.append(float(total.mean))
    jax.tree.map(
        lambda ours, by_hand: np.testing.assert_allclose(ours, by_hand, rtol=1e-5), result.params, state.params
    )
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-5)
    assert result.best_epoch == 3


def test_full_batch_descent_converges_to_least_squares():
    x, target = data()
    result = fit(linear, start(), (x, target), loss=mse, optimizer=optax.sgd(0.2), epochs=300)
    exact = np.linalg.lstsq(np.column_stack([x, np.ones(ROWS)]), target, rcond=None)[0]
    np.testing.assert_allclose(np.append(result.params["weight"], result.params["bias"]), exact, rtol=1e-4)


def test_second_call_compiles_nothing():
    traced = []

    def apply(params, x):
        traced.append(x)
        return linear(params, x)

    def run(delta, epochs, seed):
        settings = {"loss": Partial(huber, delta=delta), "epochs": epochs, "seed": seed, "batch_size": 16}
        return fit(apply, start(), data(), optimizer=OPTIMIZER, **settings)

    run(1.0, 2, 0)
    assert traced
    traced.clear()
    run(2.0, 5, 1)
    assert not traced


def test_early_stopping_keeps_the_best_weights():
    x, target = data()
    validation = data(seed=9)
    settings = {"loss": mse, "optimizer": optax.sgd(0.8), "epochs": 400, "validation": validation}
    result = fit(linear, start(), (x, target), **settings, patience=5)
    curve = result.history["validation_loss"]
    assert len(curve) < 400
    assert result.best_epoch == int(np.argmin(curve)) + 1
    assert len(curve) == result.best_epoch + 5
    assert int(result.state.step) == len(curve)
    np.testing.assert_allclose(mse(linear(result.params, validation[0]), validation[1]), curve.min(), rtol=1e-5)


def test_large_validation_is_evaluated_in_parts():
    validation = data(rows=20_000, seed=2)
    result = fit(linear, start(), data(), loss=mae, optimizer=OPTIMIZER, epochs=1, validation=validation)
    params = result.state.params
    np.testing.assert_allclose(
        result.history["validation_loss"][0], mae(linear(params, validation[0]), validation[1]), rtol=1e-5
    )


def test_arrays_and_parameters_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, target = map(jnp.asarray, data())
    params = start()
    fit(linear, params, (x, target), loss=mse, optimizer=OPTIMIZER, epochs=2, batch_size=8, callbacks=[ProgressLine()])
    assert float(params["bias"]) == 0
    np.testing.assert_array_equal(x, data()[0])
    assert not x.is_deleted()
    assert not list(tmp_path.iterdir())


def test_log_has_a_line_per_epoch(tmp_path):
    result = fit(
        linear, start(), data(), loss=mse, optimizer=OPTIMIZER, epochs=3, validation=data(seed=1), run_dir=tmp_path
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    np.testing.assert_allclose([line["loss"] for line in lines], result.history["loss"], rtol=1e-6)
    np.testing.assert_allclose(
        [line["validation_loss"] for line in lines], result.history["validation_loss"], rtol=1e-6
    )


def test_progress_line_on_a_terminal(monkeypatch):
    class Terminal:
        text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    fit(linear, start(), data(), loss=mse, optimizer=OPTIMIZER, epochs=4, callbacks=[ProgressLine()])
    assert "epoch 4/4" in terminal.text
    assert "steps/s" in terminal.text


class Writer:
    """A stand-in for `tensorboardX.SummaryWriter`, for the callback in the docstring of `Every`."""

    def __init__(self):
        self.scalars = {}

    def add_scalar(self, tag, scalar_value, global_step=None):
        self.scalars.setdefault(tag, []).append((global_step, scalar_value))


@pytest.mark.parametrize("kind", ["arrays", "a stream"])
def test_callbacks_every_so_many_steps_and_after_each_epoch(kind):
    """Five steps an epoch; in the middle of one the line holds the means over the epoch so far."""
    x, target = data()
    rows = orders_of(0, 2, ROWS) if kind == "arrays" else np.tile(np.arange(ROWS), (2, 1))
    parts = [(x[part], target[part]) for part in rows[0].reshape(5, 10)]
    settings = {"loss": mse, "optimizer": optax.sgd(0.0), "epochs": 2, "batch_size": 10}
    writer, epochs, states = Writer(), [], []

    def to_tensorboard(number, state, line):
        for name, value in line.items():
            writer.add_scalar(name, value, number)
        states.append(int(state.step))

    callbacks = [lambda epoch, state, line: epochs.append((epoch, line["loss"])), Every(3, to_tensorboard)]
    result = fit(linear, start(), (x, target) if kind == "arrays" else parts, callbacks=callbacks, **settings)
    assert epochs == list(zip((1, 2), result.history["loss"].tolist(), strict=True))
    assert states == [3, 6, 9]
    losses = [np.mean(target[part] ** 2) for part in rows.reshape(10, 10)]
    want = np.mean(losses[:3]), losses[5], np.mean(losses[5:9])
    steps, means = zip(*writer.scalars["loss"], strict=True)
    assert steps == (3, 6, 9)
    np.testing.assert_allclose(means, want, rtol=1e-5)
    result = fit(linear, start(), (x, target), callbacks=[Every(4, lambda step, state, line: step == 8)], **settings)
    assert int(result.state.step) == 8


def test_a_loss_that_was_forgotten_is_recalled():
    with pytest.raises(TypeError) as told:
        fit(linear, start(), data(), optimizer=OPTIMIZER, epochs=1)
    assert "without loss=" in told.value.__notes__[-1]


def test_objective_in_place_of_apply_and_loss():
    x, target = data()
    settings = {"optimizer": OPTIMIZER, "epochs": 4, "batch_size": 10}
    by_parts = fit(linear, start(), (x, target), loss=mse, **settings)
    whole = fit(supervised(linear, mse), start(), (x, target), **settings)
    jax.tree.map(np.testing.assert_array_equal, by_parts.params, whole.params)


def test_zero_epochs_return_the_start():
    result = fit(linear, start(), data(), loss=mse, optimizer=OPTIMIZER, epochs=0)
    assert result.best_epoch == 0
    assert len(result.history["loss"]) == 0
    jax.tree.map(np.testing.assert_array_equal, result.params, start())


X, TARGET = data()
REFUSED = {
    "no rows": ({"data": (X[:0], TARGET[:0])}, ValueError, "no rows"),
    "rows differ": ({"data": (X, TARGET[:-1])}, ValueError, "49"),
    "weights of other rows": ({"data": Batch(X, TARGET, TARGET[:-1])}, jaxloss.ShapeError, "weights"),
    "not a pair": ({"data": X}, TypeError, "(x, target)"),
    "batch of nothing": ({"batch_size": 0}, ValueError, "batch_size"),
    "negative epochs": ({"epochs": -1}, ValueError, "epochs"),
    "patience without validation": ({"patience": 3}, ValueError, "validation"),
    "bad setting of the loss": ({"loss": Partial(huber, delta=-1)}, ValueError, "delta"),
    "column against vector": ({"data": (X, TARGET[:, None])}, jaxloss.ShapeError, "[:, None]"),
    "a number of a batch that is no integer": ({"batch_size": 16.0}, TypeError, "batch_size must be an integer"),
    "epochs of a float": ({"epochs": 2.0}, TypeError, "epochs must be an integer"),
    "an optimizer that is not made": ({"optimizer": optax.adam}, TypeError, "optax.adam(1e-3)"),
    "a loss without weights": ({"loss": optax.squared_error}, TypeError, "squared_error takes no weights="),
    "lists": ({"data": (X.tolist(), TARGET.tolist())}, TypeError, "np.asarray"),
    "words": ({"data": (X, TARGET.astype(str))}, TypeError, "must be numbers"),
    "objects": ({"data": (X.astype(object), TARGET)}, TypeError, "must be numbers"),
    "no features": ({"data": (None, TARGET)}, TypeError, "x and target"),
    "a dict": ({"data": {"x": X}}, TypeError, "got dict"),
    "a mask of another rank": (
        {"data": Batch(X, np.where(TARGET > 0, TARGET, np.nan), None, (TARGET > 0)[:, None])},
        jaxloss.ShapeError,
        "where of data has shape (50, 1)",
    ),
    "NaN in the validation": ({"validation": (X, TARGET * np.nan)}, ValueError, "validation holds NaN"),
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"apply": "net"}, "apply must be a function"),
        ({"params": {"weight": jnp.zeros(FEATURES, int), "bias": 0.0}}, "params['weight'] has dtype int32"),
        ({"apply": "net", "loss": None}, "the first argument is an objective"),
        ({"callbacks": print}, "callbacks must be a list"),
        ({"callbacks": [None]}, "callbacks must be a list"),
        ({"batch_size": (2, 3, 4)}, "batch_size must be rows or"),
        ({"apply": lambda params, x, **_: linear(params, x), "model_state": {"n": 0.0}}, "(pred, model_state)"),
        ({"apply": lambda params, x, **_: (linear(params, x), {}), "model_state": {"n": 0.0}}, "another structure"),
        (
            {"apply": lambda params, x, **_: (linear(params, x), {"n": 1}), "model_state": {"n": 0.0}},
            "float32 to int32",
        ),
        ({"sharding": "data"}, "jax.make_mesh"),
    ],
)
def test_other_bad_input_is_one_line(changed, words):
    call = {"apply": linear, "params": start(), "data": (X, TARGET), "loss": mse, "optimizer": OPTIMIZER, "epochs": 1}
    call |= changed
    with pytest.raises((TypeError, ValueError)) as told:
        fit(call.pop("apply"), call.pop("params"), call.pop("data"), **call)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case, tmp_path):
    changed, error, word = REFUSED[case]
    call = {"data": (X, TARGET), "loss": mse, "optimizer": OPTIMIZER, "epochs": 1} | changed
    with pytest.raises(error) as told:
        fit(linear, start(), call.pop("data"), **call)
    assert word in str(told.value)
    assert "\n" not in str(told.value)
