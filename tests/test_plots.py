"""What is drawn, read back from the artists, against NumPy and SciPy; and what is told on the figure."""

from __future__ import annotations

import doctest
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from catalogue import ROWS
from jax.tree_util import Partial
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from support import refused, run_program

import jaxloss
from jaxloss import (
    Interval,
    MultivariateNormal,
    Normal,
    Poisson,
    ShapeError,
    huber,
    irls_weight,
    mae,
    mse,
    plots,
    slope,
)
from jaxloss.contract import POSITIVE
from jaxloss.metrics import ResidualStats
from jaxloss.plots.entries import POINTS, WORST

RANDOM = np.random.default_rng(0)
OF_RESIDUALS = [
    plots.actual_against_predicted,
    plots.residual_histogram,
    plots.residual_qq,
    plots.residuals_against_prediction,
    plots.squared_error_share,
]
OF_DISTRIBUTIONS = [plots.intervals, plots.pit_histogram, plots.reliability]

each_picture = pytest.mark.parametrize("picture", OF_RESIDUALS, ids=lambda picture: picture.__name__)


def drawn(n=400, spread=1.0):
    pred = RANDOM.normal(10, 3, n).astype(np.float32)
    return pred, (pred + spread * RANDOM.standard_t(3, n)).astype(np.float32)


def points(axes):
    """Where the dots of a scatter are."""
    (dots,) = [artist for artist in axes.collections if isinstance(artist, PathCollection)]
    return np.asarray(dots.get_offsets())


def line(axes, label):
    """The data of the line with that label."""
    (found,) = [artist for artist in axes.get_lines() if artist.get_label() == label]
    return np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)


def bars(axes):
    (steps,) = [artist for artist in axes.patches if isinstance(artist, StepPatch)]
    return steps.get_data().values, steps.get_data().edges


def everything(axes):
    """All numbers in the picture."""
    lines = [np.ravel(artist.get_xydata()) for artist in axes.get_lines()]
    dots = [np.ravel(artist.get_offsets()) for artist in axes.collections]
    stairs = [np.ravel(artist.get_data().values) for artist in axes.patches if isinstance(artist, StepPatch)]
    return np.concatenate([*lines, *dots, *stairs, axes.get_xlim(), axes.get_ylim()])


def told(axes):
    return "\n".join(text.get_text() for text in axes.texts)


def least(values, level):
    """The least value with that share of all values at or below it."""
    return sorted(values)[max(math.ceil(round(level * len(values), 9)) - 1, 0)]


def test_points_are_predictions_and_residuals():
    pred, target = drawn()
    against, actual = plots.residuals_against_prediction(pred, target), plots.actual_against_predicted(pred, target)
    np.testing.assert_array_equal(points(against), np.column_stack([pred, pred.astype(float) - target]))
    np.testing.assert_array_equal(points(actual), np.column_stack([pred, target]))


@pytest.mark.parametrize("n", [60, 400, 3000])
def test_running_median_and_band_are_those_of_the_groups(n):
    pred, target = drawn(n)
    axes = plots.residuals_against_prediction(pred, target)
    number = min(n // 25, round(1.2 * n ** (1 / 3)))
    shares, tail = [k / number for k in range(1, number)], 1 / number
    while n * tail >= 50:
        tail /= 2
        shares += [tail, 1 - tail]
    edges = [-np.inf, *sorted({least(pred, share) for share in shares}), np.inf]
    residual = pred.astype(float) - target
    groups = [(pred > low) & (pred <= high) for low, high in itertools.pairwise(edges)]
    groups = [group for group in groups if group.any()]
    assert min(group.sum() for group in groups) >= 24
    centres, medians = line(axes, "running median")
    np.testing.assert_array_equal(centres, [least(pred[group], 0.5) for group in groups])
    np.testing.assert_array_equal(medians, [least(residual[group], 0.5) for group in groups])
    np.testing.assert_array_equal(line(axes, "middle 80 %")[1], [least(residual[group], 0.1) for group in groups])
    np.testing.assert_array_equal(line(axes, "_")[1], [least(residual[group], 0.9) for group in groups])


def test_few_or_equal_predictions_have_no_running_median():
    assert not plots.residuals_against_prediction(*drawn(49)).get_legend()
    _, target = drawn()
    assert not plots.residuals_against_prediction(np.full(400, 3, np.float32), target).get_legend()


def test_histogram_is_that_of_numpy_beside_the_normal_of_same_mean_and_sd():
    pred, target = drawn()
    residual = pred.astype(float) - target
    axes = plots.residual_histogram(pred, target)
    density, edges = bars(axes)
    counts, _ = np.histogram(residual, edges)
    np.testing.assert_allclose(density, counts / 400 / np.diff(edges))
    beyond = ((residual < edges[0]) | (residual > edges[-1])).sum()
    assert f"{beyond} of 400 residuals" in told(axes)
    x, normal = line(axes, "normal of same\nmean and sd")
    np.testing.assert_allclose(normal, scipy.stats.norm.pdf(x, residual.mean(), residual.std()))


def test_qq_points_are_the_sorted_residuals_at_normal_quantiles():
    pred, target = drawn(200)
    residual = pred.astype(float) - target
    fit, qq = plots.residual_qq(pred, target).get_lines()
    positions = scipy.stats.mstats.plotting_positions(np.arange(200), 0.5, 0.5)
    np.testing.assert_allclose(qq.get_xdata(), scipy.stats.norm.ppf(positions), atol=1e-12)
    np.testing.assert_array_equal(qq.get_ydata(), np.sort(residual))
    quartiles = [least(residual, level) for level in (0.25, 0.75)]
    np.testing.assert_allclose(np.interp(scipy.stats.norm.ppf([0.25, 0.75]), *fit.get_data()), quartiles, rtol=1e-9)


def test_qq_of_many_keeps_the_ends():
    pred, target = drawn(30_000)
    residual = np.sort(pred.astype(float) - target)
    shown = plots.residual_qq(pred, target).get_lines()[1].get_ydata()
    assert 400 < len(shown) <= 600
    assert set(shown) <= set(residual)
    np.testing.assert_array_equal(shown[[*range(50), *range(-50, 0)]], residual[[*range(50), *range(-50, 0)]])


def test_share_of_squared_error():
    pred, target = drawn(2000)
    squares = np.sort((pred.astype(float) - target) ** 2)[::-1]
    axes = plots.squared_error_share(pred, target)
    top, share = axes.get_lines()[-1].get_xydata()[0]
    assert top == 0.01
    np.testing.assert_allclose(share, squares[:20].sum() / squares.sum())
    np.testing.assert_allclose(share, ResidualStats.of(pred, target).summary()["top_share"], rtol=0.06)
    assert axes.get_title(loc="left") == f"The worst 1 % carry {100 * share:.3g} %"
    x, y = line(axes, "these errors")
    at = [1 / 2000, 0.05, 0.5, 1]
    cumulated = [squares[: round(2000 * part)].sum() / squares.sum() for part in at]
    np.testing.assert_allclose(np.interp(at, x, y), cumulated, rtol=2e-3)


def test_share_of_squared_error_of_normal_errors():
    errors = RANDOM.normal(size=200_000).astype(np.float32)
    axes = plots.squared_error_share(errors, np.zeros_like(errors))
    x, y = line(axes, "normal errors")
    np.testing.assert_allclose(np.interp([0.01, 0.1], x, y), [0.0845, 0.4393], rtol=2e-3)
    mine = np.interp(x, *line(axes, "these errors"))
    np.testing.assert_allclose(mine[x > 0.01], y[x > 0.01], rtol=0.03)
    few = plots.squared_error_share(errors[:20], np.zeros(20, np.float32))
    assert few.get_title(loc="left").startswith("The worst 5 %"), "one of 20"


@each_picture
def test_masked_entries_and_those_of_weight_0_are_absent(picture):
    pred, target = drawn(100)
    keep = RANDOM.uniform(size=100) < 0.7
    spoiled = np.where(keep, target, np.nan).astype(np.float32)
    want = everything(picture(pred[keep], target[keep]))
    np.testing.assert_array_equal(everything(picture(pred, spoiled, where=keep)), want)
    for values in (target, spoiled):
        axes = picture(pred, values, weights=keep.astype(np.float32))
        np.testing.assert_array_equal(everything(axes), want)
        assert "not finite" not in told(axes)


@each_picture
def test_a_weight_of_two_is_the_row_twice(picture):
    pred, target = drawn(45)  # too few for a running median, whose groups depend on how many rows there are
    weights = RANDOM.integers(1, 4, 45)
    axes = picture(pred, target, weights=weights)
    again = picture(np.repeat(pred, weights), np.repeat(target, weights))
    if picture in (plots.actual_against_predicted, plots.residuals_against_prediction):
        (dots,) = axes.collections
        np.testing.assert_allclose(dots.get_sizes(), 30 * weights / weights.mean())
        assert "its weight" in told(axes)
    elif picture is plots.residual_histogram:  # bins by the effective number of rows
        density, edges = bars(axes)
        counts, _ = np.histogram(np.repeat(pred.astype(float) - target, weights), edges)
        np.testing.assert_allclose(density, counts / weights.sum() / np.diff(edges))
    elif picture is plots.residual_qq:
        ascending = weights[np.argsort(pred - target)]
        levels = (np.cumsum(ascending) - ascending / 2) / weights.sum()
        np.testing.assert_allclose(axes.get_lines()[1].get_xdata(), scipy.stats.norm.ppf(levels), atol=1e-9)
    else:
        grid = np.geomspace(0.1, 1, 20)
        curves = [np.interp(grid, *line(one, "these errors")) for one in (axes, again)]
        np.testing.assert_allclose(*curves, rtol=1e-2)


def test_running_median_is_weighted():
    pred, target = drawn(400)
    median = line(plots.residuals_against_prediction(pred, target), "running median")
    equal = line(plots.residuals_against_prediction(pred, target, weights=2.0), "running median")
    np.testing.assert_array_equal(equal, median)
    low = np.where(pred > target, 1e-3, 1.0)
    _, values = line(plots.residuals_against_prediction(pred, target, weights=low), "running median")
    assert (values < 0).all()


@each_picture
def test_entries_that_are_not_finite_are_counted(picture):
    pred, target = drawn(50)
    want = everything(picture(pred[3:], target[3:]))
    pred[0], target[1], target[2] = np.inf, np.nan, -np.inf
    axes = picture(pred, target)
    np.testing.assert_array_equal(everything(axes), want)
    assert "3 entries are not finite: not drawn" in told(axes)
    assert "1 entry is not finite" in told(picture(pred[2:], target[2:], weights=np.ones(48)))
    weights = np.ones(48)
    weights[4] = np.nan
    assert "2 entries are not finite" in told(picture(pred[2:], target[2:], weights=weights))


@each_picture
def test_nothing_to_draw_is_said(picture):
    assert "nothing to draw" in told(picture(np.empty(0, np.float32), np.empty(0)))
    axes = picture(np.full(3, np.nan, np.float32), np.zeros(3))
    assert "nothing to draw" in told(axes)
    assert "3 entries are not finite" in told(axes)
    assert "no entries" in told(picture(np.ones(3, np.float32), np.zeros(3), where=np.zeros(3, bool)))


@each_picture
@pytest.mark.parametrize("n", [1, 2, 20])
def test_few_rows_or_a_perfect_fit_are_drawn(picture, n):
    pred, target = drawn(n)
    picture(pred, target).figure.canvas.draw()
    axes = picture(pred, pred)
    axes.figure.canvas.draw()
    assert ("every error is 0" in told(axes)) == (picture is plots.squared_error_share)


def test_a_large_scatter_is_a_seeded_sample_with_the_worst():
    pred, target = drawn(POINTS + 5000)
    first, again, other = (plots.residuals_against_prediction(pred, target, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(points(first), points(again))
    assert len(points(first)) != len(points(other)) or np.any(points(first) != points(other))
    assert f"points: 20,000 of 25,000 entries, seed 1, and the {WORST} largest errors" in told(first)
    errors = np.sort(np.abs(pred.astype(float) - target))[-WORST:]
    for axes in (first, other):
        assert POINTS <= len(points(axes)) <= POINTS + WORST
        np.testing.assert_array_equal(np.sort(np.abs(points(axes)[:, 1]))[-WORST:], errors)
    np.testing.assert_array_equal(line(first, "running median"), line(other, "running median"))


def test_pit_histogram():
    loc, target = RANDOM.normal(size=(2, 500)).astype(np.float32)
    dist = Normal(loc, np.full(500, 1.5, np.float32))
    weights = RANDOM.uniform(0.5, 2, 500)
    counts, _ = np.histogram(scipy.stats.norm.cdf(target, loc, 1.5), 10, (0, 1), weights=weights)
    density, edges = bars(plots.pit_histogram(dist, target, weights=weights, bins=10))
    np.testing.assert_allclose(density, counts / weights.sum() * 10, rtol=1e-4)
    np.testing.assert_allclose(edges, np.linspace(0, 1, 11))


def test_pit_histogram_of_counts_is_randomised_by_seed():
    rate = RANDOM.uniform(0, 1, 2000).astype(np.float32)
    target = RANDOM.poisson(np.exp(rate))
    first, again, other = (plots.pit_histogram(Poisson(rate), target, seed=seed) for seed in (3, 3, 4))
    assert "randomised, seed 3" in told(first)
    np.testing.assert_array_equal(bars(first)[0], bars(again)[0])
    assert np.any(bars(first)[0] != bars(other)[0])
    assert np.abs(bars(first)[0] - 1).max() < 0.4


def test_reliability_counts_targets_in_central_intervals():
    loc, target = RANDOM.normal(size=(2, 300)).astype(np.float32)
    target[:2] = np.nan
    axes = plots.reliability(Normal(loc, np.ones_like(loc)), target)
    levels, shares = (np.asarray(part, float) for part in axes.get_lines()[1].get_data())
    distance = np.abs(target[2:].astype(float) - loc[2:])
    ends = scipy.stats.norm.ppf((1 + levels) / 2)
    np.testing.assert_allclose(shares, [(distance <= end).mean() for end in ends], atol=1e-6)
    assert levels.min() == pytest.approx(0.01)
    assert levels.max() == pytest.approx(0.99)
    assert "2 entries are not finite" in told(axes)
    worst = np.argmax(np.abs(shares - levels))
    assert f"the {levels[worst]:.0%} interval".replace("%", " %") in told(axes)


def test_intervals():
    lower = RANDOM.normal(size=40).astype(np.float32)
    target = lower + RANDOM.uniform(-0.5, 1.5, 40).astype(np.float32)
    x = RANDOM.uniform(size=40)
    axes = plots.intervals(Interval(lower, lower + 1), target, x, unit="kg")
    upright, held, missed = axes.collections
    ends = np.array([segment[:, 1] for segment in upright.get_segments()])
    np.testing.assert_allclose(ends, np.column_stack([lower, lower + 1]), rtol=1e-6)
    inside = (target >= lower) & (target <= lower + 1)
    np.testing.assert_allclose(held.get_offsets(), np.column_stack([x, target])[inside])
    np.testing.assert_allclose(missed.get_offsets(), np.column_stack([x, target])[~inside])
    assert axes.get_title(loc="left") == f"{100 * inside.mean():.1f} % of targets are in their interval"
    assert axes.get_ylabel() == "target (kg)"


def test_intervals_of_a_distribution_are_central_and_sampled():
    loc, target = RANDOM.normal(size=(2, 1000)).astype(np.float32)
    dist = Normal(loc, np.full(1000, 2.0, np.float32))
    first, again, other = (plots.intervals(dist, target, coverage=0.5, seed=seed) for seed in (0, 0, 1))
    assert "drawn: 150 of 1,000 intervals, seed 0" in told(first)
    np.testing.assert_array_equal(everything(first), everything(again))
    assert np.any(everything(first)[:50] != everything(other)[:50])
    inside = np.abs(target - loc) <= 2 * scipy.stats.norm.ppf(0.75)
    assert first.get_title(loc="left") == f"{100 * inside.mean():.1f} % of targets are in their 50 % interval"
    rows = np.array([segment[0, 0] for segment in first.collections[0].get_segments()]).astype(int)
    ends = np.array([segment[:, 1] for segment in first.collections[0].get_segments()])
    half = 2 * scipy.stats.norm.ppf(0.75)
    np.testing.assert_allclose(ends, np.column_stack([loc[rows] - half, loc[rows] + half]), atol=1e-5)


@pytest.mark.parametrize("picture", OF_DISTRIBUTIONS, ids=lambda picture: picture.__name__)
def test_pictures_of_distributions_mask_and_say_when_empty(picture):
    loc, target = RANDOM.normal(size=(2, 60)).astype(np.float32)
    keep = np.arange(60) >= 20
    spoiled = np.where(keep, target, np.nan).astype(np.float32)
    dist, kept = (Normal(part, np.ones_like(part)) for part in (loc, loc[keep]))
    x = {"x": np.arange(60.0)} if picture is plots.intervals else {}
    own = {"x": np.arange(60.0)[keep]} if picture is plots.intervals else {}
    want = everything(picture(kept, target[keep], **own))
    np.testing.assert_allclose(everything(picture(dist, spoiled, where=keep, **x)), want, atol=1e-6)
    assert "20 entries are not finite" in told(picture(dist, spoiled))
    assert "nothing to draw" in told(picture(dist, target, where=np.zeros(60, bool)))
    with pytest.raises(ShapeError, match=r"\(60,\)"):
        picture(dist, target[:, None])


def test_loss_curves():
    losses = {"Huber": Partial(huber, delta=2.0), "squared": mse}
    functions = {
        "value": Partial(huber, delta=2.0, reduction="none"),
        "slope": Partial(slope(huber), delta=2.0),
        "irls_weight": Partial(irls_weight(huber), delta=2.0),
    }
    for kind, function in functions.items():
        axes = plots.loss_curves(losses, kind, reach=3.0)
        residual, values = line(axes, "Huber")
        assert (residual[0], residual[-1]) == (-3, 3)
        np.testing.assert_allclose(values, function(jnp.asarray(residual, jnp.float32), jnp.zeros(len(residual))), 1e-6)
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["Huber", "squared"]
    named = plots.loss_curves([huber, Partial(huber, delta=2.0)]).get_legend_handles_labels()[1]
    assert named == ["huber", "huber(delta=2)"]


@pytest.mark.parametrize("picture", OF_DISTRIBUTIONS, ids=lambda picture: picture.__name__)
def test_a_masked_target_may_be_outside_the_support(picture):
    target, where = np.array([3, 1, -1, 2]), np.array([True, True, False, True])
    picture(Poisson(np.ones(4, np.float32)), target, where=where)
    with pytest.raises(ValueError, match="whole number"):
        picture(Poisson(np.ones(4, np.float32)), target)


def test_loss_curves_end_at_domains_and_before_poles():
    axes = plots.loss_curves([jaxloss.gamma_deviance, mse], target=2.0, reach=3.0)
    residual, values = line(axes, "gamma_deviance")
    np.testing.assert_array_equal(np.isnan(values), residual <= -2)
    assert 2 < axes.get_ylim()[1] < 20

    @jaxloss.pointwise(traits=jaxloss.Traits(pred=POSITIVE))
    def relative(pred, target):
        return (pred - target) ** 2 / target

    residual, values = line(plots.loss_curves(relative, target=1.0), "relative")
    np.testing.assert_array_equal(np.isnan(values), residual <= -1)
    weight = plots.loss_curves([mae, mse], "irls_weight")
    assert np.isnan(line(weight, "mae")[1][400]), "infinite at 0"
    assert 2 < weight.get_ylim()[1] < 10


@pytest.mark.parametrize("row", ROWS[::5], ids=lambda row: row.name)
def test_every_loss_has_a_curve(row):
    loss = Partial(row.loss, **{name: float(value) for name, value in row.usual.items()})
    for kind in ("value", "slope"):
        axes = plots.loss_curves(loss, kind, target=1.0, reach=0.9)
        assert np.isfinite(axes.get_lines()[0].get_ydata()).sum() > 700


def test_panel_of_one_output():
    pred, target = drawn(300)
    figure = plots.residual_panel(pred[:, None], target[:, None], unit="$", title="Prices ($)")
    assert len(figure.axes) == 6
    texts = [text.get_text() for text in figure.axes[2].texts]
    residual = pred.astype(float) - target
    assert f"{np.sqrt(np.mean(residual**2)):.4g} \\$" in texts
    assert f"{1 - np.sum(residual**2) / np.sum((target - target.mean(dtype=float)) ** 2):.4f}" in texts
    np.testing.assert_array_equal(points(figure.axes[0]), np.column_stack([pred, target]))
    figure.canvas.draw()


def test_panel_of_several_outputs_shows_each_by_itself():
    pred, target = (np.stack([part, 1e4 * part, part], 1) for part in drawn(80))
    target[:2, 1] = np.nan
    where = np.array([[True, True, False]])
    figure = plots.residual_panel(
        pred, target, names=["age", "income", "none"], unit=["years", "$", "m"], where=where, weights=np.ones((80, 1))
    )
    assert len(figure.axes) == 12
    np.testing.assert_array_equal(points(figure.axes[4]), np.column_stack([pred[2:, 1], target[2:, 1]]))
    assert figure.axes[4].get_title(loc="left") == "income: actual against predicted"
    assert figure.axes[4].get_xlabel() == "predicted (\\$)"
    assert "income: 2 entries are not finite: not drawn" in figure.get_supxlabel()
    assert "nothing to draw" in told(figure.axes[8])
    figure.canvas.draw()


def test_panel_is_the_same_for_the_same_seed_and_says_what_it_samples():
    pred, target = drawn(POINTS + 10_000)
    pictures = [plots.residual_panel(pred, target, seed=seed) for seed in (5, 5, 6)]
    first, again, other = (points(figure.axes[1]) for figure in pictures)
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or np.any(first != other)
    assert "20,000 of 30,000 entries, seed 5" in pictures[0].get_supxlabel()


@pytest.mark.parametrize("picture", [*OF_RESIDUALS, plots.residual_panel], ids=lambda picture: picture.__name__)
def test_bad_input_is_refused_as_by_a_loss(picture):
    pred, target = drawn(6)
    with pytest.raises(ShapeError, match=r"add `\[:, None\]` to target"):
        picture(pred[:, None], target)
    with pytest.raises(TypeError, match="astype"):
        picture(np.arange(6), target)
    with pytest.raises(TypeError, match="boolean"):
        picture(pred, target, where=np.ones(6))
    with pytest.raises(ShapeError, match="weights"):
        picture(pred, target, weights=np.ones(5))
    with pytest.raises(ValueError, match=r"weights must be at least 0 to be drawn, got -1"):
        picture(pred, target, weights=np.array([1, 1, -1, 1, 1, 1]))
    with pytest.raises(TypeError, match=r"pass its \.mean"):
        picture(Normal(pred, np.ones_like(pred)), target)


BAD = {
    "axes": (lambda: plots.residual_qq(*drawn(5), axes=Figure()), TypeError, "got Figure"),
    "outputs": (lambda: plots.residual_panel(*np.zeros((2, 5, 7), np.float32)), ShapeError, "ravel"),
    "names": (lambda: plots.residual_panel(*np.zeros((2, 5, 2), np.float32), names=["one"]), ValueError, "2 outputs"),
    "a name": (lambda: plots.residual_panel(*np.zeros((2, 5, 2), np.float32), names="ab"), ValueError, "2 outputs"),
    "units": (lambda: plots.residual_panel(*np.zeros((2, 5, 2), np.float32), unit=["m"]), ValueError, "unit"),
    "kind": (lambda: plots.loss_curves(mse, "rho"), ValueError, "'irls_weight'"),
    "reach": (lambda: plots.loss_curves(mse, reach=-1.0), ValueError, "reach"),
    "no loss": (lambda: plots.loss_curves(3), TypeError, "a loss is a function"),
    "missing setting": (lambda: plots.loss_curves(jaxloss.barron), TypeError, "alpha"),
    "weights of deviances": (lambda: plots.loss_curves(jaxloss.msle, "irls_weight"), TypeError, "pred − target"),
    "same twice": (lambda: plots.loss_curves([mse, mse]), ValueError, "mapping"),
    "bins": (lambda: plots.pit_histogram(Normal(jnp.zeros(2), jnp.ones(2)), jnp.zeros(2), bins=0), ValueError, "bins"),
    "coverage": (
        lambda: plots.intervals(Normal(jnp.zeros(2), jnp.ones(2)), jnp.zeros(2), coverage=90),
        ValueError,
        "between 0 and 1",
    ),
    "no interval": (lambda: plots.intervals(jnp.zeros(2), jnp.zeros(2)), TypeError, "Interval"),
    "x": (
        lambda: plots.intervals(Normal(jnp.zeros(2), jnp.ones(2)), jnp.zeros(2), jnp.zeros((2, 1))),
        ShapeError,
        "x has shape",
    ),
    "vectors": (
        lambda: plots.reliability(MultivariateNormal(jnp.zeros((1, 2)), jnp.eye(2)[None]), jnp.zeros((1, 2))),
        TypeError,
        "cdf",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case):
    call, kind, words = BAD[case]
    refused(kind, [words], call)


def test_axes_of_the_caller_are_drawn_into():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plots.residual_qq(*drawn(30), axes=left) is left
    assert plots.loss_curves(mse, axes=right) is right
    assert figure.axes == [left, right]


def test_offsets_lose_no_digits():
    pred = 1e9 + np.arange(60.0)
    axes = plots.residuals_against_prediction(pred, pred - 0.25)
    np.testing.assert_array_equal(points(axes)[:, 1], 0.25)


def test_examples_in_docstrings_run():
    names = {"jax": jax, "jnp": jnp, "np": np, **vars(jaxloss), **vars(plots)}
    for picture in [*OF_RESIDUALS, *OF_DISTRIBUTIONS, plots.residual_panel, plots.loss_curves]:
        test = doctest.DocTestParser().get_doctest(picture.__doc__, dict(names), picture.__name__, None, None)
        result = doctest.DocTestRunner(verbose=False).run(test)
        assert result.attempted > 0
        assert result.failed == 0
    assert {name for name, value in vars(plots).items() if callable(value)} == {
        picture.__name__ for picture in [*OF_RESIDUALS, *OF_DISTRIBUTIONS, plots.residual_panel, plots.loss_curves]
    }


def test_pyplot_is_not_loaded_and_settings_are_left_alone():
    assert run_program("plots_leave_settings_alone").split() == ["False", "True"]


def test_without_matplotlib_the_error_says_what_to_install():
    assert "pip install 'jaxloss[experiments]'" in run_program("plots_without_matplotlib")
