"""ResidualStats: what NumPy finds in float64, however the data are split, weighted, masked, spoiled or spread."""

from __future__ import annotations

import functools
import math
import re
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import ROOT, close, run_program

import jaxloss
from jaxloss import metrics
from jaxloss.metrics import ResidualStats, one_pass, residual_stats
from jaxloss.metrics.wide_pass import wide_pass

RANDOM = np.random.default_rng(0)
NIST = ROOT.parent / "shared" / "data" / "nist" / "univariate"


def draw(size, offset=0.0, noise=0.5):
    """Targets N(offset, 1), and predictions whose errors grow with them."""
    target = RANDOM.normal(offset, 1, size).astype(np.float32)
    grown = noise * np.exp(0.3 * (target - offset))
    return (target + 0.1 + grown * RANDOM.standard_t(6, size)).astype(np.float32), target


def plain(pred, target, weights=None, where=None):
    """The figures of a summary, in float64 NumPy, of one output."""
    weights = np.broadcast_to(1.0 if weights is None else weights, np.shape(pred)).astype(np.float64)
    keep = np.broadcast_to(True if where is None else where, np.shape(pred))
    p, t, w = (np.asarray(x, np.float64)[keep] for x in (pred, target, weights))
    r, total = p - t, w.sum()

    def mean(x):
        return (w * x).sum() / total

    def moment(x, power):
        return mean((x - mean(x)) ** power)

    def correlation(x, y):
        return mean((x - mean(x)) * (y - mean(y))) / np.sqrt(moment(x, 2) * moment(y, 2))

    return {
        "n": r.size,
        "weight": total,
        "nonfinite": 0,
        "effective_n": total**2 / (w * w).sum(),
        "mse": mean(r * r),
        "rmse": np.sqrt(mean(r * r)),
        "mae": mean(np.abs(r)),
        "bias": mean(r),
        "max_error": np.abs(r[w > 0]).max(),
        "rmse_over_mae": np.sqrt(mean(r * r)) / mean(np.abs(r)),
        "sign_imbalance": mean(np.sign(r)),
        "r2": 1 - mean(r * r) / moment(t, 2),
        "explained_variance": 1 - moment(r, 2) / moment(t, 2),
        "pearson": correlation(p, t),
        "residual_sd": np.sqrt(moment(r, 2)),
        "target_mean": mean(t),
        "target_sd": np.sqrt(moment(t, 2)),
        "pred_mean": mean(p),
        "pred_sd": np.sqrt(moment(p, 2)),
        "residual_by_pred": correlation(p, r),
        "absolute_by_pred": correlation(p, np.abs(r)),
    }


def agrees(stats, want, rtol=2e-6, atol=2e-6):
    """Assert that the summary is that of `plain`."""
    got = stats.summary()
    assert {name for name in want if name not in got} == set()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol, atol, err_msg=name)


def joined(parts):
    return functools.reduce(ResidualStats.merge, parts)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("size", [1, 400, *(pytest.param(size, marks=pytest.mark.slow) for size in (7, 256, 5000))])
def test_figures_of_one_array(size, offset):
    pred, target = draw(size, offset)
    with np.errstate(invalid="ignore", divide="ignore"):
        want = plain(pred, target)
    if size == 1:
        want = {name: want[name] for name in ("n", "mse", "mae", "bias", "max_error", "target_mean")}
    agrees(ResidualStats.of(pred, target), want)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_weights_and_masks(offset):
    pred, target = draw((400,), offset)
    weights = RANDOM.uniform(0, 3, 400).astype(np.float32) * (RANDOM.uniform(size=400) < 0.8)
    where = RANDOM.uniform(size=400) < 0.6
    spoiled = [np.where(where, x, np.nan) for x in (pred, target, weights)]
    everywhere = np.ones(400, bool)
    for w, m in ((weights, everywhere), (np.ones_like(weights), where), (weights, where)):
        agrees(ResidualStats.of(pred, target, weights=w, where=m), plain(pred, target, w, m))
    left = ResidualStats.of(spoiled[0], spoiled[1], weights=spoiled[2], where=where)
    agrees(left, plain(pred, target, weights, where))
    three = ResidualStats.of(pred, target, weights=3 * np.ones_like(weights), where=True).summary()
    assert three["weight"] == 1200.0
    assert three["effective_n"] == 400.0
    plainly = ResidualStats.of(pred, target)
    close(ResidualStats.of(pred, target, weights=np.ones_like(weights), where=everywhere), plainly, 1e-6)


@pytest.mark.slow
def test_weights_or_masks_alone():
    pred, target = draw((400,), 1e4)
    weights, where = np.float32(RANDOM.uniform(0, 3, 400)), RANDOM.uniform(size=400) < 0.6
    for w, m in ((weights, None), (None, where), (2.0, None), (None, np.array(True))):
        agrees(ResidualStats.of(pred, target, weights=w, where=m), plain(pred, target, w, m))


def test_per_output_and_pooled():
    pred, target = draw((400, 2, 3))
    target += np.float32([[0, 1e3, 1e5]])
    pred += np.float32([[0, 1e3, 1e5]])
    weights = RANDOM.uniform(size=(400, 1, 1)).astype(np.float32)
    each = ResidualStats.of(pred, target, weights=weights, per_output=True)
    got = each.summary()
    for place in np.ndindex(2, 3):
        column = (slice(None), *place)
        for name, value in plain(pred[column], target[column], weights[:, 0, 0]).items():
            np.testing.assert_allclose(got[name][place], value, 2e-5, 1e-5, err_msg=name)
        order = np.argsort(-np.abs(pred[column] - target[column]), kind="stable")[:8]
        assert got["worst_row"][place].tolist() == order.tolist()
    assert got["quantiles"].shape == (2, 3, 9)
    pooled = ResidualStats.of(pred, target)
    agrees(pooled, plain(pred, target), 1e-5, 1e-5)
    errors = np.abs(pred - target).reshape(400, -1)
    assert pooled.summary()["worst_row"][0] == np.argmax(errors.max(1))


BATCHES = st.lists(st.integers(0, 40), min_size=1, max_size=8)


@hypothesis.given(BATCHES, st.randoms(), st.sampled_from([0.0, 1e4, 1e6]), st.booleans())
@hypothesis.settings(max_examples=8)
def test_merges_in_any_order_and_tree(sizes, order, offset, weighted):
    width = 40  # one shape to compile: the rest of a batch is masked
    pred, target = draw((len(sizes), width), offset)
    weights = np.float32(RANDOM.uniform(0.1, 2, pred.shape)) if weighted else np.ones_like(pred)
    where = np.arange(width) < np.array(sizes)[:, None]
    hypothesis.assume(where.sum() > 2)
    rows = np.arange(pred.size).reshape(pred.shape)
    parts = [
        ResidualStats.of(p, t, weights=w, where=m, rows=ids)
        for p, t, w, m, ids in zip(pred, target, weights, where, rows, strict=True)
    ]
    order.shuffle(parts)
    while len(parts) > 1:
        place = order.randrange(len(parts) - 1)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    agrees(parts[0], plain(pred, target, weights, where), 1e-5, 1e-5)
    want = np.argsort(-np.abs(pred - target)[where], kind="stable")[:8]
    got = parts[0].summary()
    assert got["worst_row"][: len(want)].tolist() == rows[where][want].tolist()
    assert set(got["worst_row"][len(want) :].tolist()) <= {-1}
    assert math.isclose(parts[0].histogram.value.sum(), weights[where].sum(dtype=np.float64), rel_tol=1e-6)


def test_empty_states_are_neutral():
    pred, target = draw((400,), 1e6)
    full = ResidualStats.of(pred, target)
    ones, everywhere = np.ones_like(pred), np.ones(400, bool)
    nothing = [
        ResidualStats.of(pred[:0], target[:0]),
        ResidualStats.of(pred, target, weights=ones, where=~everywhere),
        ResidualStats.of(pred, target, weights=0 * ones, where=everywhere),
    ]
    for empty in nothing:
        for name in ("rmse", "mae", "bias", "r2", "pearson", "max_error", "median_absolute_error", "residual_sd"):
            assert np.isnan(empty.summary()[name]), name
        assert empty.summary()["weight"] == 0.0
        assert empty.summary()["worst_row"].tolist() == [-1] * 8
        for both in (empty + full, full + empty):
            got, want = both.summary(), full.summary()
            for name in want:
                if name != "n":
                    np.testing.assert_allclose(got[name], want[name], 1e-6, err_msg=name)
    assert [empty.summary()["n"] for empty in nothing] == [0, 0, 400]
    assert sum([nothing[0], full]).summary()["n"] == 400


def test_entries_that_are_not_finite_are_counted_and_told():
    pred, target = draw((400,))
    spoiled, broken = pred.copy(), target.copy()
    spoiled[[3, 70]], broken[[9]] = [np.nan, np.inf], -np.inf
    spoiled[11], broken[11] = 3e38, -3e38
    bad = [3, 9, 11, 70]
    for weights, where in ((None, None), (np.ones(400), np.ones(400, bool)), (np.ones(400), np.arange(400) != 70)):
        stats = ResidualStats.of(spoiled, broken, weights=weights, where=where)
        lost = bad if where is None or where.all() else bad[:3]
        told = stats.summary()
        assert told["nonfinite"] == len(lost)
        assert told["n"] == 396
        assert all(np.isnan(told[name]) for name in ("rmse", "r2", "bias", "max_error", "octile_skew"))
        assert np.all(np.isnan(told["quantiles"]))
        assert told["worst_row"][: len(lost)].tolist() == lost
        finite = stats.summary(finite_only=True)
        keep = ~np.isin(np.arange(400), bad)
        for name, value in plain(pred, target, where=keep).items():
            if name != "nonfinite":
                np.testing.assert_allclose(finite[name], value, 2e-6, 2e-6, err_msg=name)
        assert told["nonfinite"] == finite["nonfinite"]
    weights = np.ones(400, np.float32)
    weights[5] = np.nan
    stats = ResidualStats.of(pred, target, weights=weights, where=np.ones(400, bool))
    assert stats.summary()["nonfinite"] == 1


def long_arrays(size, spoiled_at, offset=1e4):
    """More than a block and a tail: as it is, and with a block spoiled."""
    pred, target = draw((size,), offset)
    stats = ResidualStats.of(pred, target)
    agrees(stats, plain(pred, target), 5e-6, 5e-6)
    order = np.argsort(-np.abs(pred - target), kind="stable")[:8]
    assert stats.summary()["worst_row"].tolist() == order.tolist()
    spoiled = pred.copy()
    spoiled[spoiled_at] = np.nan
    keep = np.arange(size) != spoiled_at
    finite = ResidualStats.of(spoiled, target).summary(finite_only=True)
    for name, value in plain(pred, target, where=keep).items():
        if name != "nonfinite":
            np.testing.assert_allclose(finite[name], value, 5e-6, 5e-6, err_msg=name)
    return pred, target, stats, order


def few_present(pred, target, present_at):
    where = np.zeros(pred.size, bool)
    where[list(present_at)] = True
    agrees(ResidualStats.of(pred, target, where=where), plain(pred, target, where=where), 5e-6, 5e-6)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 192 entries in place of two million."""
    for name, value in {"LANES": 16, "STEP": 64, "STEPS": 3, "SAMPLE": 8}.items():
        monkeypatch.setattr(one_pass, name, value)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def wide(monkeypatch):
    """As an accelerator does it."""
    monkeypatch.setattr(residual_stats, "one_pass", wide_pass)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("small_blocks", "wide")
def test_wide_operations_tell_the_same():
    pred, target, *_ = long_arrays(3 * 192 + 64 + 11, 201, offset=1e6)
    few_present(pred, target, (7, 30, 195, 401, 577, 579, 643))
    test_weights_and_masks(1e6)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_many_blocks_and_a_tail():
    long_arrays(3 * 192 + 64 + 11, 201, offset=1e6)


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_blocks_with_few_entries_none_of_them_in_the_sample():
    pred, target = draw((3 * 192 + 64 + 11,), 1e6)
    few_present(pred, target, (7, 30, 195, 401, 577, 579, 643))


@pytest.mark.slow
def test_long_arrays_in_blocks():
    size = 2**21 + 2**17 + 1234
    pred, target, stats, order = long_arrays(size, 5000)
    few_present(pred, target, (7, 70_001, 2**21 + 3, 2**21 + 5, 2**21 + 2**17 + 7))
    close(metrics.median_absolute_error(pred, target), stats.summary()["median_absolute_error"], 5e-3)
    ids = np.arange(size, dtype=np.int32)[::-1].copy()
    assert set(ResidualStats.of(pred, target, rows=ids).summary()["worst_row"]) == set(ids[order])


def test_counts_past_two_to_the_24():
    one = ResidualStats.of(jnp.ones(1), jnp.zeros(1), moments=False)
    many = one
    for _ in range(25):
        many = many + many
    for stats in (many + one, one + many):
        assert stats.summary()["n"] == 2**25 + 1
        assert stats.summary()["weight"] == 2**25 + 1
        assert stats.histogram.value.sum() == 2**25 + 1


@pytest.mark.slow
def test_sums_of_constants():
    """Equal numbers, whose rounding errors all have one sign."""
    size = 2**22
    pred, target = np.full(size, 0.1, np.float32), np.zeros(size, np.float32)
    stats = ResidualStats.of(pred, target, weights=np.full(size, 0.1, np.float32), histogram=False)
    for _ in range(5):
        stats = stats.merge(stats)
    got, tenth = stats.summary(), np.float64(np.float32(0.1))
    assert got["n"] == 2**27
    np.testing.assert_allclose(got["weight"], 2**27 * tenth, 1e-6)
    np.testing.assert_allclose(got["mae"], tenth, 1e-6)
    np.testing.assert_allclose(got["mse"], tenth**2, 1e-6)
    assert got["target_sd"] == 0.0
    assert got["residual_sd"] == 0.0
    assert got["r2"] == 0.0


def test_quantiles_within_their_stated_error():
    for errors in (RANDOM.normal(0.3, 1, 20_000), RANDOM.standard_cauchy(20_000), RANDOM.lognormal(3, 2, 20_000)):
        for scale in (1e-30, 1.0, 1e30):
            residual = np.float32(errors * scale)
            got = ResidualStats.of(residual, np.zeros_like(residual), moments=False).summary()
            want = np.quantile(np.float64(residual), got["quantile_levels"])
            error = np.abs(got["quantiles"] - want)
            assert np.all(error <= np.maximum(np.abs(want) / 32, 1e-3 * scale))
            np.testing.assert_allclose(got["median_absolute_error"], np.median(np.abs(np.float64(residual))), 1 / 32)
            top = np.sort(np.float64(residual) ** 2)[::-1]
            np.testing.assert_allclose(got["top_share"], top[:200].sum() / top.sum(), 1 / 16)


@pytest.mark.slow
def test_top_share_and_skew_of_known_families():
    """The figures of normal errors, and of those with 1 % outliers of 20 standard deviations."""
    clean = np.float32(RANDOM.normal(size=100_000))
    got = ResidualStats.of(clean, np.zeros_like(clean)).summary()
    assert abs(got["rmse_over_mae"] - 1.2533) < 0.01
    assert abs(got["top_share"] - 0.085) < 0.005
    assert abs(got["octile_skew"]) < 0.02
    spoiled = np.where(np.arange(clean.size) % 100 == 0, 20 * clean, clean)
    assert abs(ResidualStats.of(spoiled, np.zeros_like(clean)).summary()["top_share"] - 0.81) < 0.03
    skewed = np.exp(clean)
    octiles = np.quantile(skewed, [0.125, 0.5, 0.875])
    want = (octiles[2] + octiles[0] - 2 * octiles[1]) / (octiles[2] - octiles[0])
    assert abs(ResidualStats.of(skewed, np.zeros_like(clean)).summary()["octile_skew"] - want) < 1e-3


@pytest.mark.slow
def test_scan_vmap_and_jit():
    pred, target = draw((6, 400), 1e4)

    def step(state, batch):
        return state + ResidualStats.of(*batch), None

    want = plain(pred, target)
    start = ResidualStats.of(pred[0, :0], target[0, :0])
    agrees(jax.jit(lambda p, t: jax.lax.scan(step, start, (p, t))[0])(pred, target), want, 1e-5, 1e-5)
    agrees(jax.vmap(ResidualStats.of)(pred, target).combine(), want, 1e-5, 1e-5)


@pytest.mark.slow
def test_shards_of_a_mesh_some_of_them_empty():
    assert run_program("residual_stats_on_four_devices", JAX_NUM_CPU_DEVICES="4").startswith("agree")


def test_parts_left_out():
    pred, target = draw((400,))
    cheap = ResidualStats.of(pred, target, moments=False, histogram=False, worst=0)
    want = plain(pred, target)
    got = cheap.summary()
    assert len(jax.tree.leaves(cheap)) == 3
    for name in ("n", "weight", "mse", "rmse", "mae", "bias", "max_error", "sign_imbalance"):
        np.testing.assert_allclose(got[name], want[name], 2e-6, 2e-6)
    assert not {"r2", "quantiles", "worst_row"} & set(got)
    assert (cheap + cheap).summary()["n"] == 800
    with pytest.raises(ValueError, match="moments=False"):
        cheap.moment("target", "target")
    full = ResidualStats.of(pred, target)
    assert full.moment("residual", "pred") == full.moment("pred", "residual")
    with pytest.raises(ValueError, match="is not kept; these are: pred·pred"):
        full.moment("target", "absolute")


def test_refusals():
    pred, target = draw((400,))
    stats = ResidualStats.of(pred, target)
    pred, target = draw((6, 2))
    for call, kind, words in (
        (lambda: ResidualStats.of(pred, target[:, 0]), jaxloss.ShapeError, "they must be equal"),
        (lambda: ResidualStats.of(pred, target, weights=np.ones(6)), jaxloss.ShapeError, "weights[:, None]"),
        (lambda: ResidualStats.of(pred, target, where=np.ones((6, 2))), TypeError, "a mask is boolean"),
        (lambda: ResidualStats.of(pred, target, rows=np.arange(5)), jaxloss.ShapeError, "rows has shape (5,)"),
        (lambda: ResidualStats.of(pred, target, rows=np.ones(6)), TypeError, "ids are integers"),
        (lambda: ResidualStats.of(jnp.float32(1), 1.0, per_output=True), jaxloss.ShapeError, "an axis of rows"),
        (lambda: stats.merge(stats._replace(moments=None)), jaxloss.ShapeError, "different outputs"),
        (lambda: stats.merge(stats._replace(largest=jnp.ones(2))), jaxloss.ShapeError, "different outputs"),
    ):
        with pytest.raises(kind, match=re.escape(words)):
            call()
    scalar = ResidualStats.of(jnp.float32(1), 3.0, moments=False, histogram=False, worst=1).summary()
    assert scalar["bias"] == -2.0
    assert scalar["worst_row"].tolist() == [0]


def test_half_precision_and_float64_inputs():
    pred, target = draw((400,))
    half = ResidualStats.of(jnp.bfloat16(pred), np.float64(target), moments=False, histogram=False, worst=0)
    assert half.largest.dtype == jnp.float32
    want = plain(np.float32(jnp.bfloat16(pred)), target)
    np.testing.assert_allclose(half.summary()["mse"], want["mse"], 1e-6)


def nist(name):
    if not NIST.exists():
        pytest.skip(f"{NIST} is absent")
    words = (NIST / f"{name}.dat").read_text().partition("Data: Y")[2].split()[1:]
    return [Fraction(word) for word in words]


def in_float64(values, where=True):
    """The statistics of minus the values, padded to one length so that they compile once."""
    padded = np.pad(values, (0, 1001 - values.size), constant_values=np.nan)
    where = np.arange(1001) < values.size if where is True else np.pad(where, (0, 1001 - values.size))
    return ResidualStats.of(jnp.zeros(1001), padded, where=where, histogram=False, worst=0)


def digits(got, want):
    return 16 if got == want else -math.log10(abs(got - want) / abs(want))


@pytest.mark.parametrize(
    ("name", "unit", "mean", "sd"),
    [
        ("Lew", 1, -177.435, 277.332168044316),
        ("NumAcc1", 1, 10000002.0, 1.0),
        ("NumAcc3", 10, 10000002.0, 1.0),  # in tenths, which binary numbers hold
    ],
)
def test_certified_means_and_deviations(name, unit, mean, sd):
    exact = [value * unit for value in nist(name)]
    values = np.array([float(value) for value in exact])
    with jax.enable_x64(True):
        stats = ResidualStats.of(jnp.zeros(len(values)), jnp.asarray(values))
        split = joined(
            [ResidualStats.of(jnp.zeros(len(part)), jnp.asarray(part)) for part in np.array_split(values, 3)]
        )
        for got in (stats.summary(), split.summary()):
            correction = math.sqrt(len(values) / (len(values) - 1))
            assert digits(got["target_mean"], mean) >= 13
            assert digits(-got["bias"], mean) >= 13
            assert digits(got["target_sd"] * correction, sd) >= 13
            assert digits(got["residual_sd"] * correction, sd) >= 13


def test_deviation_of_numacc3_as_read():
    """The floats nearest to 1000000.1 … have another deviation than the decimals: theirs is met."""
    values = [float(value) for value in nist("NumAcc3")]
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)
    with jax.enable_x64(True):
        got = in_float64(np.array(values)).summary()
    assert digits(got["target_mean"], float(mean)) >= 13
    assert digits(got["target_sd"] * math.sqrt(len(values) / (len(values) - 1)), math.sqrt(variance)) >= 13


@jax.jit
def streamed(pred, target, starts, sizes):
    """The statistics of batches, one after the other; every batch is padded to 1000 rows."""

    def step(state, batch):
        start, size = batch
        part = [jax.lax.dynamic_slice(values, (start,), (1000,)) for values in (pred, target)]
        stats = ResidualStats.of(*part, where=jnp.arange(1000) < size, histogram=False, worst=0)
        return state + stats, None

    nothing = ResidualStats.of(pred[:0], target[:0], histogram=False, worst=0)
    return jax.lax.scan(step, nothing, (starts, sizes))[0]


def stream(offset, rows, seed):
    """R² of rows streamed in ragged batches of 1 … 1000, in float32 under `scan`, and in float64 at once."""
    random = np.random.default_rng(seed)
    sizes = []
    while sum(sizes) < rows:
        sizes.append(int(random.integers(1, 1001)))
    target = random.normal(offset, 1, sum(sizes)).astype(np.float32)
    pred = (target + random.normal(0, 0.6, target.size)).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    padded = [jnp.asarray(np.pad(values, (0, 1000 + -values.size % 2**18))) for values in (pred, target)]
    starts, sizes = (np.pad(values, (0, -len(values) % 512)) for values in (starts, sizes))
    got = streamed(*padded, jnp.asarray(starts), jnp.asarray(sizes)).summary()
    p, t = pred.astype(np.float64), target.astype(np.float64)
    want = {
        "r2": 1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum(),
        "pearson": np.corrcoef(p, t)[0, 1],
        "mae": np.abs(p - t).mean(),
    }
    assert got["n"] == target.size
    return got, want


@pytest.mark.parametrize("offset", [1e4, 1e6])
@pytest.mark.parametrize("rows", [200_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_r2_of_a_ragged_stream_far_from_zero(offset, rows):
    got, want = stream(offset, rows, 1)
    assert abs(got["r2"] - want["r2"]) < 1e-5  # the bar is 1e-4
    assert abs(got["pearson"] - want["pearson"]) < 1e-5
    assert abs(got["mae"] / want["mae"] - 1) < 1e-5
