"""Levenberg–Marquardt: certified digits, any loss against SciPy, what it says when there is no answer."""

from __future__ import annotations

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import jaxloss
from experiments import nist
from jaxloss import cauchy, epsilon_insensitive, huber, mae, mse, poisson_deviance, pseudo_huber, quantile, tukey
from jaxloss.solve import levenberg_marquardt

NIST = nist.Config().data
START = {"height": 1.0, "rate": 1.0, "floor": 0.0}
TRUTH = {"height": 3.0, "rate": 0.7, "floor": 0.5}
X = np.linspace(0, 4, 40)


def decay(params, x):
    return params["height"] * jnp.exp(-params["rate"] * x) + params["floor"]


def as_vector(params):
    return np.array([float(params[name]) for name in ("height", "rate", "floor")])


def linear(b, x):
    return x @ b


_random = np.random.default_rng(1)
FEATURES, WEIGHTS = _random.normal(size=(50, 3)), _random.uniform(0.5, 2, size=50)
TARGETS = FEATURES @ [1.0, -2.0, 0.5] + _random.standard_t(3, size=50)


def noisy(outliers=False):
    random = np.random.default_rng(3)
    y = np.asarray(3 * np.exp(-0.7 * X) + 0.5 + 0.1 * random.normal(size=X.size))
    if outliers:
        y[::8] += random.uniform(1, 3, size=y[::8].size)
    return y


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


# Problems of NIST's collection that are far harder than they look; y, x, starts, parameters, residual sum of squares.
HARD = {
    "MGH10": (
        [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872],
        np.arange(50, 126, 5),
        [[2, 400000, 25000], [0.02, 4000, 250]],
        [5.6096364710e-03, 6.1813463463e03, 3.4522363462e02],
        8.7945855171e01,
    ),
    "Rat43": (
        [
            *(16.08, 33.83, 65.80, 97.20, 191.55, 326.20, 386.87, 520.53, 590.03, 651.92),
            *(724.93, 699.56, 689.96, 637.56, 717.41),
        ],
        np.arange(1, 16),
        [[100, 10, 1, 1], [700, 5, 0.75, 1.3]],
        [6.9964151270e02, 5.2771253025, 7.5962938329e-01, 1.2792483859],
        8.7864049080e03,
    ),
    "MGH17": (
        [
            *(0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751, 0.718, 0.685, 0.658),
            *(0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490, 0.478, 0.467, 0.457, 0.448, 0.438, 0.431),
            *(0.424, 0.420, 0.414, 0.411, 0.406),
        ],
        np.arange(0, 321, 10),
        [[50, 150, -100, 1, 2], [0.5, 1.5, -1, 0.01, 0.02]],
        [0.37541005211, 1.9358469127, -1.4646871366, 0.012867534640, 0.022122699662],
        5.4648946975e-05,
    ),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "name", ["MGH10", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Rat43", "MGH17"))]
)
def test_hard_problems_of_nist(name):
    y, x, starts, coef, rss = HARD[name]
    for start in starts:
        fit = levenberg_marquardt(nist.MODELS[name], jnp.array(start, float), x.astype(float), np.array(y, float))
        assert fit.converged
        np.testing.assert_allclose(fit.params, coef, rtol=1e-10)
        np.testing.assert_allclose(fit.objective, rss, rtol=1e-10)


QUICK = ("BoxBOD",)


@pytest.mark.usefixtures("double")
@pytest.mark.skipif(not (NIST / "certified.json").exists(), reason="NIST's data are not here")
@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_certified_digits(slow):
    problems = nist.certified(NIST)["nonlinear"]
    names = set(problems) - set(QUICK) if slow else QUICK
    for name in names:
        for number in (1, 2):
            x, y = nist.arrays(name, problems[name])
            fit = levenberg_marquardt(nist.MODELS[name], jnp.array(problems[name][f"start{number}"]), x, y)
            assert fit.converged
            np.testing.assert_allclose(fit.params, problems[name]["coef"], rtol=1e-10, err_msg=name)
            np.testing.assert_allclose(fit.standard_errors, problems[name]["se"], rtol=1e-9, err_msg=name)
            spread = np.sqrt(fit.objective / problems[name]["df_resid"])
            np.testing.assert_allclose(spread, problems[name]["resid_sd"], rtol=1e-9, err_msg=name)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("loss", "theirs"),
    [
        (Partial(huber, delta=0.1), "huber"),
        pytest.param(Partial(cauchy, scale=0.1), "cauchy", marks=pytest.mark.slow),
        pytest.param(Partial(pseudo_huber, delta=0.1), "soft_l1", marks=pytest.mark.slow),
    ],
)
def test_robust_losses_agree_with_scipy(loss, theirs):
    least_squares = pytest.importorskip("scipy.optimize").least_squares
    y = noisy(outliers=True)

    def residuals(b):
        return b[0] * np.exp(-b[1] * X) + b[2] - y

    want = least_squares(residuals, [1, 1, 0], loss=theirs, f_scale=0.1, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    fit = levenberg_marquardt(decay, START, X, y, loss)
    assert fit.converged
    np.testing.assert_allclose(as_vector(fit.params), want.x, rtol=1e-7)
    np.testing.assert_allclose(fit.objective, want.cost, rtol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("start", [(100.0, 0.1, 50.0), (1e4, 5.0, -1e3)])
def test_huber_from_far_away(start):
    """Where every row is an outlier the loss has no curvature at all."""
    y, loss = noisy(outliers=True), Partial(huber, delta=0.001)
    fit = levenberg_marquardt(decay, dict(zip(START, start, strict=True)), X, y, loss)
    near = levenberg_marquardt(decay, TRUTH, X, y, loss)
    assert fit.converged
    np.testing.assert_allclose(as_vector(fit.params), as_vector(near.params), rtol=1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tukey", "welsch", "geman_mcclure", "fair", "log_cosh", "expectile", "msle"])
def test_every_smooth_loss_ends_where_its_gradient_vanishes(name):
    loss, y = getattr(jaxloss, name), noisy(outliers=True)
    fit = levenberg_marquardt(decay, TRUTH, X, y, loss)
    assert fit.converged
    gradient = jax.grad(lambda params: loss(decay(params, X), y, reduction="sum"))(fit.params)
    assert np.abs(as_vector(gradient)).max() < 1e-12


@pytest.mark.usefixtures("double")
@pytest.mark.slow
def test_poisson_regression_is_a_generalised_linear_model():
    """Against Fisher scoring, written out."""
    random = np.random.default_rng(0)
    design = np.column_stack([np.ones(60), random.normal(size=60)])
    counts = random.poisson(np.exp(design @ [0.5, 0.8])).astype(float)
    fit = levenberg_marquardt(lambda b, x: jnp.exp(x @ b), jnp.zeros(2), design, counts, poisson_deviance)
    b = np.zeros(2)
    for _ in range(30):
        mean = np.exp(design @ b)
        b = b + np.linalg.solve(design.T @ (mean[:, None] * design), design.T @ (counts - mean))
    assert fit.converged
    np.testing.assert_allclose(fit.params, b, rtol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.slow
def test_quantile_regression_is_a_linear_program():
    linprog = pytest.importorskip("scipy.optimize").linprog
    random = np.random.default_rng(4)
    x, level = np.column_stack([np.ones(40), random.normal(size=(40, 2))]), 0.3
    y = x @ [1.0, -2.0, 0.5] + random.standard_t(2, size=40)
    eye, costs = np.eye(40), np.concatenate([np.zeros(3), np.full(40, level), np.full(40, 1 - level)])
    program = linprog(costs, A_eq=np.column_stack([x, eye, -eye]), b_eq=y, bounds=[(None, None)] * 3 + [(0, None)] * 80)

    def solution(y):
        return levenberg_marquardt(lambda b, x: x @ b, jnp.zeros(3), x, y, Partial(quantile, level=level))

    fit = solution(y)
    assert fit.converged
    assert fit.objective >= program.fun * (1 - 1e-12)
    np.testing.assert_allclose(fit.objective, program.fun, rtol=1e-8)
    np.testing.assert_allclose(fit.params, program.x[:3], rtol=1e-6)
    assert np.isinf(fit.covariance).all()
    prices = program.eqlin.marginals
    np.testing.assert_allclose(jax.grad(lambda y: solution(y).objective)(jnp.array(y)), prices, atol=1e-6)
    vertex = np.flatnonzero(np.abs(x @ program.x[:3] - y) < 1e-9)  # three rows are met exactly
    jacobian = jax.jacrev(lambda y: solution(y).params)(jnp.array(y))
    np.testing.assert_allclose(jacobian[:, vertex], np.linalg.inv(x[vertex]), atol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.slow
def test_absolute_error_of_a_curve():
    """From two starts to the same vertex, where three rows are met; on exact data, to all of them."""
    y = noisy(outliers=True)
    fits = [levenberg_marquardt(decay, start, X, y, mae) for start in (START, TRUTH)]
    assert all(fit.converged for fit in fits)
    np.testing.assert_allclose(as_vector(fits[0].params), as_vector(fits[1].params), rtol=1e-7)
    residual = np.abs(np.asarray(decay(fits[0].params, X)) - y)
    assert np.sum(residual < 1e-7) == 3
    exact = levenberg_marquardt(decay, START, X, decay(TRUTH, X), mae)
    assert exact.converged
    np.testing.assert_allclose(as_vector(exact.params), as_vector(TRUTH), rtol=1e-12)


@pytest.mark.slow
def test_a_loss_with_its_kink_elsewhere_says_that_it_has_not_converged():
    with pytest.warns(RuntimeWarning, match="not converged"):
        levenberg_marquardt(decay, START, X, noisy(outliers=True), epsilon_insensitive)


@pytest.mark.usefixtures("double")
def test_covariance_of_least_squares():
    """σ²(XᵀWX)⁻¹ by its formula."""
    fit = levenberg_marquardt(linear, jnp.zeros(3), FEATURES, TARGETS, weights=WEIGHTS)
    normal = FEATURES.T @ (WEIGHTS[:, None] * FEATURES)
    b = np.linalg.solve(normal, FEATURES.T @ (WEIGHTS * TARGETS))
    np.testing.assert_allclose(fit.params, b, rtol=1e-12)
    spread = np.sum(WEIGHTS * (FEATURES @ b - TARGETS) ** 2) / 47
    np.testing.assert_allclose(fit.covariance, spread * np.linalg.inv(normal), rtol=1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("loss", "psi", "second"),
    [
        (huber, lambda r: np.clip(r, -1, 1), lambda r: np.abs(r) <= 1),
        pytest.param(cauchy, lambda r: r / (1 + r**2), lambda r: (1 - r**2) / (1 + r**2) ** 2, marks=pytest.mark.slow),
    ],
)
def test_covariance_of_other_losses_is_the_sandwich(loss, psi, second):
    fit = levenberg_marquardt(linear, jnp.zeros(3), FEATURES, TARGETS, loss, weights=WEIGHTS)
    residual = FEATURES @ np.asarray(fit.params) - TARGETS
    bread = np.linalg.inv(FEATURES.T @ ((WEIGHTS * second(residual))[:, None] * FEATURES))
    meat = FEATURES.T @ (((WEIGHTS * psi(residual)) ** 2)[:, None] * FEATURES)
    np.testing.assert_allclose(fit.covariance, 50 / 47 * bread @ meat @ bread, rtol=1e-9)


def test_perfect_fit_in_float32():
    fit = levenberg_marquardt(decay, START, X, decay(TRUTH, X))
    assert fit.converged
    assert fit.objective.dtype == jnp.float32
    assert fit.objective < 1e-11
    np.testing.assert_allclose(as_vector(fit.params), as_vector(TRUTH), rtol=1e-6)
    again = levenberg_marquardt(decay, fit.params, X, decay(TRUTH, X))
    assert again.converged
    assert again.iterations <= 3


@pytest.mark.slow
def test_masked_rows_are_absent_and_weights_repeat_rows():
    y = noisy()
    hole = np.arange(X.size) % 5 == 2
    x_with, y_with = np.where(hole, np.nan, X), np.where(hole, np.inf, y)
    masked = levenberg_marquardt(decay, START, x_with, y_with, where=~hole)
    deleted = levenberg_marquardt(decay, START, X[~hole], y[~hole])
    assert masked.converged
    np.testing.assert_allclose(as_vector(masked.params), as_vector(deleted.params), rtol=1e-5)
    np.testing.assert_allclose(masked.covariance, deleted.covariance, rtol=1e-4)
    weighted = levenberg_marquardt(decay, START, X, y, weights=np.where(hole, 0.0, 2.0))
    np.testing.assert_allclose(as_vector(weighted.params), as_vector(deleted.params), rtol=1e-5)
    np.testing.assert_allclose(weighted.objective, 2 * deleted.objective, rtol=1e-5)
    np.testing.assert_allclose(weighted.covariance, deleted.covariance, rtol=1e-4)


@pytest.mark.slow
def test_what_the_data_do_not_determine_has_infinite_errors():
    def model(params, x):
        return decay(params, x) + 0 * params["unused"].sum()

    fit = levenberg_marquardt(model, {**START, "unused": np.ones((2, 2))}, X, noisy())
    alone = levenberg_marquardt(decay, START, X, noisy())
    assert fit.converged
    assert np.isinf(fit.standard_errors["unused"]).all()
    assert fit.standard_errors["unused"].shape == (2, 2)
    np.testing.assert_allclose(fit.params["unused"], 1)
    np.testing.assert_allclose(fit.standard_errors["rate"], alone.standard_errors["rate"], rtol=1e-4)

    def product(params, x):
        return decay({**params, "height": params["height"] * params["twice"]}, x)

    fit = levenberg_marquardt(product, {**START, "twice": 1.0}, X, noisy())
    assert fit.converged
    assert {name for name, error in fit.standard_errors.items() if np.isinf(error)} == {"height", "twice"}
    np.testing.assert_allclose(fit.objective, alone.objective, rtol=1e-5)


@pytest.mark.slow
def test_fewer_rows_than_parameters():
    fit = levenberg_marquardt(decay, START, X[:2], noisy()[:2])
    assert fit.converged
    assert fit.objective < 1e-10
    assert np.isinf(fit.covariance).all()


@pytest.mark.slow
def test_outputs_share_parameters():
    def model(b, x):
        return jnp.stack([b[0] * jnp.exp(-b[1] * x), b[0] * x], -1)

    fit = levenberg_marquardt(model, [1.0, 1.0], X, np.stack([3 * np.exp(-0.7 * X), 3 * X], -1))
    assert fit.converged
    np.testing.assert_allclose(fit.params, [3, 0.7], rtol=1e-5)


def test_an_overflowing_step_is_refused():
    """From here the first Gauss–Newton step makes exp overflow."""
    x = np.linspace(0, 50, 30)
    fit = levenberg_marquardt(lambda b, x: b[0] * jnp.exp(b[1] * x), [1e-3, 0.01], x, 2 * np.exp(0.1 * x))
    assert fit.converged
    np.testing.assert_allclose(fit.params, [2, 0.1], rtol=1e-4)


@pytest.mark.slow
def test_jit_and_vmap_over_data_sets():
    sets = np.stack([noisy(), noisy(outliers=True), 3 * np.exp(-0.7 * X) + 0.5])
    fits = jax.jit(jax.vmap(lambda y: levenberg_marquardt(decay, START, X, y)))(sets)
    assert fits.converged.all()
    assert fits.standard_errors["rate"].shape == (3,)
    for number, y in enumerate(sets):
        alone = levenberg_marquardt(decay, START, X, y)
        np.testing.assert_allclose(fits.params["rate"][number], alone.params["rate"], rtol=1e-5)


def test_under_jit_the_field_says_that_there_is_no_answer():
    fit = jax.jit(lambda y: levenberg_marquardt(lambda b, x: jnp.log(b * x - 9), 1.0, X, y))(noisy())
    assert not fit.converged
    assert np.isnan(fit.objective)
    assert float(fit.params) == 1


@pytest.mark.usefixtures("double")
@pytest.mark.slow
def test_derivatives_of_the_solution():
    """Against central differences: in target, weights, x and a setting, forward and reverse."""
    random = np.random.default_rng(2)
    weights = random.uniform(0.5, 2, size=X.size)

    @jax.jit
    def solution(y, weights, x, delta):
        fit = levenberg_marquardt(decay, START, x, y, Partial(huber, delta=delta), weights=weights)
        return fit.params["rate"] + 2 * fit.params["height"] + fit.objective

    point = tuple(map(jnp.asarray, (noisy(outliers=True), weights, X, 0.1)))
    direction = tuple(jnp.asarray(random.normal(size=part.shape)) for part in point)
    step = 1e-5
    ends = [solution(*(part + sign * step * d for part, d in zip(point, direction))) for sign in (1, -1)]
    want = float((ends[0] - ends[1]) / (2 * step))
    np.testing.assert_allclose(jax.jvp(solution, point, direction)[1], want, rtol=1e-6)
    slopes = jax.grad(solution, argnums=(0, 1, 2, 3))(*point)
    np.testing.assert_allclose(sum(jnp.sum(s * d) for s, d in zip(slopes, direction)), want, rtol=1e-6)


def test_exports_for_every_platform_with_exact_products():
    """The model's own products are exact too."""

    def program(y):
        return levenberg_marquardt(linear, jnp.zeros(3), jnp.asarray(FEATURES), y, huber)

    target = jnp.asarray(TARGETS, jnp.float32)
    exported = jax.export.export(jax.jit(program), platforms=("cpu", "cuda", "tpu"))(target)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    products = re.findall(r" precision=(\S+)", str(jax.make_jaxpr(program)(target)))
    assert len(products) > 5
    assert all("HIGHEST" in product for product in products)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.out = nnx.Linear(1, 10, rngs=rngs), nnx.Linear(10, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))


@pytest.mark.slow
def test_a_network_goes_far_below_adam():
    optax = pytest.importorskip("optax")
    from jaxloss.train import fit, functional

    x = np.linspace(-1, 1, 200, dtype=np.float32)[:, None]
    y = np.sin(6 * x) + x**2
    apply, params = functional(Network(nnx.Rngs(0)))
    trained = fit(apply, params, (x, y), loss=mse, optimizer=optax.adam(1e-2), epochs=10_000)
    with pytest.warns(RuntimeWarning, match="100 iterations"):
        solved = levenberg_marquardt(apply, params, x, y, max_iterations=100)
    assert jax.tree.structure(solved.params) == jax.tree.structure(params)
    assert mse(apply(solved.params, x), y) < 1e-2 * mse(apply(trained.params, x), y)


NAN, INF = float("nan"), float("inf")
Y = noisy()
REFUSED = {
    "nan in x": (lambda: levenberg_marquardt(decay, START, np.where(X == 0, NAN, X), Y), ValueError, "x is nan at"),
    "inf in target": (lambda: levenberg_marquardt(decay, START, X, np.where(X == 0, INF, Y)), ValueError, "target is"),
    "nan in start": (lambda: levenberg_marquardt(decay, {**START, "rate": NAN}, X, Y), ValueError, "['rate'] is nan"),
    "nan weight": (lambda: levenberg_marquardt(decay, START, X, Y, weights=X * NAN), ValueError, "weights is nan"),
    "negative weight": (lambda: levenberg_marquardt(decay, START, X, Y, weights=-1.0), ValueError, "at least 0"),
    "column target": (lambda: levenberg_marquardt(decay, START, X, Y[:, None]), jaxloss.ShapeError, "[:, None]"),
    "short target": (lambda: levenberg_marquardt(decay, START, X, Y[:5]), jaxloss.ShapeError, "(5,)"),
    "0/1 mask": (lambda: levenberg_marquardt(decay, START, X, Y, where=np.ones(40, int)), TypeError, "boolean"),
    "bad setting": (
        lambda: levenberg_marquardt(decay, START, X, Y, Partial(huber, delta=-1)),
        ValueError,
        "delta must be positive",
    ),
    "no parameters": (lambda: levenberg_marquardt(decay, {}, X, Y), ValueError, "no numbers"),
    "complex": (lambda: levenberg_marquardt(decay, {**START, "rate": 1j}, X, Y), TypeError, "complex"),
    "two arrays": (lambda: levenberg_marquardt(lambda b, x: (x, x), 1.0, X, Y), TypeError, "one real"),
    "no function": (lambda: levenberg_marquardt(3, START, X, Y), TypeError, "apply must be"),
    "no curvature": (lambda: levenberg_marquardt(decay, START, X, Y, lambda p, t: 0), TypeError, "pointwise"),
    "nan at the start": (
        lambda: levenberg_marquardt(lambda b, x: jnp.log(b * x - 9), 1.0, X, Y),
        ValueError,
        "nan at the starting params",
    ),
    "overflow at the start": (
        lambda: levenberg_marquardt(lambda b, x: jnp.exp(b * x), 1e4, X, Y),
        ValueError,
        "inf at the starting params",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case):
    call, error, hint = REFUSED[case]
    with pytest.raises(error) as told:
        call()
    assert hint in str(told.value)
    assert "\n" not in str(told.value)


def test_a_result_that_has_not_converged_warns():
    with pytest.warns(RuntimeWarning, match="after 2 iterations"):
        fit = levenberg_marquardt(decay, START, X, Y, max_iterations=2)
    assert not fit.converged
    with pytest.warns(RuntimeWarning, match="no step lowers"):  # √0 has no derivative
        levenberg_marquardt(lambda b, x: jnp.sqrt(b) * x, 0.0, X, Y)


@pytest.mark.slow
def test_redescending_loss_ignores_outliers():
    clean = np.arange(X.size) % 8 != 0
    fit = levenberg_marquardt(decay, TRUTH, X, noisy(outliers=True), Partial(tukey, scale=0.9))
    alone = levenberg_marquardt(decay, TRUTH, X, noisy(outliers=True), Partial(tukey, scale=0.9), where=clean)
    assert fit.converged
    np.testing.assert_allclose(as_vector(fit.params), as_vector(alone.params), rtol=1e-3)
