"""Fits that are killed and go on: the same bytes as if they had not been; and what may not go on."""

import json
import os
import random
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from support import free_address, start_program
from test_fit import ROWS, data, linear, start

from jaxloss import huber, mse
from jaxloss.train import CheckpointError, Checkpoints, Interrupted, RunDir, Stream, average_params, fit
from jaxloss.train.resume import describe

OPTIMIZER = average_params(optax.adam(0.05), 0.9)
SETTINGS = {"loss": mse, "optimizer": OPTIMIZER, "batch_size": 16, "validation": data(seed=3)}


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def stop_after(epochs):
    """A callback that asks the process to stop once so many epochs are done."""
    return lambda epoch, state, line: signal.raise_signal(signal.SIGTERM) if epoch == epochs else None


def test_a_run_that_was_stopped_ends_in_the_same_bytes(tmp_path):
    whole = fit(linear, start(), data(), epochs=9, **SETTINGS)
    for at in (3, 5):
        with pytest.raises(Interrupted) as told:
            fit(
                linear,
                start(),
                data(),
                epochs=9,
                run_dir=RunDir(tmp_path, resume=at > 3),
                callbacks=[stop_after(at)],
                **SETTINGS,
            )
        assert told.value.code == 128 + signal.SIGTERM
    result = fit(linear, start(), data(), epochs=9, run_dir=RunDir(tmp_path, resume=True), **SETTINGS)
    equal((result.params, result.history), (whole.params, whole.history))
    equal(result.state.opt_state, whole.state.opt_state)
    assert result.best_epoch == whole.best_epoch
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 10))
    again = fit(
        linear, start(), data(), epochs=9, run_dir=RunDir(tmp_path, resume=True), **SETTINGS
    )  # nothing is left to do
    equal(again.params, whole.params)
    longer = fit(linear, start(), data(), epochs=12, run_dir=RunDir(tmp_path, resume=True), **SETTINGS)
    equal(longer.params, fit(linear, start(), data(), epochs=12, **SETTINGS).params)


def test_a_stream_goes_on_in_the_middle_of_an_epoch(tmp_path):
    x, target = data()
    settings = {"loss": mse, "optimizer": OPTIMIZER}

    rows = [(x[first : first + 10], target[first : first + 10]) for first in range(0, ROWS, 10)]
    whole = fit(linear, start(), rows, epochs=4, **settings)
    with pytest.raises(Interrupted):
        fit(linear, start(), StoppedInTheSecondPass(rows), epochs=4, run_dir=tmp_path, **settings)
    result = fit(linear, start(), rows, epochs=4, run_dir=RunDir(tmp_path, resume=True), **settings)
    equal((result.params, result.history), (whole.params, whole.history))


def test_a_generator_goes_on_past_what_was_done(tmp_path):
    x, target = data()

    def endless():
        number = 0
        while True:
            rows = np.random.default_rng(number).integers(0, ROWS, 10)
            number += 1
            yield x[rows], target[rows]

    settings = {"loss": mse, "optimizer": OPTIMIZER, "epochs": 6}
    whole = fit(linear, start(), Stream(endless(), epoch_steps=4), **settings)
    with pytest.raises(Interrupted):
        fit(linear, start(), Stream(endless(), epoch_steps=4), run_dir=tmp_path, callbacks=[stop_after(3)], **settings)
    result = fit(linear, start(), Stream(endless(), epoch_steps=4), run_dir=RunDir(tmp_path, resume=True), **settings)
    equal((result.params, result.history), (whole.params, whole.history))


class StoppedInTheSecondPass(list):
    """Batches; the process is asked to stop while the second epoch is read."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        for number, batch in enumerate(super().__iter__()):
            if (self.passes, number) == (2, 3):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
            yield batch


SIGNALS = []
"""What happens at the next traces of `stopped`, the last first."""


def stopped(params, x):
    """The model; while it is traced, between the start of a fit and its first step, it may be asked to stop."""
    if SIGNALS and (number := SIGNALS.pop()):
        signal.raise_signal(number)
    return linear(params, x)


def test_a_run_with_skipped_updates_goes_on_to_the_same_bytes(tmp_path):
    """Stopped in the middle of a block, so that other steps than in the whole run are run again with a guard."""
    x, target = data(rows=300)
    target[5] = 3e38
    settings = {"loss": mse, "optimizer": OPTIMIZER, "batch_size": 1, "epochs": 3}
    with pytest.warns(UserWarning, match="3 updates"):
        whole = fit(linear, start(), (x, target), **settings)
    assert whole.history["skipped"].tolist() == [1, 1, 1]
    SIGNALS[:] = [signal.SIGTERM, None]
    with pytest.raises(Interrupted):
        fit(stopped, start(), (x, target), run_dir=tmp_path, **settings)
    assert Checkpoints(tmp_path / "checkpoints").steps == [32]
    with pytest.warns(UserWarning, match="3 updates"):
        resumed = fit(stopped, start(), (x, target), run_dir=RunDir(tmp_path, resume=True), **settings)
    equal(
        (resumed.params, resumed.history, resumed.state.opt_state), (whole.params, whole.history, whole.state.opt_state)
    )


def test_more_patience_goes_on_and_numpy_numbers_are_numbers(tmp_path):
    settings = SETTINGS | {"optimizer": optax.sgd(0.9), "epochs": 60, "seed": np.int64(3)}
    short = fit(linear, start(), data(), patience=2, run_dir=tmp_path, **settings)
    assert len(short.history["loss"]) < 60
    longer = fit(linear, start(), data(), patience=9, run_dir=RunDir(tmp_path, resume=True), **settings)
    fresh = fit(linear, start(), data(), patience=9, **settings)
    equal((longer.params, longer.history), (fresh.params, fresh.history))


def test_another_run_is_refused_with_what_differs(tmp_path):
    fit(linear, start(), data(), epochs=2, run_dir=tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="resume=True"):
        fit(linear, start(), data(), epochs=2, run_dir=tmp_path, **SETTINGS)
    x, target = data()
    for changed, words in (
        ({"batch_size": 10}, "batch_size: 16 in the checkpoint, 10 now"),
        ({"loss": Partial(huber, delta=0.5)}, "huber"),
        ({"optimizer": average_params(optax.adam(0.06), 0.9)}, "0.05 in the checkpoint"),
        ({"data": (x, target + 1)}, "data"),
        ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
    ):
        call = {"data": (x, target), **SETTINGS, **changed}
        with pytest.raises(ValueError, match="checkpoint") as told:
            fit(linear, start(), call.pop("data"), epochs=4, run_dir=RunDir(tmp_path, resume=True), **call)
        assert words in str(told.value), str(told.value)
        assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="resume=True needs"):
        RunDir(tmp_path, save_every=None, resume=True)


def test_a_damaged_checkpoint_costs_one_interval(tmp_path):
    whole = fit(linear, start(), data(), epochs=8, **SETTINGS)
    for epochs in (4, 6):
        fit(linear, start(), data(), epochs=epochs, run_dir=RunDir(tmp_path, resume=epochs > 4), **SETTINGS)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps == [16, 24]
    largest = max(
        (path for path in (tmp_path / "checkpoints/step_24").rglob("*") if path.is_file()), key=os.path.getsize
    )
    spoiled = bytearray(largest.read_bytes())
    spoiled[len(spoiled) // 2] ^= 1
    largest.write_bytes(spoiled)
    with pytest.warns(UserWarning, match="step_24 is damaged"):
        result = fit(linear, start(), data(), epochs=8, run_dir=RunDir(tmp_path, resume=True), **SETTINGS)
    equal((result.params, result.history), (whole.params, whole.history))


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((CheckpointError, OSError), match="file"):
        fit(linear, start(), data(), epochs=1, run_dir=tmp_path / "file", **SETTINGS)


def test_describes_tell_functions_apart():
    assert describe(optax.adam(0.1)) == describe(optax.adam(0.1))
    assert describe(optax.adam(0.1)) != describe(optax.adam(0.2))
    assert describe(optax.adam(0.1)) != describe(optax.adamw(0.1))
    assert describe(Partial(huber, delta=1.0)) != describe(Partial(huber, delta=jnp.array(2.0)))
    schedules = [optax.adam(optax.cosine_decay_schedule(0.1, steps)) for steps in (10, 20)]
    assert describe(schedules[0]) != describe(schedules[1])
    json.dumps(describe(schedules[0]))
    key, table = jax.random.key(0), np.arange(20) * 1j

    def again(x):
        return again(x) + later + (key, table)

    assert json.dumps(describe(again))
    later = 1


def test_another_function_is_refused_by_what_it_closes_over(tmp_path):
    factor = 2.0
    settings = {"loss": mse, "optimizer": OPTIMIZER}
    later = RunDir(tmp_path, resume=True)
    fit(lambda params, x: factor * linear(params, x), start(), data(), epochs=1, run_dir=tmp_path, **settings)
    fit(lambda p, x: factor * linear(p, x), start(), data(), epochs=2, run_dir=later, **settings)
    with pytest.raises(ValueError, match=r"\.function: <lambda> in the checkpoint, linear now") as told:
        fit(linear, start(), data(), epochs=3, run_dir=later, **settings)
    assert "\n" not in str(told.value)
    factor = 3.0
    with pytest.raises(ValueError, match=r"factor: 2\.0 in the checkpoint, 3\.0 now"):
        fit(lambda params, x: factor * linear(params, x), start(), data(), epochs=3, run_dir=later, **settings)


def digest_of(process):
    """What the process prints of its result, at its end."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return next(line for line in out.splitlines() if line.startswith("digest"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 20), (signal.SIGTERM, 6)])
def test_killed_at_random_moments_it_ends_in_the_same_bytes(tmp_path, number, times):
    def begin(folder):
        return start_program("fit_until_killed", folder, 4000, 0.0)

    want = digest_of(begin(tmp_path / "whole"))
    moments, killed = random.Random(0), 0
    for _ in range(times):
        process = begin(tmp_path / "killed")
        assert process.stdout.readline().strip() == "ready"
        time.sleep(moments.uniform(0.3, 3.0))
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        if "digest" not in out:
            killed += 1
            assert process.returncode in (-number, 128 + number), err
    assert killed >= times // 3
    assert digest_of(begin(tmp_path / "killed")) == want


@pytest.mark.slow
def test_when_one_of_two_processes_is_killed_the_other_says_so_and_a_new_start_goes_on(tmp_path, request):
    def begin(epochs):
        address = free_address()
        return [start_program("fit_until_killed", tmp_path / "run", epochs, 0.5, address, rank) for rank in range(2)]

    running = begin(100_000)
    request.addfinalizer(lambda: [process.kill() or process.communicate() for process in running])
    deadline = time.monotonic() + 120
    while not Checkpoints(tmp_path / "run" / "checkpoints").steps and time.monotonic() < deadline:
        time.sleep(0.1)
    running[1].kill()
    killed = time.monotonic()
    _, err = running[0].communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert running[0].returncode != 0
    assert "another process is gone" in err or "another task died" in err, err[-2000:]  # ours, or JAX's own
    (step, *_) = Checkpoints(tmp_path / "run" / "checkpoints").steps
    epochs = step // 63 + 3
    assert len({digest_of(process) for process in begin(epochs)}) == 1
