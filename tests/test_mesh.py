"""Several devices and several processes: the numbers of one device, by one all-reduce."""

import socket
import subprocess
import sys
import textwrap

import pytest
from support import ROOT, run_python

SETUP = textwrap.dedent("""
    import re, sys
    import jax
    jax.config.update("jax_num_cpu_devices", {devices})
    jax.config.update("jax_numpy_rank_promotion", "raise")
    {before}
    import jax.numpy as jnp, numpy as np, optax
    from jax.sharding import PartitionSpec as P
    from jaxloss import huber, mse
    from jaxloss.train import Batch, TrainState, fit, make_step, supervised

    rng = np.random.default_rng(0)
    ROWS = 203
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    target = (np.sin(x[:, 0]) + x[:, 1] + 0.1 * rng.normal(size=ROWS)).astype(np.float32)
    weights, where = rng.uniform(0.5, 2, ROWS).astype(np.float32), rng.random(ROWS) < 0.7
    where[:51] = False  # the first device has nothing to add
    batch = Batch(x, np.where(where, target, np.nan), weights, where)
    params = {{"in": 0.3 * rng.normal(size=(4, 8)).astype(np.float32), "out": np.zeros(8, np.float32)}}
    optimizer = optax.adam(0.01)

    def net(params, x):
        return jnp.tanh(x @ params["in"]) @ params["out"]

    def losses(data=batch, epochs=200, **settings):
        return fit(net, params, data, loss=mse, optimizer=optimizer, epochs=epochs, **settings)
""")

DEVICES = textwrap.dedent("""
    mesh = jax.make_mesh((4,), ("data",))
    alone = losses()
    padded = Batch(*(np.concatenate([leaf, leaf[:1]]) for leaf in batch))
    padded.where[-1] = False
    for name, result in {
        "devices": losses(mesh=mesh),
        "micro-batches": losses(micro_batches=7),
        "both": losses(padded, mesh=mesh, micro_batches=3),
        "sharded": losses(mesh=mesh, shard_params=lambda path, leaf: P(*[None] * (leaf.ndim - 1), "data")),
    }.items():
        np.testing.assert_allclose(result.history["loss"], alone.history["loss"], 2e-6, err_msg=name)
        np.testing.assert_allclose(result.history["loss"][-1], alone.history["loss"][-1], 1e-6, err_msg=name)
        last = jax.tree.map(lambda got, want: float(np.abs(got - want).max()), result.params, alone.params)
        assert max(last.values()) < 1e-5, (name, last)

    # shuffled batches: another draw on each number of devices, but every row counts once
    for size in (32, 30):
        result = losses(epochs=1, batch_size=size, mesh=mesh, average=0.5, validation=(x, target))
        still = fit(net, params, batch, loss=mse, optimizer=optax.sgd(0.0), epochs=1, batch_size=size, mesh=mesh)
        np.testing.assert_allclose(still.history["loss"][0], alone.history["loss"][0], 1e-6)
        evaluated = float(mse(net(result.params, x), target))
        np.testing.assert_allclose(result.history["validation_loss"], evaluated, 1e-6)

    large = (np.tile(x, (60, 1)), np.tile(target, 60))  # validated in parts
    result = losses(epochs=1, mesh=mesh, validation=large)
    np.testing.assert_allclose(result.history["validation_loss"], mse(net(result.params, large[0]), large[1]), 1e-5)

    def stream():
        for first in range(0, 200, 50):
            yield Batch(*(leaf[first : first + 50] for leaf in batch))

    class Stream:
        __iter__ = lambda self: stream()

    streams = [losses(Stream(), epochs=20, **settings) for settings in ({}, {"mesh": mesh})]
    np.testing.assert_allclose(*(result.history["loss"] for result in streams), 1e-5)
    gradients = []
    for where_to in (None, mesh):
        steps = fit(net, params, batch, loss=mse, optimizer=optax.sgd(1.0), epochs=1, mesh=where_to)
        moved = jax.tree.map(lambda new, old: np.asarray(new) - old, steps.params, params)
        gradients.append(np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(moved))))
    assert abs(gradients[1] / gradients[0] - 1) < 1e-6, gradients
    print("agree")
""")

COLLECTIVES = textwrap.dedent("""
    sys.path.insert(0, "tests")
    from catalogue import ROWS as CATALOGUE
    from jax.tree_util import Partial
    from jaxloss.train import sources
    from support import sample

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    real, texts = sources.train, []

    def spy(*args, **kwargs):
        texts.append(real.lower(*args, **kwargs).compile().as_text())
        return real(*args, **kwargs)

    sources.train = spy
    KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    start = {"kernel": jnp.full((3, 2), 0.3), "offset": jnp.full((1, 2), 0.2)}

    def line(params, x):
        return x @ params["kernel"] + params["offset"]

    for row in CATALOGUE:
        _, targets = sample(row, (48, 2))
        data = Batch(np.linspace(0.1, 1, 144, dtype=np.float32).reshape(48, 3), np.asarray(targets),
                     np.linspace(0.5, 2, 48, dtype=np.float32)[:, None], (np.arange(96) % 3 > 0).reshape(48, 2))
        fit(line, start, data, loss=Partial(row.loss, **row.usual), optimizer=optax.sgd(1e-4), epochs=1, batch_size=20,
            micro_batches=5, mesh=mesh)
        found = re.findall(rf"= [^=]*? ({KINDS})(?:-start)?\\(", texts.pop())
        assert found == ["all-reduce"], (row.name, found)
    print("one each", len(CATALOGUE))
""")

PROCESSES = textwrap.dedent("""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.{axes},))
    assert jax.process_count() == 2
    with jax.set_mesh(mesh):
        result = losses(mesh=mesh)
    assert {{leaf.sharding.mesh for leaf in jax.tree.leaves(result.state)}} == {{mesh}}
    parts = [Batch(*(leaf[first + 25 * jax.process_index() :][:25] for leaf in batch)) for first in range(0, 200, 50)]
    streamed = losses(parts, epochs=20, mesh=mesh)
    if jax.process_index() == 0:
        print("losses", *result.history["loss"][[0, 99, 199]].tolist(), *streamed.history["loss"][[0, 19]].tolist())
""")


EXPLICIT = textwrap.dedent("""
    import pytest, tempfile
    from jax.sharding import NamedSharding
    from jaxloss.train import fit_many

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    on = jax.tree.map(lambda leaf: jax.device_put(leaf[:200], NamedSharding(mesh, P("data"))), batch)
    seen = []

    def callback(epoch, state, line):
        seen.append(float(mse(net(state.params, on.x), jnp.nan_to_num(on.target))))

    def both(ambient):
        assert jax.sharding.get_abstract_mesh().empty != ambient
        with tempfile.TemporaryDirectory() as folder:
            settings = {"mesh": mesh, "validation": (on.x, jnp.nan_to_num(on.target)), "callbacks": [callback]}
            first = losses(on, 3, run_dir=folder, **settings)
            again = losses(on, 5, run_dir=folder, resume=True, **settings)
        stream = losses([jax.tree.map(lambda leaf: leaf[:40], batch)], 5, mesh=mesh)
        stacked = jax.tree.map(lambda leaf: np.stack([leaf] * 3), params)
        many = fit_many(net, stacked, batch, loss=mse, optimizer=optimizer, epochs=5, mesh=mesh)
        for result in (first, again, stream, many):
            for leaf in jax.tree.leaves(result.params):
                assert leaf.sharding.mesh == mesh, leaf.sharding
        net(again.params, on.x).block_until_ready()
        many.params["in"][0] + again.params["in"], again.state.params["in"] + stream.params["in"]
        return again.history["loss"].tolist(), stream.history["loss"].tolist(), many.history["loss"].tolist()

    outside = both(False)
    with jax.set_mesh(mesh):
        assert both(True) == outside
    assert len(seen) == 10, seen
    for name, wrong, word in (
        ("mesh", {"mesh": 4}, "jax.make_mesh, got 4"),
        ("shard_params", {"mesh": mesh, "shard_params": lambda path, leaf: None}, "got None of params['in']"),
    ):
        with pytest.raises(TypeError, match=name) as told:
            losses(**wrong)
        assert word in str(told.value), told.value
    mesh, stacked = jax.make_mesh((2, 2), ("a", "b")), jax.tree.map(lambda leaf: np.stack([leaf] * 3), params)
    with pytest.raises(ValueError, match="one axis"):
        fit_many(net, stacked, batch, loss=mse, optimizer=optimizer, epochs=1, mesh=mesh)
    print("served")
""")


@pytest.mark.slow
def test_a_mesh_with_explicit_axes_is_served_also_where_it_is_set():
    assert run_python(SETUP.format(devices=4, before="") + EXPLICIT).strip() == "served"


@pytest.mark.slow
def test_four_devices_and_micro_batches_agree_with_one():
    assert run_python(SETUP.format(devices=4, before="") + DEVICES).strip() == "agree"


@pytest.mark.slow
def test_one_all_reduce_in_the_step_of_every_loss():
    assert run_python(SETUP.format(devices=4, before="") + COLLECTIVES).startswith("one each")


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_two_processes_agree_with_one(axes):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
    code = SETUP.format(devices=2, before=f"jax.distributed.initialize({address!r}, 2, int(sys.argv[1]))")
    code += PROCESSES.format(axes=axes)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    done = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], done
    told = next(line for line in done[0][0].splitlines() if line.startswith("losses"))
    got = [float(word) for word in told.split()[1:]]
    alone = SETUP.format(devices=1, before="") + textwrap.dedent("""
        parts = [Batch(*(leaf[first : first + 50] for leaf in batch)) for first in range(0, 200, 50)]
        streamed = losses(parts, epochs=20)
        print(*losses().history["loss"][[0, 99, 199]].tolist(), *streamed.history["loss"][[0, 19]].tolist())
    """)
    want = [float(word) for word in run_python(alone).split()]
    assert max(abs(a / b - 1) for a, b in zip(got, want, strict=True)) < 2e-6, (got, want)
