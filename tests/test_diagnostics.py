"""diagnose: what it says of residuals whose fault is known, how often it cries wolf, and what it refuses."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import refused

import jaxloss
from experiments.calibrate import Sample, even, rates, with_outliers
from jaxloss import Diagnosis, ShapeError, Standardizer, diagnose
from jaxloss.diagnostics.verdicts import VERDICTS
from jaxloss.metrics import ResidualStats

RANDOM = np.random.default_rng(0)
ROWS = 2000


def residuals_of(residual, pred=None, **settings):
    pred = RANDOM.uniform(10, 20, len(residual)) if pred is None else pred
    return diagnose(pred, pred - residual, **settings)


def held(diagnosis):
    return {name for name, verdict in diagnosis.verdicts.items() if verdict.holds}


# Figures


def test_figures_are_those_of_numpy():
    pred, weights, where = RANDOM.normal(5, 2, ROWS), RANDOM.uniform(0.5, 2, ROWS), RANDOM.random(ROWS) < 0.7
    target = pred + RANDOM.standard_t(3, ROWS)
    figures = diagnose(pred, target, weights=weights, where=where).figures
    p, t, w = (part[where].astype(np.float64) for part in (pred, target, weights))
    r, total = p - t, w.sum()
    order = np.argsort(np.abs(r))
    median = np.abs(r)[order][np.searchsorted(np.cumsum(w[order]), total / 2)]
    mae, mse = (w * abs(r)).sum() / total, (w * r * r).sum() / total
    mean_p = (w * p).sum() / total
    sd_p = np.sqrt((w * (p - mean_p) ** 2).sum() / total)
    want = {
        "n": where.sum(),
        "effective_n": total**2 / (w * w).sum(),
        "mse": mse,
        "rmse": np.sqrt(mse),
        "mae": mae,
        "bias": (w * r).sum() / total,
        "r2": 1 - mse / ((w * (t - (w * t).sum() / total) ** 2).sum() / total),
        "growth": (w * (p - mean_p) * (abs(r) - mae)).sum() / total / sd_p / mae,
        "trend": (w * (p - mean_p) * r).sum() / total / sd_p / mae,
        "absolute_sd": np.sqrt((w * (abs(r) - mae) ** 2).sum() / total),
    }
    for name, value in want.items():
        np.testing.assert_allclose(figures[name], value, 1e-4, 1e-5, err_msg=name)
    scale = median / 0.6744897
    np.testing.assert_allclose(figures["robust_scale"], scale, 0.01)
    np.testing.assert_allclose(figures["far_rows"], w[abs(r) > 5 * scale].sum() / total, 0.2)
    top = w[order][::-1].cumsum() <= 0.01 * total
    np.testing.assert_allclose(figures["top_share"], (w * r * r)[order][::-1][top].sum() / total / mse, 0.1)


@pytest.mark.slow
def test_parts_of_a_stream_give_what_the_whole_gives():
    pred, target = RANDOM.normal(size=(2, ROWS, 2)).astype(np.float32)
    halves = (np.arange(ROWS)[:, None] < ROWS // 2, np.arange(ROWS)[:, None] >= ROWS // 2)
    parts = (ResidualStats.of(pred, target, where=half, per_output=True) for half in halves)
    streamed, whole = Diagnosis.of(sum(parts), names=["a", "b"]), diagnose(pred, target, names=["a", "b"])
    assert str(streamed) == str(whole)


# Verdicts, of kinds of residuals that the thresholds were not calibrated on


def normal(size=ROWS):
    return RANDOM.normal(size=size)


def grown(rate):
    pred = RANDOM.uniform(10, 20, ROWS)
    return diagnose(pred, pred - np.exp(rate * pred) * normal())


CASES = {
    "normal": (lambda: residuals_of(normal()), set(), {*VERDICTS}),
    "uniform": (lambda: residuals_of(RANDOM.uniform(-1, 1, ROWS)), set(), {*VERDICTS}),
    "negligible bias": (lambda: residuals_of(normal() + 0.04), set(), {*VERDICTS}),
    "weights": (lambda: residuals_of(normal(), weights=RANDOM.gamma(0.5, size=ROWS)), set(), {*VERDICTS}),
    "two clusters": (lambda: residuals_of(np.sign(normal()) + 0.05 * normal()), set(), {*VERDICTS}),
    "bias": (lambda: residuals_of(RANDOM.logistic(0.6, size=ROWS)), {"bias"}, {"skew", "outliers", "spread"}),
    "too low": (lambda: residuals_of(normal() - 0.4), {"bias"}, {"skew", "outliers", "heavy_tails", "spread"}),
    "gamma": (lambda: residuals_of(RANDOM.gamma(2, size=ROWS) - 2), {"skew"}, {"bias", "outliers", "spread"}),
    "weibull": (lambda: residuals_of(1 - RANDOM.weibull(1, ROWS)), {"skew"}, {"bias", "outliers", "spread"}),
    "student": (lambda: residuals_of(RANDOM.standard_t(4, ROWS)), {"heavy_tails"}, {"bias", "skew", "spread"}),
    "contaminated logistic": (
        lambda: residuals_of(with_outliers(RANDOM, RANDOM.logistic(size=ROWS), 0.01, 36)),
        {"outliers", "heavy_tails"},
        {"bias", "skew", "spread"},
    ),
    "5 % outliers on one side": (  # of which the top 1 % are a fifth, and which move the mean
        lambda: residuals_of(np.where(RANDOM.random(ROWS) < 0.05, -20, normal())),
        {"outliers", "heavy_tails"},
        {"bias", "skew", "spread"},
    ),
    "outliers and a bias": (
        lambda: residuals_of(with_outliers(RANDOM, 1 + normal(), 0.01, 20)),
        {"outliers", "heavy_tails", "bias"},
        {"skew", "spread"},
    ),
    "growing": (lambda: grown(0.1), {"spread"}, {"bias", "skew", "outliers"}),
    "shrinking": (lambda: grown(-0.1), {"spread"}, {"bias", "skew", "outliers"}),
    "a trend and a bias": (  # |r| grows with the prediction, as r does; its spread does not
        lambda: residuals_of((line := np.linspace(-1, 3, ROWS)) + normal(), line),
        {"bias"},
        {"skew", "outliers", "heavy_tails", "spread"},
    ),
    "outliers of the prediction": (
        lambda: residuals_of((noise := np.where(np.arange(ROWS) < 20, 20, normal())), 10 + noise),
        {"outliers"},
        {"bias", "skew", "spread"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts_on_residuals_of_a_known_kind(case):
    draw, must, must_not = CASES[case]
    diagnosis = draw()
    found = held(diagnosis)
    assert must <= found
    assert not must_not & found
    well_told(diagnosis)


def well_told(diagnosis):
    """Assert that it prints in fewer than a hundred columns, and is JSON."""
    assert max(map(len, str(diagnosis).splitlines())) < 100
    assert all(label in str(diagnosis).upper() for label in ("RMSE", "MAE", "BIAS"))
    told = json.loads(json.dumps(diagnosis.as_dict(), allow_nan=False))
    assert all(set(output["verdicts"]) == set(VERDICTS) for output in told["outputs"])
    assert told["advice"] == list(diagnosis.advice)


def test_which_way_is_told():
    assert "too low" in CASES["too low"][0]().verdicts["bias"].words
    assert "too high" in CASES["bias"][0]().verdicts["bias"].words
    assert "too high" in CASES["gamma"][0]().verdicts["skew"].words
    assert "too low" in CASES["weibull"][0]().verdicts["skew"].words
    assert "grows" in CASES["growing"][0]().verdicts["spread"].words
    assert "shrinks" in CASES["shrinking"][0]().verdicts["spread"].words


def test_a_trend_does_not_pass_for_spread():
    pred = np.linspace(-1, 3, ROWS)
    assert residuals_of(pred + normal(), pred).verdicts["spread"].holds is False, "taken off, as far as it is known"


def test_a_few_rows_tell_little():
    diagnosis = residuals_of(normal(20))
    assert not held(diagnosis)
    assert {name for name, verdict in diagnosis.verdicts.items() if verdict.holds is None} >= {"skew", "heavy_tails"}
    assert "too few rows to tell" in str(diagnosis)
    assert "Keep MSE" in diagnosis.advice[0]
    one_wrong = normal(20)
    one_wrong[7] = 50
    diagnosis = residuals_of(one_wrong)
    assert diagnosis.verdicts["outliers"].holds
    assert "row 7 (" in diagnosis.advice[0]
    assert not held(residuals_of(normal(20), where=np.arange(20) < 3))


def test_small_samples_are_not_called_by_chance():
    pred = RANDOM.uniform(10, 20, (50, 100))
    outputs = diagnose(pred, pred - RANDOM.normal(size=pred.shape)).outputs
    for verdict in VERDICTS:
        assert sum(output.verdicts[verdict].holds is True for output in outputs) <= 2, verdict


# Advice


def test_advice_follows_from_the_verdicts():
    assert CASES["normal"][0]().advice == ("Keep MSE: nothing in the residuals speaks against it.",)
    assert any("StudentT" in line for line in CASES["student"][0]().advice)
    assert any("og the target" in line for line in CASES["growing"][0]().advice)
    assert not any("og the target" in line for line in CASES["shrinking"][0]().advice)
    assert any("quantile" in line and "log" not in line for line in CASES["gamma"][0]().advice)
    assert any("quantile" in line and "log a positive" in line for line in CASES["weibull"][0]().advice)
    assert any("too high by 0." in line for line in CASES["bias"][0]().advice)


def test_outliers_are_named_with_settings_that_fit_the_rest():
    residual = 2 * normal()
    residual[[5, 800, 1999]] = -500, -400, -300
    diagnosis = residuals_of(residual)
    look, compare = diagnosis.advice[:2]
    assert "rows 5, 800, 1999, all with targets far above" in look
    scale = diagnosis.figures["robust_scale"]
    assert abs(scale - 2) < 0.2
    assert f"huber at delta={1.345 * scale:.3g}" in compare
    assert f"tukey at scale={4.685 * scale:.3g}" in compare
    assert [entry["row"] for entry in diagnosis.outputs[0].far] == [5, 800, 1999]
    assert "row 5 (-500)" in str(diagnosis)


# Several outputs


def age_and_income():
    target = np.stack([40 + 10 * normal(), 5e4 + 2e4 * normal()], 1)
    return target + np.stack([6 * normal(), 1e4 * normal()], 1), target


def test_an_output_that_dominates_by_its_unit():
    pred, target = age_and_income()
    diagnosis = diagnose(pred, target, names=["age", "income"])
    balance = diagnosis.balance
    assert (balance.dominant, balance.because_of_unit) == ("income", True)
    np.testing.assert_allclose(balance.weights, 1 / target.var(0), 1e-3)
    assert "income makes up 100.0% of the squared error because of its unit" in diagnosis.advice[0]
    assert "Standardizer" in diagnosis.advice[0]


def test_standardised_targets_are_in_balance():
    pred, target = age_and_income()
    units = Standardizer.fit(target)
    shares = diagnose(pred, target).balance.standardized_shares
    diagnosis = diagnose(units.transform(pred), units.transform(target))
    assert diagnosis.balance.dominant is None
    np.testing.assert_allclose(diagnosis.balance.shares, shares, 1e-3)


def test_an_output_that_is_hard_in_any_unit():
    target = RANDOM.normal(size=(ROWS, 2))
    pred = target + normal()[:, None] * np.array([0.1, 1.0])
    diagnosis = diagnose(pred, target, names=["easy", "hard"])
    assert (diagnosis.balance.dominant, diagnosis.balance.because_of_unit) == ("hard", False)
    assert "hardest" in diagnosis.advice[0]


def test_each_output_has_its_own_verdicts():
    residual = np.stack([normal(), RANDOM.laplace(size=ROWS)], 1)
    residual[17, 0] = np.nan
    diagnosis = diagnose(residual, np.zeros((ROWS, 2)), names=["clean", "laplace"])
    clean, laplace = diagnosis.outputs
    assert clean.lost == (17,)
    assert laplace.lost == ()
    assert laplace.verdicts["heavy_tails"].holds
    assert not clean.verdicts["heavy_tails"].holds
    assert any(line.startswith("laplace: Compare") for line in diagnosis.advice)
    with pytest.raises(ValueError, match="2 outputs"):
        _ = diagnosis.figures
    assert diagnose(np.ones((9, 1)), np.zeros((9, 1))).figures["mse"] == 1


# Edges


def test_entries_that_are_not_finite_are_told_and_nothing_else_changes():
    residual, pred = normal(), RANDOM.uniform(10, 20, ROWS)
    spoilt = residual.copy()
    spoilt[[3, 900]] = np.nan, np.inf
    ones = np.ones(ROWS)
    diagnosis = diagnose(pred, pred - spoilt, weights=ones)
    without = diagnose(pred, pred - residual, weights=ones, where=np.isfinite(spoilt))
    assert diagnosis.figures["nonfinite"] == 2
    assert diagnosis.outputs[0].lost == (3, 900)
    assert "not finite and in no figure: 2, rows 3, 900" in str(diagnosis)
    assert "not finite: rows 3, 900" in diagnosis.advice[0]
    for name, value in without.figures.items():
        if name != "nonfinite":
            np.testing.assert_allclose(diagnosis.figures[name], value, 1e-5, err_msg=name)


@pytest.mark.parametrize("case", ["empty", "masked", "weightless"])
def test_over_nothing_there_are_no_figures_and_no_advice(case):
    pred, target = (np.zeros(0), np.zeros(0)) if case == "empty" else (normal(20), normal(20))
    more = {"masked": {"where": np.zeros(20, bool)}, "weightless": {"weights": np.zeros(20)}}.get(case, {})
    diagnosis = diagnose(pred, target, **more)
    assert np.isnan([diagnosis.figures[name] for name in ("rmse", "mae", "mse", "bias", "r2")]).all()
    assert diagnosis.advice == ()
    assert {verdict.holds for verdict in diagnosis.verdicts.values()} == {None}
    assert "no finite residuals" in str(diagnosis)
    assert diagnosis.as_dict()["outputs"][0]["figures"]["rmse"] is None


def test_degenerate_residuals():
    lost = diagnose(np.full(20, np.nan), np.zeros(20))
    assert "There are no finite residuals" in str(lost)
    assert "Mend" in lost.advice[0]
    exact = diagnose(np.ones(20), np.ones(20))
    assert "Every residual is 0" in str(exact)
    assert exact.advice == ()
    for size in (1e-30, 1e30):
        beyond = diagnose(np.float32(size) * normal(20).astype(np.float32), np.zeros(20, np.float32))
        assert "past the range of float32" in str(beyond)
        assert not held(beyond)
    constant = diagnose(np.zeros(ROWS), normal())
    assert constant.verdicts["spread"].holds is None
    assert "all predictions are the same" in str(constant)
    mostly = residuals_of(np.where(np.arange(ROWS) < 100, 50 * normal(), 0))
    assert mostly.verdicts["outliers"].holds
    assert "delta=" not in str(mostly), "the robust scale is 0"
    assert diagnose(np.float32(1.0), np.float32(0.0)).figures["mse"] == 1


@pytest.mark.parametrize("size", [-1.234567e15, 1e30])  # squares of 1e30 are past float32
def test_long_names_and_numbers_fit(size):
    pred = np.float32(size) * RANDOM.normal(size=(ROWS, 2)).astype(np.float32)
    diagnosis = diagnose(pred, np.zeros((ROWS, 2)), names=["a" * 120, "b b" * 50])
    well_told(diagnosis)


def test_many_outputs_print_as_a_table():
    pred, target = RANDOM.normal(size=(ROWS, 2, 3)) * 10.0 ** np.arange(3), np.zeros((ROWS, 2, 3))
    diagnosis = diagnose(pred, target)
    assert diagnosis.outputs[5].name == "output 1, 2"
    assert any(line.startswith("output 1, 2  ") for line in str(diagnosis).splitlines())
    well_told(diagnosis)
    well_told(diagnose(pred, target, names=[letter * 120 for letter in "abcdef"]))


REFUSED = {
    "shapes": (ShapeError, "None", lambda: diagnose(np.zeros((4, 1)), np.zeros(4))),
    "mask": (TypeError, "boolean", lambda: diagnose(np.zeros(4), np.zeros(4), where=np.ones(4))),
    "number of names": (ValueError, "3 entries for 2", lambda: diagnose(*np.zeros((2, 4, 2)), names=["a", "b", "c"])),
    "a name twice": (ValueError, "differ", lambda: diagnose(*np.zeros((2, 4, 2)), names=["a", "a"])),
    "a name": (TypeError, "list", lambda: diagnose(*np.zeros((2, 4, 2)), names="ab")),
    "no output": (ValueError, "no output", lambda: diagnose(*np.zeros((2, 4, 0)))),
    "arrays": (TypeError, "diagnose", lambda: Diagnosis.of(np.zeros(4))),
    "no histogram": (
        ValueError,
        "histogram",
        lambda: Diagnosis.of(ResidualStats.of(*np.zeros((2, 4)), histogram=False)),
    ),
    "no moments": (ValueError, "moments", lambda: Diagnosis.of(ResidualStats.of(*np.zeros((2, 4)), moments=False))),
    "traced": (TypeError, "outside jit", lambda: jax.jit(lambda x: diagnose(x, x).figures["mse"])(jnp.zeros(4))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case):
    kind, word, call = REFUSED[case]
    refused(kind, [word], call)


def test_without_a_list_of_the_worst():
    diagnosis = Diagnosis.of(ResidualStats.of(normal(), np.zeros(ROWS), worst=0))
    assert diagnosis.outputs[0].worst == ()
    assert "largest residuals" not in str(diagnosis)


def test_it_is_a_name_of_the_package():
    assert jaxloss.diagnose is jaxloss.diagnostics.diagnose
    assert jaxloss.Diagnosis is jaxloss.diagnostics.Diagnosis


# How often, on other seeds and other kinds than the thresholds were calibrated on


def clean(residual):
    return lambda rng, shape: Sample(even(rng, shape), residual(rng, shape).astype(np.float32))


def two_sizes(rng, shape):
    pred = even(rng, shape)
    return Sample(pred, (np.where(pred > 15, 2, 1) * rng.normal(size=shape)).astype(np.float32))


OTHERS = {
    "uniform": (None, clean(lambda rng, shape: rng.uniform(-1, 1, shape))),
    "normal": (None, clean(lambda rng, shape: rng.normal(0, 1e-3, shape))),
    "beta": (None, clean(lambda rng, shape: rng.beta(4, 4, shape) - 0.5)),
    "bias of logistic errors": ("bias", clean(lambda rng, shape: rng.logistic(0.4, 1, shape))),
    "gamma": ("skew", clean(lambda rng, shape: rng.gamma(3, size=shape) - 3)),
    "contaminated logistic": (
        "outliers",
        clean(lambda rng, shape: with_outliers(rng, rng.logistic(size=shape), 0.01, 36)),
    ),
    "student": ("heavy_tails", clean(lambda rng, shape: rng.standard_t(3, shape))),
    "two sizes": ("spread", two_sizes),
}
UNMOVED = {"gamma": {"bias", "outliers", "spread"}, "student": {"bias", "skew", "spread"}}
UNMOVED |= {"contaminated logistic": UNMOVED["student"], "bias of logistic errors": {"skew", "outliers", "spread"}}
UNMOVED |= {"two sizes": {"bias", "skew", "outliers"}}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1000, 10_000, 100_000])
@pytest.mark.parametrize("kind", OTHERS)
def test_few_false_alarms_and_much_power_elsewhere(kind, rows):
    fault, draw = OTHERS[kind]
    repeats = min(1000, 10**7 // rows)
    found = rates(draw, np.random.default_rng(20_000 + rows), rows, repeats)
    assert fault is None or found[fault] >= 0.98
    slack = 0.01 + 2 * np.sqrt(0.01 / repeats)
    for verdict in UNMOVED.get(kind, {*VERDICTS}):
        assert found[verdict] <= slack, verdict
