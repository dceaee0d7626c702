"""What `fit` does beside stepping: guards, penalties, averages, callbacks, streams, files, screening."""

import json
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import order_of, orders_of, run_program
from test_fit import FEATURES, OPTIMIZER, ROWS, data, linear, start

import jaxloss
from jaxloss import barron_nll, loss_sum, mse
from jaxloss.train import (
    Batch,
    NonFiniteError,
    Stream,
    TrainState,
    average_params,
    fit,
    make_step,
    penalized,
    supervised,
)

SGD = optax.sgd(0.1)


def same(left, right, rtol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, rtol), left, right)


def broken(params, x):
    """A model whose gradient is NaN in rows with a first feature above 1.5, by a square root of 0."""
    pred = linear(params, x)
    return pred + jnp.where(x[:, 0] > 1.5, 0.0, jnp.sqrt(jnp.where(x[:, 0] > 1.5, 0.0 * pred, 1.0))) - 1.0


def with_bad_rows(number):
    x, target = data()
    x[:, 0] = np.clip(x[:, 0], -1.4, 1.4)
    x[:number, 0] = 2.0
    return x, target


def test_the_guard_skips_counts_and_names_the_first():
    x, target = with_bad_rows(1)
    order = order_of(0, 0, ROWS)
    where = int(np.flatnonzero(order == 0)[0]) // 10
    with pytest.warns(UserWarning, match=f"3 updates were skipped.*step {where}$"):
        result = fit(broken, start(), (x, target), loss=mse, optimizer=OPTIMIZER, epochs=3, batch_size=10)
    assert result.history["skipped"].tolist() == [1, 1, 1]
    assert int(result.state.step) == 15
    assert np.isfinite(result.history["loss"]).all()
    step = jax.jit(make_step(supervised(broken, mse), OPTIMIZER))
    state, skipped = TrainState.create(start(), OPTIMIZER), 0
    for rows in orders_of(0, 3, ROWS).reshape(15, 10):
        state, metrics = step(state, Batch(x[rows], target[rows]))
        skipped += int(metrics["skipped"])
    assert skipped == 3
    same(result.params, state.params, 1e-6)


def test_a_skipped_step_leaves_all_but_the_step_number():
    x, target = with_bad_rows(3)
    state = TrainState.create(start(), OPTIMIZER)
    after, metrics = make_step(supervised(broken, mse), OPTIMIZER)(state, Batch(x[:3], target[:3]))
    same((after.params, after.opt_state), (state.params, state.opt_state))
    assert int(after.step) == 1
    assert int(metrics["skipped"]) == 1
    assert float(metrics["loss"].weight) == 0


def test_too_many_skipped_updates_are_an_error_with_the_last_good_state():
    x, target = with_bad_rows(ROWS)
    with pytest.raises(NonFiniteError, match=r"4 updates.*first at step 0") as told:
        fit(broken, start(), (x, target), loss=mse, optimizer=OPTIMIZER, epochs=9, batch_size=10, max_skipped=4)
    result = told.value.result
    same(result.params, start())
    assert int(result.state.step) == 4


def test_a_diverging_run_stops_with_finite_parameters():
    with pytest.raises(NonFiniteError) as told:
        fit(linear, start(), data(), loss=mse, optimizer=optax.sgd(1e3), epochs=500)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(told.value.result.params))


def test_a_penalty_is_applied_and_reported_apart():
    x, target = data()
    ridge = penalized(supervised(linear, mse), lambda params: 0.5 * jnp.sum(params["weight"] ** 2))
    result = fit(ridge, start(), (x, target), optimizer=optax.sgd(0.2), epochs=300, validation=(x, target))
    centred = x - x.mean(0)
    gram = 2 / ROWS * centred.T @ centred + np.eye(FEATURES)
    exact = np.linalg.solve(gram, 2 / ROWS * centred.T @ (target - target.mean()))
    np.testing.assert_allclose(result.state.params["weight"], exact, rtol=1e-4)
    np.testing.assert_allclose(result.history["penalty"][-1], 0.5 * np.sum(exact**2), rtol=1e-4)
    np.testing.assert_allclose(result.history["validation_loss"][-1], result.history["loss"][-1], rtol=1e-3)
    state = TrainState.create(start(), SGD)
    batch = Batch(x[:48], target[:48])
    whole, parts = (make_step(ridge, SGD, micro_batches=n)(state, batch) for n in (1, 4))
    same(whole[0].params, parts[0].params, 1e-5)
    same(whole[1]["penalty"].each, parts[1]["penalty"].each)


def test_settings_of_a_loss_are_learned():
    x, target = data()
    spread = {"log_scale": jnp.zeros(())}

    def objective(params, batch):
        settings = {"alpha": 1.0, "scale": jnp.exp(params["loss"]["log_scale"])}
        return loss_sum(barron_nll, linear(params["model"], batch.x), batch.target, **settings)

    params = {"model": start(), "loss": spread}
    result = fit(objective, params, (x, target), optimizer=optax.adam(0.05), epochs=400)
    assert 0.02 < float(jnp.exp(result.params["loss"]["log_scale"])) < 0.2


def test_the_average_is_that_of_the_parameters():
    seen = []

    def keep(epoch, state, line):
        seen.append(state.params)

    result = fit(
        linear, start(), data(), loss=mse, optimizer=average_params(SGD, 0.7), epochs=6, callbacks=[keep],
        validation=data(),
    )  # fmt: skip
    weights = 0.7 ** np.arange(5, -1, -1)
    want = jax.tree.map(lambda *leaves: np.tensordot(weights / weights.sum(), np.stack(leaves), 1), *seen)
    same(result.params, want, 1e-5)
    assert result.best_epoch == 6


def test_callbacks_are_told_every_epoch_and_may_stop():
    lines = []

    def until_third(epoch, state, line):
        lines.append((epoch, int(state.step), line["loss"]))
        return epoch == 3

    result = fit(
        linear, start(), data(), loss=mse, optimizer=OPTIMIZER, epochs=9, batch_size=16, callbacks=[until_third]
    )
    assert [line[:2] for line in lines] == [(1, 4), (2, 8), (3, 12)]
    np.testing.assert_allclose([line[2] for line in lines], result.history["loss"])
    alone = fit(linear, start(), data(), loss=mse, optimizer=OPTIMIZER, epochs=3, batch_size=16)
    same(alone.params, result.params)


def batches(rows, size=16):
    x, target = data()
    return [(x[part], target[part]) for part in np.array_split(rows, range(size, ROWS, size))]


def test_a_stream_of_batches_is_the_fit_on_arrays():
    orders = orders_of(0, 3, ROWS)

    class Shuffled:
        epoch = -1

        def __iter__(self):
            self.epoch += 1
            return iter(batches(orders[self.epoch]))

    settings = {"loss": mse, "optimizer": OPTIMIZER, "epochs": 3, "validation": data(seed=4)}
    arrays = fit(linear, start(), data(), batch_size=16, **settings)
    stream = fit(linear, start(), Shuffled(), **settings)
    same(arrays.params, stream.params, 1e-6)
    assert stream.history.keys() == arrays.history.keys()
    same(arrays.history, stream.history, 1e-5)
    assert stream.best_epoch == arrays.best_epoch


def test_a_stream_that_does_not_end_is_read_one_batch_ahead():
    read = []

    def endless():
        while True:
            for batch in batches(np.arange(ROWS)):
                read.append(batch)
                yield batch

    result = fit(linear, start(), Stream(endless(), epoch_steps=5), loss=mse, optimizer=OPTIMIZER, epochs=3)
    assert int(result.state.step) == 15
    assert len(read) == 16
    assert len(result.history["loss"]) == 3


@pytest.mark.parametrize("batch_size", [16, 10])  # of which 50 rows are no multiple, and a multiple
def test_arrays_in_a_file(tmp_path, batch_size):
    x, target = data()
    for name, values in (("x", x), ("target", target)):
        np.save(tmp_path / f"{name}.npy", values)
    mapped = tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "target"))
    settings = {"loss": mse, "optimizer": OPTIMIZER, "epochs": 3, "batch_size": batch_size}
    same(fit(linear, start(), mapped, **settings).params, fit(linear, start(), data(), **settings).params, 1e-5)


def test_a_reader_that_fails_is_told():
    def failing():
        yield batches(np.arange(ROWS))[0]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        fit(linear, start(), failing(), loss=mse, optimizer=OPTIMIZER, epochs=1)


def test_rows_that_are_not_finite_are_named_or_masked(tmp_path):
    x, target = data()
    x[3, 1], target[7] = np.nan, np.inf
    settings = {"loss": mse, "optimizer": OPTIMIZER, "epochs": 2, "batch_size": 16}
    with pytest.raises(ValueError, match=r"x \(1 rows\) and target or weights \(1 rows\), rows 3, 7") as told:
        fit(linear, start(), (x, target), run_dir=tmp_path / "run", **settings)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()
    masked = fit(linear, start(), (x, target), nonfinite="mask", **settings)
    keep = np.ones(ROWS, bool)
    keep[[3, 7]] = False
    clean = data()
    by_hand = fit(linear, start(), Batch(*clean, where=keep), **settings)
    same(masked.params, by_hand.params, 1e-6)
    again = fit(linear, start(), Batch(x, target, where=keep), **settings)  # masked rows may hold anything
    same(again.params, by_hand.params, 1e-6)
    streamed = [(x, target)]
    with pytest.raises(ValueError, match="batch 0 of epoch 1 holds NaN"):
        fit(linear, start(), streamed, loss=mse, optimizer=OPTIMIZER, epochs=1)


def test_one_row_is_enough():
    x, target = data(rows=1)
    assert np.isfinite(fit(linear, start(), (x, target), loss=mse, optimizer=SGD, epochs=2).history["loss"]).all()


def test_skipped_updates_are_counted_in_their_epoch():
    """In an epoch longer than the block that is run again with a guard."""
    x, target = data(rows=300)
    target[7] = 3e38
    with pytest.warns(UserWarning, match="2 updates"):
        result = fit(linear, start(), (x, target), loss=mse, optimizer=OPTIMIZER, epochs=2, batch_size=1)
    assert result.history["skipped"].tolist() == [1, 1]


def test_an_average_in_half_precision_does_not_stall():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start())
    settings = {"loss": mse, "optimizer": average_params(optax.sgd(0.05), 0.99), "epochs": 1000}
    result = fit(linear, params, data(), **settings)
    assert result.params["weight"].dtype == jnp.bfloat16
    last = np.asarray(result.state.params["weight"], np.float32)
    np.testing.assert_allclose(np.asarray(result.params["weight"], np.float32), last, rtol=0.02)


def test_a_list_serves_epochs_of_any_number_of_batches():
    rows = batches(np.arange(ROWS), 10)
    settings = {"loss": mse, "optimizer": OPTIMIZER}
    by_sevens = fit(linear, start(), Stream(rows, epoch_steps=7), epochs=5, **settings)
    same(by_sevens.params, fit(linear, start(), rows, epochs=7, **settings).params, 1e-6)


def test_a_masked_row_may_be_nan_under_a_model_that_has_no_value_at_zero():
    x, target = data()
    x = np.exp(x)
    x[3] = np.nan
    where = np.arange(ROWS) != 3
    result = fit(
        lambda params, x: linear(params, jnp.log(x)), start(), Batch(x, target, where=where), loss=mse,
        optimizer=OPTIMIZER, epochs=3,
    )  # fmt: skip
    assert np.isfinite(result.history["loss"]).all()
    assert result.history["skipped"].sum() == 0


def test_what_float32_cannot_hold_is_not_finite():
    x, target = data()
    with pytest.raises(ValueError, match="rows 2"):
        fit(
            linear,
            start(),
            (np.where(np.arange(ROWS)[:, None] == 2, 1e200, x.astype(float)), target),
            loss=mse,
            optimizer=SGD,
            epochs=1,
        )
    weights = np.where(np.arange(ROWS) == 4, np.inf, 1.0)
    with pytest.raises(ValueError, match="rows 4"):
        fit(linear, start(), Batch(x, target, weights), loss=mse, optimizer=SGD, epochs=1)


def test_numbers_of_any_size_and_kind():
    settings = {"loss": mse, "optimizer": SGD}
    limits = {"patience": 2**40, "validation": data(), "max_skipped": 2**40}
    fit(linear, start(), data(), epochs=2, seed=2**40 + 1, **limits, **settings)
    lines = []
    fit(
        linear,
        start(),
        data(),
        epochs=2,
        callbacks=[lambda epoch, state, line: lines.append(epoch) or epoch],
        **settings,
    )
    assert lines == [1, 2], "a number is not True"


X, TARGET = data()
REFUSED = {
    "weights of a batch": ({"data": Batch(X, TARGET, np.ones(10)), "batch_size": 10}, jaxloss.ShapeError, "50 rows"),
    "a pass that is over": ({"data": iter([(X, TARGET)]), "epochs": 2}, ValueError, "one pass"),
    "a stream of nothing": ({"data": []}, ValueError, "no batch"),
    "a larger batch": ({"data": [(X[:9], TARGET[:9]), (X, TARGET)]}, ValueError, "50 rows, more than the 9"),
    "a number": ({"data": 3}, TypeError, "iterable"),
    "a policy": ({"nonfinite": "drop"}, ValueError, "'drop'"),
    "no limit": ({"max_skipped": 0}, ValueError, "max_skipped=0"),
    "no micro-batch": ({"batch_size": (0, 4)}, ValueError, "batch_size=(0, 4) must be"),
    "uneven micro-batches": ({"batch_size": (4, 13)}, ValueError, "50 rows"),
    "batches of nothing": ({"data": [(X, TARGET)], "batch_size": 0}, ValueError, "batch_size=0"),
    "a loss of the wrong shape": ({"loss": lambda pred, target, **_: jnp.zeros(3)}, TypeError, "scalar"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(case, tmp_path):
    changed, error, word = REFUSED[case]
    call = {"data": (X, TARGET), "loss": mse, "optimizer": OPTIMIZER, "epochs": 1, "run_dir": tmp_path / "run"}
    call |= changed
    with warnings.catch_warnings(), pytest.raises(error) as told:
        fit(linear, start(), call.pop("data"), **call)
    assert word in str(told.value)
    assert "\n" not in str(told.value)
    written = tmp_path / "run" / "metrics.jsonl"
    assert not written.exists() or all(json.loads(line) for line in written.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory's high water from /proc")
def test_ten_gigabytes_pass_through_two():
    """Rows are generated as they are needed; the process never holds more than a small part of them."""
    assert float(run_program("ten_gigabytes")) < 2.0


@pytest.mark.slow
def test_a_grain_dataset():
    grain = pytest.importorskip("grain")
    x, target = data()
    dataset = grain.MapDataset.source(list(zip(x, target, strict=True))).shuffle(seed=1).batch(16).to_iter_dataset()
    result = fit(linear, start(), dataset, loss=mse, optimizer=OPTIMIZER, epochs=3)
    assert int(result.state.step) == 12
    assert result.history["loss"][-1] < result.history["loss"][0]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory's high water from /proc")
def test_the_memory_of_a_large_model_is_that_of_a_bare_loop():
    def most(kind):  # the less of two: what threads hold beside it varies
        return min(float(run_program("memory", kind)) for _ in range(2))

    bare = most("bare")
    for kind, more in (("arrays", 0.75), ("validated", 1.75), ("stream", 0.75)):  # a quarter is the measure's own noise
        assert most(kind) < bare + more, kind


LARGE = 2**23  # with its momentum, 64 MiB: no copy of the state is held


@pytest.mark.parametrize("streamed", [False, True])
def test_a_large_state_is_guarded_by_its_gradient(streamed):
    """The same as a small one: what is not finite is skipped, counted and named."""
    x, target = data()
    target[25] = 3e38
    rows = [(x[part], target[part]) for part in np.split(np.arange(ROWS), 5)]

    def wide(params, x):
        return linear(params, x) + 0.0 * params["unused"][0]

    results = []
    for size in (1, LARGE):
        params = start() | {"unused": jnp.zeros(size)}
        settings = {"loss": mse, "optimizer": optax.sgd(0.05, momentum=0.9), "epochs": 2}
        with pytest.warns(UserWarning, match="2 updates were skipped.*first at step"):
            results.append(fit(wide, params, rows if streamed else (x, target), batch_size=10, **settings))
    small, large = results
    same(small.history, large.history, 1e-6)
    assert small.history["skipped"].tolist() == [1, 1]
    for name in ("weight", "bias"):
        same(small.params[name], large.params[name], 1e-6)
