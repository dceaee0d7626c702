"""Linear fits against certified values, published fits, linear programs, and what must be refused."""

import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from support import ROOT

from jaxloss import (
    ShapeError,
    Traits,
    epsilon_insensitive,
    expectile,
    fair,
    gamma_deviance,
    huber,
    log_cosh,
    mae,
    mse,
    pointwise,
    poisson_deviance,
    quantile,
    quantile_huber,
    smape,
    squared_epsilon_insensitive,
    tukey,
    tweedie_deviance,
    welsch,
)
from jaxloss.contract import loss_name
from jaxloss.solve import design, preprocessing, solve_linear

DATA = ROOT.parent / "shared" / "data"
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def rows_of(count=60, columns=3):
    x = RANDOM.normal(size=(count, columns))
    return x, x @ np.linspace(1, -1, columns) + 0.3 + 0.5 * RANDOM.standard_t(4, count)


def params(fit):
    return np.append(np.asarray(fit.coef), np.asarray(fit.intercept))


def shared(path):
    if not (DATA / path).exists():
        pytest.skip(f"{path} is not here")
    return DATA / path


def classical(name):
    table = np.genfromtxt(shared(f"classical/{name}.csv"), delimiter=",", skip_header=1)[:, 1:]
    return table[:, :-1], table[:, -1], json.loads(shared("classical/reference_fits.json").read_text())[name]


NIST = {"Norris": 11, "NoInt1": 11, "Wampler1": 11, "Longley": 11, "Wampler4": 8, "Filip": 7}


@pytest.mark.parametrize("name", NIST)
def test_nist(name):
    entry = json.loads(shared("nist/certified.json").read_text())["linear"][name]
    x, y, intercept = np.array(entry["x"], float), np.array(entry["y"], float), entry["intercept"]
    if entry["powers"]:
        x = np.stack([x.ravel() ** power for power in entry["powers"] if power], 1)
    certified = np.array(entry["coef"])

    def digits(coef):
        return min(15, np.min(-np.log10(np.abs(coef - certified) / np.abs(certified) + 1e-16)))

    fit = solve_linear(x, y, intercept=intercept)
    coef = np.append(fit.intercept, fit.coef) if intercept else np.asarray(fit.coef)
    theirs = np.linalg.lstsq(np.column_stack([np.ones(len(y)), x]) if intercept else x, y)[0]
    assert digits(coef) >= NIST[name]
    assert digits(coef) >= digits(theirs) - 0.5
    assert fit.rank == len(certified)
    if entry["rss"] > 0:
        np.testing.assert_allclose(fit.objective, entry["rss"], rtol=1e-7)
        if name != "Filip":
            errors = fit.standard_errors(x, y, intercept=intercept)
            np.testing.assert_allclose(np.roll(errors, int(intercept)), entry["se"], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stackloss", "engel"])
def test_published_fits(name):
    x, y, reference = classical(name)

    def check(fit, coef, objective=None, unique=True):
        if unique:
            np.testing.assert_allclose(np.append(fit.intercept, fit.coef), coef, rtol=1e-8, atol=1e-10)
        if objective is not None:
            np.testing.assert_allclose(fit.objective, objective, rtol=1e-10)
        assert fit.converged

    check(solve_linear(x, y), reference["ols"], reference["ols_rss"])
    for level, entry in reference["quantile"].items():
        fit = solve_linear(x, y, Partial(quantile, level=float(level)))
        check(fit, entry["coef"], entry["pinball_sum"], entry["unique"])
        assert fit.gap < 1e-10
    for delta in (0.5, 1.0, 1.345, 5.0):
        entry = reference[f"huber_fixed_delta_{delta}"]
        check(solve_linear(x, y, Partial(huber, delta=delta)), entry["coef"], entry["sum_loss"])
    for loss, key in ((Partial(huber, delta=1.345), "huber1.345"), (tukey, "bisquare4.685")):
        entry = reference[f"{key}_madexact"]
        fit = solve_linear(x, y, loss, scale_estimator="mad")
        check(fit, entry["coef"])
        np.testing.assert_allclose(fit.scale, entry["scale"], rtol=1e-8)


def test_least_squares_with_weights_ridge_and_outputs():
    x, y = rows_of()
    weights, targets = RANDOM.uniform(0.5, 2, (60, 1)), np.column_stack([y, y**2])
    fit = solve_linear(x, targets, weights=weights, l2=np.array([0.0, 3.0]))
    assert fit.coef.shape == (3, 2)
    for column, l2 in enumerate((0.0, 3.0)):
        design = np.column_stack([x, np.ones(60)])
        matrix = 2 * design.T @ (weights * design) + np.diag([l2] * 3 + [0])
        want = np.linalg.solve(matrix, 2 * design.T @ (weights[:, 0] * targets[:, column]))
        np.testing.assert_allclose(np.append(fit.coef[:, column], fit.intercept[column]), want, rtol=1e-12)
        errors = targets[:, column] - design @ want
        want = weights[:, 0] @ errors**2 + l2 / 2 * want[:3] @ want[:3]
        np.testing.assert_allclose(fit.objective[column], want, rtol=1e-12)
    np.testing.assert_allclose(fit.predict(x), x @ np.asarray(fit.coef) + np.asarray(fit.intercept), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*columns depend:RuntimeWarning")
@pytest.mark.parametrize("loss", [mse, Partial(huber, delta=0.5), mae])
def test_dependent_columns_get_the_least_coefficients(loss):
    x, y = rows_of()
    once = solve_linear(x, y, loss)
    twice = solve_linear(np.column_stack([x, x[:, 0], np.full(60, 0.1)]), y, loss)
    assert twice.rank == 4
    np.testing.assert_allclose(twice.objective, once.objective, rtol=1e-10)
    if loss is not mae:  # whose vertex depends on the basis
        halved = np.append(np.asarray(once.coef) * [0.5, 1, 1], [0.5 * once.coef[0], 0])
        np.testing.assert_allclose(twice.coef, halved, rtol=1e-9, atol=1e-12)
    wide = solve_linear(x[:3], y[:3], loss)
    centred = x[:3] - x[:3].mean(0)
    np.testing.assert_allclose(wide.coef, np.linalg.pinv(centred) @ (y[:3] - y[:3].mean()), rtol=1e-9)


def test_what_went_wrong_is_said():
    x, y = rows_of()
    with pytest.warns(RuntimeWarning, match="rank 4 of 5"):
        solve_linear(np.column_stack([x, x[:, 0]]), y)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        assert not solve_linear(x, np.zeros(60), poisson_deviance).converged


@pytest.mark.slow
@pytest.mark.parametrize("loss", [mse, Partial(huber, delta=0.5), mae, tukey, poisson_deviance])
def test_units_absent_rows_and_perfect_fits(loss):
    x, y = rows_of()
    y = np.exp(0.3 * y) if loss is poisson_deviance else y
    units = np.array([1e-8, 1, 1e8])
    fit = solve_linear(x, y, loss)
    np.testing.assert_allclose(solve_linear(x * units, y, loss).coef * units, fit.coef, rtol=1e-9)
    kept = np.arange(60) % 3 > 0
    want = params(solve_linear(x[kept], y[kept], loss))
    np.testing.assert_allclose(params(solve_linear(x, y, loss, weights=1.0 * kept)), want, rtol=1e-9)
    hidden = np.where(kept[:, None], x, np.nan), np.where(kept, y, np.nan)
    np.testing.assert_allclose(params(solve_linear(*hidden, loss, where=kept)), want, rtol=1e-9)
    line = x @ [1.0, -2.0, 0.5] + 0.3
    exact = solve_linear(x, np.exp(line) if loss is poisson_deviance else line, loss)
    np.testing.assert_allclose(params(exact), [1, -2, 0.5, 0.3], rtol=1e-9)
    assert exact.converged


SMOOTH = {
    "pseudo-linear": Partial(expectile, level=0.2),
    "fair": fair,
    "log_cosh": log_cosh,
    "quantile_huber": Partial(quantile_huber, level=0.3, delta=0.2),
    "squared_epsilon_insensitive": Partial(squared_epsilon_insensitive, epsilon=0.3),
    "gamma": gamma_deviance,
    "tweedie": Partial(tweedie_deviance, power=1.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_losses_are_least_at_the_fit(name):
    optimize = pytest.importorskip("scipy.optimize")
    x, y = rows_of()
    loss, log_link = SMOOTH[name], name in ("gamma", "tweedie")
    y = np.exp(0.3 * y) if log_link else y
    fit = solve_linear(x, y, loss, l2=0.7)

    def objective(beta):
        eta = jnp.asarray(x @ beta[:3] + beta[3])
        value = loss(jnp.exp(eta) if log_link else eta, jnp.asarray(y), reduction="sum")
        return float(value) + 0.35 * beta[:3] @ beta[:3]

    found = optimize.minimize(objective, np.zeros(4), tol=1e-10)
    np.testing.assert_allclose(fit.objective, found.fun, rtol=1e-9)
    assert fit.objective <= found.fun * (1 + 1e-12)
    assert fit.converged
    np.testing.assert_allclose(params(fit), found.x, atol=2e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.4])
def test_piecewise_linear_losses_against_a_linear_program(epsilon):
    optimize = pytest.importorskip("scipy.optimize")
    x, y = rows_of(80)
    weights = RANDOM.uniform(0.5, 2, 80)
    loss = Partial(epsilon_insensitive, epsilon=epsilon)
    fit = solve_linear(x, y, loss, weights=weights)
    design = np.column_stack([x, np.ones(80)])
    costs = np.concatenate([np.zeros(4), weights])
    above, below = np.hstack([design, -np.eye(80)]), np.hstack([-design, -np.eye(80)])
    bounds = [(None, None)] * 4 + [(0, None)] * 80
    limits = np.concatenate([y + epsilon, -y + epsilon])
    program = optimize.linprog(costs, np.vstack([above, below]), limits, bounds=bounds)
    np.testing.assert_allclose(fit.objective, program.fun, rtol=1e-10)
    assert fit.gap < 1e-10
    edges = np.abs(np.abs(y - np.asarray(fit.predict(x))) - epsilon)
    assert np.sum(edges < 1e-12) == 4, "a vertex meets as many rows as there are coefficients"


@pytest.mark.slow
def test_levels_at_once_and_a_loss_of_ones_own():
    x, y = rows_of()
    levels = np.array([0.1, 0.5, 0.9])
    fits = solve_linear(x, y, Partial(quantile, level=levels))
    assert fits.coef.shape == (3, 3)
    for number, level in enumerate(levels):
        one = solve_linear(x, y, Partial(quantile, level=level))
        np.testing.assert_allclose(fits.coef[:, number], one.coef, rtol=1e-9)
        share = np.mean(y < np.asarray(fits.predict(x))[:, number] - 1e-9)
        assert level - 4 / 60 <= share <= level

    @pointwise(traits=Traits(residual=True, convex=True))
    def pinball(pred, target, *, tau=0.9):
        error = target - pred
        return jnp.maximum(tau * error, (tau - 1) * error)

    np.testing.assert_allclose(solve_linear(x, y, pinball).coef, fits.coef[:, 2], rtol=1e-9)


@pytest.mark.slow
def test_forty_percent_bad_targets():
    x = RANDOM.uniform(-1, 1, (500, 1))
    y = 3 * x[:, 0] + 2 + 0.1 * RANDOM.normal(size=500)
    y[:200] = 15 + 5 * RANDOM.normal(size=200)
    for fit in (solve_linear(x, y, tukey, scale_estimator="mad"), solve_linear(x, y, Partial(welsch, scale=0.5))):
        np.testing.assert_allclose(params(fit), [3, 2], rtol=0.05)
    assert abs(solve_linear(x, y, Partial(huber, delta=0.2)).intercept - 2) > 0.1, "which a convex loss cannot"


GRADIENTS = {
    "mse": Partial(mse),
    "huber": Partial(huber, delta=0.5),
    "tukey": Partial(tukey, scale=2.0),
    "quantile": Partial(quantile, level=0.3),
    "poisson": Partial(poisson_deviance),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("scaled", [False, True])
def test_derivatives_against_differences(name, scaled):
    if scaled and name not in ("huber", "tukey"):
        pytest.skip("its settings have no unit, or it has none")
    x, y = rows_of()
    loss = jax.tree.map(jnp.asarray, GRADIENTS[name])
    y = np.exp(0.3 * y) if name == "poisson" else y
    estimator = "mad" if scaled else None

    def summary(x, y, weights, l2, loss):
        fit = solve_linear(x, y, loss, weights=weights, l2=l2, scale_estimator=estimator)
        return fit.coef @ jnp.arange(1.0, 4) + fit.intercept + fit.scale

    at = (jnp.asarray(x), jnp.asarray(y), jnp.asarray(RANDOM.uniform(0.5, 2, 60)), jnp.asarray(0.7), loss)
    gradients = jax.grad(summary, argnums=range(5))(*at)
    for number, (value, gradient) in enumerate(zip(at, gradients, strict=True)):
        direction = jax.tree.map(lambda leaf: jnp.asarray(RANDOM.normal(size=leaf.shape)), value)
        ends = [
            summary(*at[:number], jax.tree.map(lambda leaf, way: leaf + h * way, value, direction), *at[number + 1 :])  # noqa: B023
            for h in (1e-5, -1e-5)
        ]
        parts = jax.tree.map(lambda one, other: jnp.sum(one * other), gradient, direction)
        want = float(ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(sum(jax.tree.leaves(parts)), want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradient_of_least_squares_both_ways():
    x, y = rows_of(20, 2)

    def slope(y):
        return solve_linear(x, y).coef[0]

    design = np.column_stack([x, np.ones(20)])
    want = np.linalg.pinv(design)[0]
    np.testing.assert_allclose(jax.grad(slope)(jnp.asarray(y)), want, rtol=1e-10)
    np.testing.assert_allclose(jax.jvp(slope, (jnp.asarray(y),), (jnp.asarray(y),))[1], want @ y, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [Partial(huber, delta=0.5), mae, Partial(tukey, scale=2.0)], ids=loss_name)
def test_mapped_over_weights_is_a_loop(loss):
    x, y = rows_of()
    x[:, 1] += 1e5  # of which a shared basis must lose nothing
    weights = RANDOM.poisson(1, (6, 60)).astype(float)
    few = weights.copy()
    few[3] = np.arange(60) < 3  # three rows are not enough for four parameters: no basis is good for all
    fits = jax.jit(jax.vmap(lambda w: solve_linear(x, y, loss, weights=w)))
    for chosen in (weights, few):
        together = fits(chosen)
        for number in range(6):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                one = solve_linear(x, y, loss, weights=chosen[number])
            np.testing.assert_allclose(together.objective[number], one.objective, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(together.coef[number], one.coef, rtol=1e-7, atol=1e-9)
            assert (together.rank[number], bool(together.converged[number])) == (one.rank, bool(one.converged))
    assert together.rank.tolist() == [4, 4, 4, 3, 4, 4]
    if loss is not mae:
        repeated = np.repeat(np.arange(60), weights[0].astype(int))
        np.testing.assert_allclose(fits(weights).coef[0], solve_linear(x[repeated], y[repeated], loss).coef, rtol=1e-7)


@pytest.mark.slow
def test_mapped_over_the_ridge_is_a_loop_and_has_derivatives():
    x, y = rows_of()
    ridge, loss = jnp.array([0.0, 0.1, 1.0, 10.0, 100.0, 1000.0]), Partial(huber, delta=0.5)

    def coef(l2):
        return solve_linear(x, y, loss, l2=l2).coef

    np.testing.assert_allclose(jax.vmap(coef)(ridge)[4], coef(100.0), rtol=1e-9)
    slopes = jax.vmap(jax.jacfwd(coef))(ridge)
    np.testing.assert_allclose(slopes[2], (coef(1.0 + 1e-5) - coef(1.0 - 1e-5)) / 2e-5, rtol=1e-5)
    np.testing.assert_allclose(jax.jacrev(jax.vmap(coef))(ridge)[2, :, 2], slopes[2], rtol=1e-9)


def test_single_precision_is_not_the_normal_equations():
    count = 200
    base = np.random.default_rng(0).normal(size=(count, 2))
    x = np.column_stack([base[:, 0], base[:, 0] + 1e-3 * base[:, 1]]).astype(np.float32)
    y = (x.astype(float) @ [1.0, 1.0] + 0.5 + 0.01 * base[:, 1]).astype(np.float32)
    want = np.linalg.lstsq(np.column_stack([x, np.ones(count)]).astype(float), y.astype(float))[0]
    fit = solve_linear(x, y)
    assert fit.coef.dtype == np.float32
    np.testing.assert_allclose(params(fit), want, rtol=1e-5)
    assert fit.rank == 3


BAD = {
    "NaN in x": (
        lambda x, y: solve_linear(np.where(x == x[3, 1], np.nan, x), y),
        "x is not finite in 1 rows, first 3",
    ),
    "inf in target": (
        lambda x, y: solve_linear(x, np.where(y == y[5], np.inf, y)),
        "target must be finite, got inf in row 5",
    ),
    "counts below 0": (
        lambda x, y: solve_linear(x, -np.abs(y), poisson_deviance),
        "target must be finite and at least 0",
    ),
    "lengths": (lambda x, y: solve_linear(x, y[:-1]), r"\(60, 3\).*\(59,\)"),
    "1-D x": (lambda x, y: solve_linear(y, y), r"x\[:, None\]"),
    "complex": (lambda x, y: solve_linear(x.astype(complex), y), "must be real"),
    "negative weights": (lambda x, y: solve_linear(x, y, weights=-np.ones(60)), "at least 0, got -1"),
    "weights' shape": (lambda x, y: solve_linear(x, y[:, None], weights=np.ones(60)), r"weights\[:, None\]"),
    "level": (lambda x, y: solve_linear(x, y, Partial(quantile, level=1.5)), "level must be strictly between 0 and 1"),
    "levels' shape": (lambda x, y: solve_linear(x, y[:, None], Partial(quantile, level=np.array([0.1, 0.9]))), "level"),
    "unbound": (lambda x, y: solve_linear(x, y, quantile_huber), "needs the setting 'level'"),
    "l2": (lambda x, y: solve_linear(x, y, l2=-1.0), "l2 must be finite and at least 0"),
    "estimator": (lambda x, y: solve_linear(x, y, huber, scale_estimator="madd"), "'mad'"),
    "no unit": (lambda x, y: solve_linear(x, y, mae, scale_estimator="mad"), "scale_estimator"),
    "not of the residual": (lambda x, y: solve_linear(x, y, smape), "log link"),
    "where": (lambda x, y: solve_linear(x, y, where=np.ones(60)), "boolean"),
    "no rows": (lambda x, y: solve_linear(x[:0], y[:0]), "nothing to fit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case):
    call, message = BAD[case]
    with pytest.raises((ValueError, TypeError, ShapeError), match=message) as caught:
        call(*rows_of())
    assert "\n" not in str(caught.value)


def test_under_jit_the_fields_tell():
    x, y = rows_of()
    x[0, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = jax.jit(solve_linear)(jnp.asarray(x), jnp.asarray(y))
    assert not fit.converged


@pytest.mark.slow
def test_covariance_against_statsmodels():
    models = pytest.importorskip("statsmodels.api")
    x, y = rows_of(200)
    design = np.column_stack([x, np.ones(200)])
    ours = solve_linear(x, y).standard_errors(x, y)
    np.testing.assert_allclose(ours, models.OLS(y, design).fit().bse, rtol=1e-9)
    counts = RANDOM.poisson(np.exp(0.3 * y)).astype(float)
    theirs = models.GLM(counts, design, models.families.Poisson()).fit(scale="X2", tol=1e-12)
    fit = solve_linear(x, counts, poisson_deviance)
    np.testing.assert_allclose(params(fit), theirs.params, rtol=1e-8)
    np.testing.assert_allclose(fit.standard_errors(x, counts), theirs.bse, rtol=1e-6)
    np.testing.assert_allclose(fit.predict(x), theirs.mu, rtol=1e-8)
    median = solve_linear(x, y, Partial(quantile, level=0.5))
    theirs = models.QuantReg(y, design).fit(0.5, vcov="iid").bse
    np.testing.assert_allclose(median.standard_errors(x, y), theirs, rtol=0.25)  # their kernel differs


def test_summary_is_a_table():
    x, y = rows_of()
    text = solve_linear(x, y).summary(x, y)
    assert re.search(r"^coef\[2\] +\S+ +\S+ +\S+$", text, re.MULTILINE)
    assert text.splitlines()[0].startswith("mse, 60 rows, rank 4: objective")
    assert "converged" in str(solve_linear(x, y))


MANY = {
    "median": (mae, {}),
    "levels": (Partial(quantile, level=jnp.array([0.02, 0.5, 0.9])), {}),
    "dead zone": (Partial(epsilon_insensitive, epsilon=0.3), {}),
    "ridge": (mae, {"l2": 30.0}),
    "ties": (Partial(quantile, level=0.3), {"weights": "some", "round": True}),
    "perfect": (mae, {"noise": 0.0}),
    "far": (mae, {"noise": 1e8, "shuffle": False}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY)
def test_many_rows_by_way_of_few_are_as_good_as_all_at_once(case, monkeypatch):
    loss, more = MANY[case]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, 2))
    noise = rng.standard_cauchy(3000) * more.get("noise", 1.0)
    y = x @ [1.0, -1.0] + 3 + (noise if more.get("shuffle", True) else np.sort(noise))
    y = np.round(y) if "round" in more else y
    weights = jnp.asarray(rng.poisson(1.0, 3000).astype(float)) if "weights" in more else jnp.ones(3000)

    def fit(y):
        return solve_linear(x, y, loss, weights=weights, l2=more.get("l2", 0.0))

    def both(y):
        slope = jax.grad(lambda y: jnp.sum(fit(y).coef))(jnp.asarray(y)) if case in ("median", "ridge") else 0
        return fit(y), slope

    few, slope = both(y)
    monkeypatch.setattr(preprocessing, "ROUNDS", -1)
    jax.clear_caches()
    whole, slope_of_all = both(y)
    assert np.all(few.converged)
    np.testing.assert_allclose(few.objective, whole.objective, rtol=1e-10, atol=1e-9)
    if "round" not in more:  # else many coefficients are as good
        np.testing.assert_allclose(few.coef, whole.coef, rtol=1e-8)
        np.testing.assert_allclose(slope, slope_of_all, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_that_the_sample_lacks(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 2))
    y = rng.poisson(np.exp(0.5 * x[:, 0] + 0.2 * x[:, 1] + 1)).astype(dtype)
    x[17, 0] = 1000.0  # under the coefficients of all others the mean of this row is e^500
    fit = solve_linear(x.astype(dtype), y, poisson_deviance)
    assert fit.coef.dtype == dtype
    np.testing.assert_allclose(fit.objective, 11140.598445, rtol=1e-6)
    np.testing.assert_allclose(fit.coef, [0.00122908, 0.1790249], rtol=1e-3)
    bad = y + 50 * (rng.random(6000) < 0.35)
    rare = np.column_stack([x[:, 1], np.arange(6000) % 1500 == 7]).astype(dtype)  # 4 rows
    robust = solve_linear(rare, (x[:, 1] + bad - y + 0.1 * rng.normal(size=6000)).astype(dtype), tukey)
    np.testing.assert_allclose([robust.coef[0], robust.intercept], [1, 0], atol=0.02)
    assert solve_linear(x.astype(dtype), y, mae).converged


@pytest.mark.slow
def test_a_wild_row_without_weight_has_finite_derivatives():
    rng = np.random.default_rng(0)
    x, y, weights = rng.normal(size=(30, 1)), rng.poisson(2, 30) + 1.0, np.ones(30)
    weights[0] = 0

    def told(x, y):
        fit = solve_linear(x, y, poisson_deviance, weights=weights)
        return jnp.sum(fit.coef) + fit.objective

    tame, wild = x.copy(), x.copy()
    wild[0] = 1e30
    for one, other in zip(jax.grad(told, (0, 1))(wild, y), jax.grad(told, (0, 1))(tame, y), strict=True):
        np.testing.assert_allclose(one[1:], other[1:], rtol=1e-9)


@pytest.mark.parametrize("closeness", [1.0, 0.03, 2e-3])
def test_as_an_accelerator_factors_the_columns(closeness, monkeypatch):
    """float32 on accelerators: Cholesky's factors twice, and Householder's where the columns are all but dependent."""
    random = np.random.default_rng(0)
    x = random.normal(5, 1, (3000, 4)).astype(np.float32)
    x[:, 3] = x[:, 2] + closeness * x[:, 3]
    target = (x @ np.arange(1, 5) + random.normal(size=3000)).astype(np.float32)
    want = np.linalg.lstsq(np.c_[x, np.ones(3000)].astype(np.float64), target.astype(np.float64))[0]
    monkeypatch.setattr(design, "_orthogonal", design._cholesky_twice)
    monkeypatch.setattr(design, "BLOCK", design.WIDE_BLOCK)
    jax.clear_caches()
    fit = solve_linear(x, target, mse)
    jax.clear_caches()
    assert fit.converged
    np.testing.assert_allclose(np.append(fit.coef, fit.intercept), want, rtol=2e-6)
    stacked = jnp.asarray((x - x.mean(0)) / np.linalg.norm(x - x.mean(0), axis=0))
    rows, triangle = design._cholesky_twice(stacked)
    np.testing.assert_allclose(rows.T @ rows, np.eye(4), atol=2e-5)
    np.testing.assert_allclose(rows @ triangle, stacked, atol=1e-6)
