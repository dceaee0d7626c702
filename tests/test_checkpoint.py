"""Checkpoints: everything comes back to the last bit, every injected fault is told and survived."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import free_address, run_program, start_program

from jaxloss import Standardizer, huber
from jaxloss.train import (
    Batch,
    CheckpointError,
    Checkpoints,
    Interruption,
    TrainState,
    make_step,
    storage,
    supervised,
)

OPTIMIZER = optax.chain(optax.clip(1.0), optax.adamw(1e-3))
RANDOM = np.random.default_rng(0)


class Run(NamedTuple):
    state: TrainState
    history: dict[str, np.ndarray]
    scaler: Any
    position: int
    patience: Any = None


def a_run(seed: int) -> Run:
    """All that a training run may carry."""
    rng = np.random.default_rng(seed)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
        "small": jnp.asarray(rng.normal(size=5), jnp.float8_e4m3fn),
        "scalar": jnp.asarray(rng.normal(), jnp.float16),
        "nothing": jnp.zeros((0, 4)),
        "unused": {},
    }
    model_state = {
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "no": jnp.zeros(0, bool),
        "none": None,
    }
    state = TrainState.create(params, OPTIMIZER, model_state=model_state, seed=seed)
    state = state._replace(step=jnp.asarray(seed, jnp.int32))
    history = {"loss": rng.normal(size=seed), "flags": rng.random(3) < 0.5, "complex": rng.normal(size=2) + 1j}
    return Run(
        state, history, Standardizer.fit(rng.normal(size=(4, 2)) + 1e9), seed, (np.int64(3), 1.5, True, seed % 2 == 0)
    )


def raw(leaf):
    """The leaf's type, dtype, shape and bytes."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "key", str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    kind = jax.Array if isinstance(leaf, jax.Array) else type(leaf)
    return kind, str(np.asarray(leaf).dtype), np.shape(leaf), np.asarray(leaf).tobytes()


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert [raw(leaf) for leaf in jax.tree.leaves(got)] == [raw(leaf) for leaf in jax.tree.leaves(want)]


def abstract(tree):
    """Device arrays as their description."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf, tree
    )


def small(step: int) -> dict[str, Any]:
    return {"weight": jnp.full((4, 3), step, jnp.float32) / 7, "key": jax.random.key(step), "step": step}


@pytest.fixture
def two(tmp_path):
    """A folder with two good checkpoints."""
    checkpoints = Checkpoints(tmp_path / "run", config={"seed": 0})
    for step in (1, 2):
        checkpoints.save(step, small(step))
    return tmp_path / "run"


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# What is kept.


@pytest.mark.parametrize("described", [lambda tree: tree, abstract])
def test_everything_comes_back_to_the_last_bit(tmp_path, described):
    Checkpoints(tmp_path).save(5, a_run(5))
    step, tree = Checkpoints(tmp_path).restore(described(a_run(5)))
    assert step == 5
    assert_same(tree, a_run(5))


def test_float64_comes_back_where_it_is_enabled(tmp_path):
    with jax.enable_x64(True):
        tree = {"weight": jnp.asarray([1 / 3, 1e-300]), "count": jnp.asarray(2**40)}
        Checkpoints(tmp_path).save(1, tree)
        assert_same(Checkpoints(tmp_path).restore(abstract(tree))[1], tree)
    with pytest.raises(ValueError, match=r"\['weight'\]: float64 \(2,\) in the checkpoint, float32 \(2,\) now"):
        Checkpoints(tmp_path).restore({"weight": jnp.zeros(2), "count": jnp.zeros((), int)})
    blank = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    assert blank["weight"].dtype == np.float64
    with pytest.raises(ValueError, match="jax_enable_x64"):
        Checkpoints(tmp_path).restore(blank)


@pytest.mark.parametrize("tree", [jnp.arange(3.0), 7, (), {"empty": jnp.zeros((0, 3))}, [np.float32(2.5)]])
def test_a_bare_leaf_and_trees_of_nothing(tmp_path, tree):
    Checkpoints(tmp_path).save(0, tree)
    assert_same(Checkpoints(tmp_path).restore(tree), (0, tree))


def test_transposed_arrays_keep_their_values(tmp_path):
    tree = [np.arange(6.0).reshape(2, 3).T, np.arange(10)[::3]]
    Checkpoints(tmp_path).save(0, tree)
    assert_same(Checkpoints(tmp_path).restore(tree)[1], tree)


def test_uncommitted_arrays_come_back_uncommitted(tmp_path):
    tree = {"free": jnp.ones(2), "held": jax.device_put(jnp.ones(2), jax.devices()[0])}
    Checkpoints(tmp_path).save(0, tree)
    _, got = Checkpoints(tmp_path).restore(tree)
    assert not got["free"].committed
    assert got["held"].committed


def test_a_folder_without_checkpoints_is_a_fresh_start(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.restore(small(0)) is None
    assert (checkpoints.steps, checkpoints.best) == ([], None)
    assert not (tmp_path / "run").exists(), "reading makes no folder"


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    metrics = {1: 5.0, 2: 1.0, 3: float("nan"), 4: 3.0, 5: None, 60: float("-inf"), 7_000: 2.0}
    for step, metric in metrics.items():
        checkpoints.save(step, small(step), metric=metric)
    for reader in (checkpoints, Checkpoints(tmp_path)):
        assert (reader.steps, reader.best) == ([2, 60, 7_000], 2)
    assert_same(Checkpoints(tmp_path).restore(small(0)), (7_000, small(7_000)))
    assert_same(Checkpoints(tmp_path).restore(small(0), step=2), (2, small(2)))
    assert {path.name for path in tmp_path.iterdir()} == {"step_2", "step_60", "step_7000"}
    with pytest.raises(CheckpointError, match=r"no checkpoint step_4 .* \[2, 60, 7000\]"):
        checkpoints.restore(small(0), step=4)


def test_the_step_last_saved_or_restored_is_not_written_again(two):
    checkpoints = Checkpoints(two)
    before = (two / "step_2" / "manifest.json").stat().st_mtime_ns
    checkpoints.restore(small(0))
    checkpoints.save(2, small(2))
    assert (two / "step_2" / "manifest.json").stat().st_mtime_ns == before


def test_an_earlier_run_is_not_mixed_with_a_new_one(two):
    for step in (1, 2):
        with pytest.raises(CheckpointError, match=f"step_{step} could not be saved in .*: step_2 is there already"):
            Checkpoints(two).save(step, small(step))
    assert_same(Checkpoints(two).restore(small(0)), (2, small(2)))


def test_a_run_that_is_stopped_and_goes_on_is_the_run_that_was_not(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    target = x @ np.array([1.0, -2.0, 0.5], np.float32)
    step = jax.jit(make_step(supervised(lambda params, x: x @ params, huber), OPTIMIZER))

    def train(folder, stopped_after=None):
        """Six steps, each on rows that its number decides; a request to stop comes from outside."""
        state, history = TrainState.create(jnp.zeros(3), OPTIMIZER), np.zeros(6, np.float32)
        config = {"loss": "huber", "optimizer": "adamw", "data": storage.digest((x, target))}
        checkpoints = Checkpoints(folder, config=config)
        first, (state, history) = checkpoints.restore((state, history)) or (0, (state, history))
        with Interruption() as interruption:
            for number in range(first, 6):
                rows = np.random.default_rng(number).integers(40, size=8)
                state, metrics = step(state, Batch(x[rows], target[rows]))
                history[number] = metrics["loss"].mean
                if number == stopped_after:
                    signal.raise_signal(signal.SIGTERM)
                if interruption.requested() or number == 5:
                    checkpoints.save(number + 1, (state, history), metric=history[number])
                    break
        return first, state, history

    _, *straight = train(tmp_path / "straight")
    assert train(tmp_path / "stopped", stopped_after=3)[0] == 0
    first, *resumed = train(tmp_path / "stopped")
    assert first == 4
    assert_same(resumed, straight)
    first, *again = train(tmp_path / "stopped")
    assert first == 6
    assert_same(again, straight)


# What is refused.


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weight": jnp.zeros((4, 2))}, r"\['weight'\]: float32 (4, 3) in the checkpoint, float32 (4, 2) now"),
        ({"weight": jnp.zeros((4, 3), jnp.bfloat16)}, r"float32 (4, 3) in the checkpoint, bfloat16 (4, 3) now"),
        ({"weight": None}, r"\['weight'\]: float32 (4, 3) in the checkpoint, absent now"),
        ({"extra": 1}, r"\['extra'\]: absent in the checkpoint, a Python int now"),
        ({"key": jax.random.key(0, impl="rbg")}, r"\['key'\]: key<fry> () in the checkpoint, key<rbg> () now"),
        ({"step": jnp.zeros((), jnp.int32)}, r"\['step'\]: a Python int in the checkpoint, int32 () now"),
        ({"step": True}, r"\['step'\]: a Python int in the checkpoint, a Python bool now"),
        (dict.fromkeys("abcde", 0), r"; and 2 more"),
    ],
)
def test_another_tree_is_refused_by_the_names_of_its_leaves(two, change, told):
    with pytest.raises(ValueError, match="nothing is cast") as refusal:
        Checkpoints(two).restore({**small(0), **change})
    assert told.replace("\\", "") in str(refusal.value)
    assert "\n" not in str(refusal.value)


CONFIG = {
    "loss": {"name": "huber", "delta": 1.0},
    "batch_size": 32,
    "data": {"shape": [100, 3], "many": list(range(100))},
    "seed": float("nan"),
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch_size": 64}, "batch_size: 32 in the checkpoint, 64 now"),
        ({"loss": {"name": "huber", "delta": 2.0}}, "loss.delta: 1.0 in the checkpoint, 2.0 now"),
        (
            {"loss": {"name": "mse"}},
            "loss.name: huber in the checkpoint, mse now; loss.delta: 1.0 in the checkpoint, absent now",
        ),
        ({"data": CONFIG["data"] | {"shape": (100, 4)}}, "data.shape: [100, 3] in the checkpoint, [100, 4] now"),
        ({"data": {"shape": [100, 3], "many": [*range(99), 0]}}, "data.many: [0, 1, 2, "),
        ({"extra": None}, "extra: absent in the checkpoint, None now"),
    ],
)
def test_another_configuration_is_refused_by_what_differs(tmp_path, change, told):
    Checkpoints(tmp_path, config=CONFIG).save(1, small(1))
    with pytest.raises(ValueError, match="of another run") as refusal:
        Checkpoints(tmp_path, config=CONFIG | change).restore(small(0))
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_same_configuration_and_none_are_accepted(tmp_path):
    Checkpoints(tmp_path, config=CONFIG).save(1, small(1))
    for config in (CONFIG | {"data": CONFIG["data"] | {"shape": (100, 3)}, "batch_size": 32.0}, None):
        assert Checkpoints(tmp_path, config=config).restore(small(0))[0] == 1


@pytest.mark.parametrize(
    ("refused", "error", "word"),
    [
        (lambda folder: Checkpoints(folder, keep=0), ValueError, "keep"),
        (lambda folder: Checkpoints(folder, config={"loss": jnp.ones(2)}), TypeError, "config"),
        (lambda folder: Checkpoints(folder, config=3), TypeError, "config"),
        (lambda folder: Checkpoints(folder).save(1, {"name": "huber"}), TypeError, r"\['name'\] is a str"),
        (lambda folder: Checkpoints(folder).save(1, {"f": len}), TypeError, r"\['f'\] is a builtin"),
        (lambda folder: Checkpoints(folder).save(1, {"t": np.array(["a"])}), TypeError, r"\['t'\] is a ndarray"),
        (lambda folder: Checkpoints(folder).save(1, {"seed": 2**64}), TypeError, r"\['seed'\] is an integer of more"),
        (lambda folder: Checkpoints(folder).save(1.5, {}), TypeError, "float"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(tmp_path, refused, error, word):
    with pytest.raises(error, match=word) as told:
        refused(tmp_path / "run")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_the_digest_of_data_tells_values_dtypes_shapes_and_names_apart():
    data = {"x": np.arange(6.0).reshape(2, 3), "y": jnp.arange(2.0)}
    others = [
        data | {"x": data["x"] + np.eye(2, 3) * 1e-15},
        data | {"x": data["x"].reshape(3, 2)},
        data | {"x": data["x"].astype(np.float32)},
        {"x": data["x"], "z": data["y"]},
    ]
    assert storage.digest(data) == storage.digest({"x": np.asfortranarray(data["x"]), "y": np.asarray(data["y"])})
    assert len({storage.digest(tree) for tree in [data, *others]}) == 5


# Faults.


def flip(path):
    data = bytearray(path.read_bytes())
    data[RANDOM.integers(len(data))] ^= 1 << RANDOM.integers(8)
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[: RANDOM.integers(path.stat().st_size)])


def overwrite(path):
    path.write_bytes(RANDOM.bytes(path.stat().st_size))


def remove(path):
    path.unlink()


@pytest.mark.parametrize("fault", [flip, truncate, overwrite, remove])
def test_a_fault_in_any_file_is_told_and_stepped_back_past(two, tmp_path, fault):
    files = [path.relative_to(two) for path in files_of(two / "step_2")]
    assert len(files) >= 5
    for number, name in enumerate(files):
        for again in range(3 if fault is flip else 1):
            folder = tmp_path / f"copy_{number}_{again}"
            shutil.copytree(two, folder)
            fault(folder / name)
            checkpoints = Checkpoints(folder)
            with pytest.warns(UserWarning, match="step_2 is damaged and passed over") as told:
                step, tree = checkpoints.restore(small(0))
            assert len(told) == 1
            assert str(folder) in str(told[0].message)
            assert "\n" not in str(told[0].message)
            assert name.relative_to("step_2").as_posix() in checkpoints.damaged[2]
            assert_same((step, tree), (1, small(1)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("garbage", "cannot be read"),
        ("null", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"content": {}, "sha256": ""}', "differs"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_garbled_manifest_is_told(two, text, told):
    (two / "step_2" / "manifest.json").write_text(text)
    with pytest.warns(UserWarning, match=f"manifest.json {told}"):
        assert Checkpoints(two).restore(small(0))[0] == 1
    assert Checkpoints(two).best is None


def test_folders_that_are_empty_half_written_or_of_another_step(two):
    (two / "step_3").mkdir()
    shutil.copytree(two / "step_2" / "arrays", two / "step_4" / "arrays")
    shutil.copytree(two / "step_2", two / "step_5")
    shutil.copytree(two / "step_1", two / "step_6")
    shutil.copy(two / "step_2" / "manifest.json", two / "step_6")
    (two / "step_seven").mkdir()
    (two / "unfinished_step_8").mkdir()
    checkpoints = Checkpoints(two)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert_same(checkpoints.restore(small(0)), (2, small(2)))
    assert len(told) == 4
    words = {3: "the folder is empty", 4: "manifest.json is missing", 5: "it holds step 2", 6: "it holds step 2"}
    assert checkpoints.damaged == words
    checkpoints.save(3, small(3))  # the same step as a damaged one
    assert {path.name for path in two.iterdir()} == {"step_1", "step_2", "step_3", "step_seven"}
    assert_same(Checkpoints(two).restore(small(0)), (3, small(3)))


def test_a_later_format_is_refused_and_not_taken_for_damage(two):
    folder = two / "step_2"
    _, content = storage.read_manifest(folder)
    (folder / "manifest.json").write_text(storage.render_manifest(content | {"format": 3}))
    with pytest.raises(CheckpointError, match="step_2 is of format 3, this reads 2"):
        Checkpoints(two).restore(small(0))


def test_if_all_are_damaged_it_is_an_error_and_not_a_fresh_start(two):
    flip(two / "step_1" / "manifest.json")
    for path in files_of(two / "step_2"):
        truncate(path)
    checkpoints = Checkpoints(two)
    with (
        pytest.warns(UserWarning, match="step_2"),
        pytest.raises(CheckpointError, match=r"step_2: .*; step_1: ") as told,
    ):
        checkpoints.restore(small(0))
    assert "\n" not in str(told.value)
    with pytest.raises(CheckpointError, match="step_2: "):
        Checkpoints(two).restore(small(0), step=2)


def test_damaged_checkpoints_do_not_crowd_out_the_good_one(two):
    for step in (3, 4):
        (two / f"step_{step}").mkdir()
    checkpoints = Checkpoints(two, keep=2)
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.restore(small(0))[0] == 2
    checkpoints.save(10, small(10))
    assert checkpoints.steps == [2, 10]
    assert_same(Checkpoints(two).restore(small(0)), (10, small(10)))


def test_leftovers_of_killed_saves_are_cleared_by_the_next(two):
    for name in ("unfinished_step_3", "unfinished_removal_of_1", "unfinished_step_2"):
        shutil.copytree(two / "step_1", two / name)
    reader = Checkpoints(two)
    assert reader.restore(small(0))[0] == 2
    assert (two / "unfinished_step_3").exists(), "a reader leaves alone what may be going on"
    reader.save(3, small(3))
    assert {path.name for path in two.iterdir()} == {"step_1", "step_2", "step_3"}


def failing(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("function", "number"), [("fsync", errno.EIO), ("mkdir", errno.EROFS), ("rename", errno.ENOSPC)]
)
def test_a_failing_disk_is_a_warning_and_then_an_error(two, monkeypatch, function, number):
    checkpoints = Checkpoints(two)
    checkpoints.restore(small(0))
    checkpoints.save(3, small(3))
    with monkeypatch.context() as broken:
        broken.setattr(os, function, failing(number))
        with pytest.warns(UserWarning, match=f"step_4 could not be saved in .*{os.strerror(number)}") as told:
            checkpoints.save(4, small(4))
        assert len(told) == 1
        with pytest.raises(CheckpointError, match="step_5") as refused:
            checkpoints.save(5, small(5))
        assert "\n" not in str(refused.value)
        with pytest.raises(CheckpointError, match="step_6"):
            Checkpoints(two).save(6, small(6))
    assert {path.name for path in two.iterdir()} == {"step_1", "step_2", "step_3"}
    checkpoints.save(7, small(7))
    assert_same(Checkpoints(two).restore(small(0)), (7, small(7)))


def test_a_folder_that_cannot_be_made_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"step_0 could not be saved in .*/file/run"):
        Checkpoints(tmp_path / "file" / "run").save(0, small(0))


def test_a_disk_that_takes_no_more_bytes(tmp_path):
    warned, refused, left = run_program("full_disk", tmp_path).splitlines()
    assert "step_2 could not be saved" in warned
    assert "training goes on" in warned
    assert "step_3 could not be saved" in refused
    assert left == "[1, 4] 4 499500.0"


@pytest.mark.slow
@pytest.mark.parametrize(("saved_on", "restored_on"), [(4, 1), (1, 4), (4, 2)])
def test_restored_on_another_number_of_devices(tmp_path, saved_on, restored_on):
    run_program("checkpoint_on_devices", tmp_path, saved_on, "save")
    run_program("checkpoint_on_devices", tmp_path, restored_on, "restore")


# Killed at any moment.


def killable(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {
        "large": rng.normal(size=(200, 1000)),
        "weights": [jnp.asarray(rng.normal(size=(7, number)), jnp.float32) for number in range(10)],
        "key": jax.random.key(step),
        "step": step,
    }


@pytest.mark.slow
def test_killed_at_any_moment_the_last_save_is_whole(tmp_path):
    """Twenty runs, each going on from where the last was killed, mostly in the middle of a save."""
    leftovers = 0
    for _ in range(20):
        process = start_program("save_for_ever", tmp_path)
        for line in process.stdout:
            if line.startswith("saved"):
                break
        time.sleep(RANDOM.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        saved, errors = process.communicate(timeout=60)
        assert errors == ""
        last = [int(line.split()[1]) for line in [line, *saved.splitlines()] if line.startswith("saved ")][-1]
        checkpoints = Checkpoints(tmp_path)
        step, tree = checkpoints.restore(killable(0))
        assert not checkpoints.damaged, "a killed save leaves nothing that looks like a checkpoint"
        assert last <= step <= last + 1
        assert_same(tree, killable(step))
        assert len(checkpoints.steps) <= 3, "two, and one whose removal was killed"
        unfinished = list(tmp_path.glob("unfinished_*"))
        leftovers += len(unfinished)
        assert len(unfinished) <= 2, "the next save clears away what is left"
    assert leftovers >= 5, "most kills were to interrupt a save"


class Overtaken(Checkpoints):
    """Checkpoints of which another run removes the newest once they are listed."""

    @property
    def steps(self):
        listed = super().steps
        shutil.rmtree(self.folder / "step_2", ignore_errors=True)
        return listed


def test_a_checkpoint_that_another_run_removes_meanwhile_is_not_damaged(two):
    checkpoints = Overtaken(two)
    assert_same(checkpoints.restore(small(0)), (1, small(1)))
    assert not checkpoints.damaged


@pytest.mark.slow
def test_two_savers_in_one_folder_do_not_damage_each_other(tmp_path):
    """The same run started twice: one goes on, the other is told."""
    both = [start_program("save_for_ever", tmp_path) for _ in range(2)]
    try:
        while all(process.poll() is None for process in both):
            time.sleep(0.1)
        told = [process for process in both if process.poll() is not None]
        assert len(told) == 1
        assert "is there already, of an earlier run or of one going on" in told[0].communicate()[1]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    checkpoints = Checkpoints(tmp_path)
    step, tree = checkpoints.restore(killable(0))
    assert not checkpoints.damaged
    assert_same(tree, killable(step))


# Many processes.


@pytest.mark.slow
def test_two_processes_agree_on_everything(tmp_path):
    address = free_address()
    both = [start_program("checkpoint_in_two_processes", tmp_path / "run", address, rank) for rank in (0, 1)]
    try:
        for process in both:
            output, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors[-3000:]
            assert "agree ['MainThread']" in output
    finally:
        for process in both:
            process.kill()
            process.communicate()
