"""Standardizer: statistics that merge exactly, survive offsets, and undo themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import close

from jaxloss import ShapeError, Standardizer, observed

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((50, 3)) * [1.0, 10.0, 0.1] + [0.0, 5.0, -3.0]


@pytest.mark.parametrize("xp", [np, jnp])
def test_fit_gives_mean_and_population_deviation(xp):
    units = Standardizer.fit(xp.asarray(X, xp.float32 if xp is jnp else float))
    close(units.mean, X.mean(0), rtol=1e-5)
    close(units.scale, X.std(0), rtol=1e-5)
    assert int(units.count) == 50
    standard = units.transform(X)
    close(standard.mean(0), np.zeros(3), atol=1e-5)
    close(standard.std(0), np.ones(3), rtol=1e-5)


def test_scikit_learn():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    want = preprocessing.StandardScaler().fit(X)
    units = Standardizer.fit(X)
    close(units.scale, want.scale_, rtol=1e-13, atol=0)
    close(units.transform(X), want.transform(X), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("value", [0.0, 0.1, -7e8])
def test_a_constant_column_has_scale_one(value):
    x = np.stack([X[:, 0], np.full(50, value)], 1)
    units = Standardizer.fit(x)
    assert units.scale[1] == 1.0
    assert not units.transform(x)[:, 1].any()
    merged = Standardizer.fit(x[:7]).merge(Standardizer.fit(x[7:]))
    assert merged.scale[1] == 1.0
    one_row = Standardizer.fit(x[:1])
    assert one_row.scale.tolist() == [1.0, 1.0]


def test_an_offset_of_a_billion_is_survived():
    offset = 1e9 + X
    units = Standardizer.fit(offset)
    exact = offset - 1e9  # the offset data's own rounding is not the standardizer's
    close(units.scale, exact.std(0), rtol=1e-12, atol=0)
    merged = Standardizer.fit(offset[:20]).merge(Standardizer.fit(offset[20:]))
    close(merged.scale, exact.std(0), rtol=1e-8, atol=0)
    close(units.inverse(units.transform(offset)), offset, rtol=1e-15, atol=0)


@pytest.mark.parametrize("cut", [1, 13, 49])
def test_merge_is_the_fit_of_both(cut):
    whole, parts = Standardizer.fit(X), (Standardizer.fit(X[:cut]), Standardizer.fit(X[cut:]))
    for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
        close(tuple(merged), tuple(whole), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("xp", [np, jnp])
def test_masked_entries_are_absent(xp):
    x = (X + np.array([0, 1e4, 0])).astype(np.float32)
    where = RANDOM.uniform(size=X.shape) < 0.7
    where[:, 2] = False
    where[4, 2] = True
    spoiled = np.where(where, x, np.nan)
    for units in (
        Standardizer.fit(xp.asarray(spoiled), where=where),
        Standardizer.fit(xp.asarray(spoiled), where=observed(xp.asarray(spoiled))),
        Standardizer.fit(xp.asarray(spoiled[:7]), where=where[:7]).merge(
            Standardizer.fit(xp.asarray(spoiled[7:]), where=where[7:])
        ),
    ):
        columns = [x[where[:, column], column].astype(np.float64) for column in range(3)]
        close(units.mean, np.array([column.mean() for column in columns]), rtol=1e-6)
        close(units.scale, np.array([columns[0].std(), columns[1].std(), 1.0]), rtol=1e-5)
        assert units.count.tolist() == where.sum(0).tolist()
    rows = Standardizer.fit(xp.asarray(x), where=where[:, :1])
    close(rows.mean, x[where[:, 0]].mean(0), rtol=1e-6)


def test_a_column_of_which_nothing_is_seen_is_left_as_it_is():
    nothing = Standardizer.fit(np.full((3, 2), np.nan), where=np.zeros((1, 1), bool))
    assert (nothing.mean.tolist(), nothing.scale.tolist(), nothing.count.tolist()) == ([0, 0], [1, 1], [0, 0])
    some = Standardizer.fit(X[:, :2] + 1e6)
    for merged in (nothing.merge(some), some.merge(nothing)):
        close((merged.mean, merged.scale), (some.mean, some.scale), rtol=1e-15, atol=0)


def test_a_stream_and_the_shards_of_an_axis():
    close(tuple(Standardizer.fit_stream(X[first : first + 7] for first in range(0, 50, 7))), tuple(Standardizer.fit(X)))
    x = jnp.asarray(X, jnp.float32) + 1e3

    def shard(x, where):
        return Standardizer.fit(x, where=where).all_merge("data")

    where = jnp.arange(50).reshape(5, 10, 1) >= 10  # the first shard is empty
    merged = jax.vmap(shard, axis_name="data")(x.reshape(5, 10, 3), where)
    want = Standardizer.fit(x[10:])
    for leaf in range(5):
        close((merged.mean[leaf], merged.scale[leaf]), (want.mean, want.scale), rtol=1e-5)


@pytest.mark.parametrize("shape", [(50,), (50, 3), (10, 5, 3)])
def test_inverse_undoes_transform_on_any_rank(shape):
    x = np.resize(X, shape)
    units = Standardizer.fit(x)
    assert units.mean.shape == shape[1:]
    close(units.inverse(units.transform(x)), x, rtol=1e-13, atol=1e-13)
    close(units.inverse(units.transform(x[0])), x[0], rtol=1e-13, atol=1e-13)


def test_integers_are_data():
    close(Standardizer.fit(np.array([[1], [3]])).transform(np.array([[1], [3]])), np.array([[-1.0], [1.0]]))
    close(Standardizer.fit(jnp.array([[1], [3]])).scale, np.ones(1))


def test_it_is_a_pytree_and_fits_under_jit_and_vmap():
    x = jnp.asarray(X, jnp.float32)
    units = jax.jit(Standardizer.fit)(x)
    close(tuple(units), tuple(Standardizer.fit(x)), rtol=1e-5, atol=1e-5)
    close(jax.jit(lambda units, x: units.transform(x))(units, x), units.transform(x), rtol=1e-5, atol=1e-5)
    stacked = jax.vmap(Standardizer.fit)(x.reshape(2, 25, 3))
    assert stacked.mean.shape == (2, 3)
    halves = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in (0, 1)]
    close(halves[0].merge(halves[1]).scale, units.scale, rtol=1e-5)
    assert len(jax.tree.leaves(units)) == 3


def test_jax_arrays_keep_their_dtype_and_numpy_its_precision():
    host = Standardizer.fit(X.astype(np.float32))
    assert host.mean.dtype == np.float64
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.asarray(X, dtype)
        assert host.transform(x).dtype == dtype
        assert host.inverse(x).dtype == dtype
        assert Standardizer.fit(x).mean.dtype == jnp.float32
    with jax.enable_x64(True):
        assert host.transform(jnp.asarray(X, jnp.float32)).dtype == jnp.float32


def test_gradients_flow_through():
    units = Standardizer.fit(X)
    gradient = jax.grad(lambda x: units.inverse(x).sum())(jnp.zeros((2, 3)))
    close(gradient, np.broadcast_to(units.scale, (2, 3)))


def test_refusals():
    units = Standardizer.fit(X)
    for call, kind in (
        (lambda: units.transform(X[:, :2]), ShapeError),
        (lambda: units.inverse(X[:, :1]), ShapeError),
        (lambda: units.transform(1.0), ShapeError),
        (lambda: units.merge(Standardizer.fit(X[:, :2])), ShapeError),
        (lambda: Standardizer.fit(np.zeros((0, 3))), ValueError),
        (lambda: Standardizer.fit(1.0), ValueError),
        (lambda: Standardizer.fit(X, where=np.ones(X.shape)), TypeError),
        (lambda: Standardizer.fit(X, where=np.ones(3, bool)), ShapeError),
        (lambda: Standardizer.fit_stream([]), ValueError),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("Standardizer.")
