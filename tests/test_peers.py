"""The same numbers as PyTorch, scikit-learn, SciPy, statsmodels, Optax and torchmetrics, where they have the loss.

One table of peers and one of the disagreements. Every peer is asked for value, slope, curvature and IRLS weight, as
far as it has them, in five regions; where it differs from us must be exactly what the second table says, and ours are
compared to the exact oracles of the catalogue all the same. PyTorch, torchmetrics and Optax compute in float32, as
their users do, the others in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import LONG, ROWS, Row, Settings
from support import close, exact, sample

import jaxloss

QUANTITIES = ("value", "slope", "curvature", "weight")
BARS = dict(zip(QUANTITIES, (2e-6, 2e-6, 2e-5, 2e-6), strict=True))
LEAST = 2 * float(np.finfo(np.float32).tiny)
IN_FLOAT32 = ("torch", "torchmetrics", "optax")
ROUNDING = 1e-4
"""What the textbook forms of these lose of float32's seven digits at ordinary values; more is a disagreement."""

ROW = {row.name: row for row in ROWS}
Numbers = dict[str, Any]


COUNT = 40
"""Elements in all regions together: one number for all losses, so that their operations compile once."""


def regions(row: Row, settings: Settings) -> dict[str, np.ndarray]:
    """Predictions and targets: ordinary ones, nearly equal, equal, far apart, at the corners, beside a target of 0."""
    equal = np.float32([value for value in (0.0, 1.0, -2.5, 7.0) if value > row.line.lower])
    if jaxloss.traits(row.loss).residual:
        near, far = np.float32([1e-6, 1e-4, 1e-3]), np.float32([1e2, 1e4, 1e15])
        corners = np.float32([r for r in row.corners(0.0, **settings) if r != 0])
        pairs = {"near": (np.r_[near, -near], 0), "far": (np.r_[far, -far], 0), "corner": (corners, 0)}
    else:
        near = np.float32(1 + np.r_[2.0**-20, -(2.0**-13), 2.0**-10])
        ratios, ones = np.float32([1e-8, 1e-4, 1e4, 1e8]), np.ones(4)
        corners = np.float32([p for p in row.corners(0.25, **settings) if p != 0.25])
        pairs = {"near": (near, 1), "far": (np.r_[ratios, ones], np.r_[ones, ratios]), "corner": (corners, 0.25)}
        if row.name != "gamma_deviance" and settings.get("power", 1) < 2:
            pairs["zero"] = (np.float32([0.5, 3.0]), 0)
    pairs["equal"] = equal, equal
    pairs = {name: np.float32(np.broadcast_arrays(*pair)) for name, pair in pairs.items() if len(pair[0])}
    rest = COUNT - sum(pair.shape[1] for pair in pairs.values())
    pred, target = np.round(np.float32(sample(row, (rest,))) * 1024) / 1024  # residuals are exact
    pred = np.where(np.abs(pred - target) < 0.1 * target, 2 * pred, pred) if row.line.lower == 0 else pred
    return {**pairs, "ordinary": np.stack([pred, target])}


# How each library is asked for its numbers: functions (pred, target, **settings) -> {quantity: array}.


def torch_loss(name: str, factor: float = 1.0, **fixed: Any) -> Callable[..., Numbers]:
    """An elementwise loss of torch.nn.functional."""

    def numbers(pred, target, **settings):
        functional = pytest.importorskip("torch.nn.functional")
        return by_autograd(
            lambda p, t: factor * getattr(functional, name)(p, t, reduction="none", **fixed, **settings), pred, target
        )

    return numbers


def by_autograd(function: Callable, pred: np.ndarray, target: np.ndarray) -> Numbers:
    torch = pytest.importorskip("torch")
    p = torch.tensor(pred, requires_grad=True)
    values = function(p, torch.tensor(target))
    (slope,) = torch.autograd.grad(values.sum(), p)
    return {"value": values.detach().numpy(), "slope": slope.numpy()}


def torch_poisson(pred, target):
    """Twice the log-likelihood ratio: the deviance. Its eps of 1e-8 guards against log 0."""
    nll = functools.partial(pytest.importorskip("torch.nn.functional").poisson_nll_loss, log_input=False, eps=1e-30)
    return by_autograd(lambda p, t: 2 * (nll(p, t, reduction="none") - nll(t, t, reduction="none")), pred, target)


def torch_gaussian(pred, target, *, scale, full, factor, **_):
    functional, torch = pytest.importorskip("torch.nn.functional"), pytest.importorskip("torch")

    def nll(p, t):
        return factor * functional.gaussian_nll_loss(
            p, t, torch.full_like(p, scale * scale), full=full, reduction="none"
        )

    return by_autograd(nll, pred, target)


def torchmetric(name: str, **fixed: Any) -> Callable[..., Numbers]:
    """A metric of torchmetrics, a mean: asked for one element at a time."""

    def numbers(pred, target, *, epsilon=None, **settings):
        torch = pytest.importorskip("torch")
        metric = getattr(pytest.importorskip("torchmetrics.functional.regression"), name)

        def each(p, t):
            return torch.stack([metric(p[i : i + 1], t[i : i + 1], **fixed, **settings) for i in range(len(p))])

        return by_autograd(each, pred, target)

    return numbers


def optax_loss(name: str, factor: float = 1.0) -> Callable[..., Numbers]:
    def numbers(pred, target, **settings):
        loss = getattr(pytest.importorskip("optax.losses"), name)
        both = jax.vmap(jax.value_and_grad(lambda p, t: factor * loss(p, t, **settings)))
        return dict(zip(QUANTITIES, map(np.asarray, both(jnp.asarray(pred), jnp.asarray(target))), strict=False))

    return numbers


def sklearn_metric(name: str, **names: str) -> Callable[..., Numbers]:
    """A metric of scikit-learn, a mean: asked for one element at a time. names: what it calls our settings."""

    def numbers(pred, target, *, epsilon=None, **settings):
        metric = getattr(pytest.importorskip("sklearn.metrics"), name)
        settings = {names.get(key, key): value for key, value in settings.items()}
        pairs = zip(np.float64(pred), np.float64(target), strict=True)
        return {"value": np.array([metric([t], [p], **settings) for p, t in pairs])}

    return numbers


def sklearn_loss(name: str, factor: float = 1.0, log_link: bool = False, **names: str) -> Callable[..., Numbers]:
    """A loss class of scikit-learn's estimators. Of one with a log link, the numbers for pred = exp(raw)."""

    def numbers(pred, target, **settings):
        loss = getattr(pytest.importorskip("sklearn._loss.loss"), name)
        loss = loss(**{names.get(key, key): value for key, value in settings.items()})
        mean, target = np.float64(pred), np.float64(target)
        raw = np.log(mean) if log_link else mean
        value = loss.loss(target, raw) + loss.constant_to_optimal_zero(target)
        slope, curvature = loss.gradient_hessian(target, raw)
        if log_link:
            slope, curvature = slope / mean, (curvature - slope) / mean**2
        return {"value": factor * value, "slope": factor * slope, "curvature": factor * curvature}

    return numbers


def sklearn_sgd(name: str) -> Callable[..., Numbers]:
    """A loss of SGDRegressor."""

    def numbers(pred, target, *, epsilon):
        loss = getattr(pytest.importorskip("sklearn.linear_model._sgd_fast"), name)(epsilon)
        pairs = list(zip(np.float64(pred), np.float64(target), strict=True))
        slopes = np.array([loss.py_dloss(p, t) for p, t in pairs])
        return {"value": np.array([loss.py_loss(p, t) for p, t in pairs]), "slope": slopes}

    return numbers


def scipy_special(name: str, factor: Callable[..., float] = lambda **_: 1.0) -> Callable[..., Numbers]:
    def numbers(pred, target, **settings):
        function = getattr(pytest.importorskip("scipy.special"), name)
        length = settings.get("delta", settings.get("scale"))
        return {"value": factor(**settings) * function(length, np.float64(pred) - target)}

    return numbers


def scipy_poisson(pred, target):
    return {"value": 2 * pytest.importorskip("scipy.special").kl_div(np.float64(target), np.float64(pred))}


def scipy_density(name: str, width: float = 1.0) -> Callable[..., Numbers]:
    def numbers(pred, target, *, scale, **_):
        family = getattr(pytest.importorskip("scipy.stats"), name)
        return {"value": -family.logpdf(np.float64(target), np.float64(pred), width * scale)}

    return numbers


def scipy_least_squares(loss: str, width: float = 1.0, factor: Callable[..., float] = lambda **_: 1.0):
    """Cost and gradient of scipy.optimize.least_squares at its start."""

    def numbers(pred, target, **settings):
        least_squares = pytest.importorskip("scipy.optimize").least_squares
        f_scale = width * settings.get("delta", settings.get("scale", 1.0))
        starts = np.float64(pred) - target
        fits = [
            least_squares(lambda x: x, r, lambda x: [[1.0]], loss=loss, f_scale=f_scale, max_nfev=1) for r in starts
        ]
        scaled = factor(**settings)
        return {
            "value": scaled * np.array([fit.cost for fit in fits]),
            "slope": scaled * np.array([fit.grad[0] for fit in fits]),
        }

    return numbers


def statsmodels_norm(norm: Callable[..., Any], factor: Callable[..., float] = lambda **_: 1.0):
    """rho, psi, psi′ and weights of a robust norm; norm(norms, **settings) builds it. Its residual is target − pred."""

    def numbers(pred, target, **settings):
        own = norm(pytest.importorskip("statsmodels.robust.norms"), **settings)
        residual, scaled = np.float64(target) - pred, factor(**settings)
        return {
            "value": scaled * own.rho(residual),
            "slope": -scaled * own.psi(residual),
            "curvature": scaled * own.psi_deriv(residual),
            "weight": scaled * own.weights(residual.copy()),
        }

    return numbers


def statsmodels_family(family: Callable[..., Any]) -> Callable[..., Numbers]:
    """The unit deviance of a family of generalized linear models."""

    def numbers(pred, target, **settings):
        own = family(pytest.importorskip("statsmodels.genmod.families"), **settings)
        return {"value": np.float64(own.resid_dev(np.float64(target), np.float64(pred))) ** 2}

    return numbers


class Peer(NamedTuple):
    """The loss of ours, what it is called elsewhere, its numbers there, and the settings to compare at."""

    loss: str
    name: str
    numbers: Callable[..., Numbers]
    settings: tuple[Settings, ...] = ()
    """The row's ordinary ones, and lengths of 1000, if empty."""


def at(**settings: tuple[float, ...]) -> tuple[Settings, ...]:
    return tuple(dict(zip(settings, values, strict=True)) for values in zip(*settings.values(), strict=True))


def powers(*values: float) -> tuple[Settings, ...]:
    return at(power=values)


def barrons(alpha: float) -> tuple[Settings, ...]:
    return at(alpha=(alpha, alpha), scale=(0.5, 40.0))


SCIKIT_EPSILON = float(np.finfo(np.float64).eps)
TORCHMETRICS_EPSILON = 1.17e-6

PEERS = (
    Peer("mse", "torch mse_loss", torch_loss("mse_loss")),
    Peer("mse", "torch gaussian_nll_loss", functools.partial(torch_gaussian, scale=1.0, full=False, factor=2)),
    Peer("mse", "torchmetrics mean_squared_error", torchmetric("mean_squared_error")),
    Peer("mse", "optax squared_error", optax_loss("squared_error")),
    Peer("mse", "optax l2_loss", optax_loss("l2_loss", 2)),
    Peer("mse", "sklearn mean_squared_error", sklearn_metric("mean_squared_error")),
    Peer("mse", "sklearn HalfSquaredError", sklearn_loss("HalfSquaredError", 2)),
    Peer("mse", "scipy linear", scipy_least_squares("linear", factor=lambda: 2)),
    Peer("mse", "statsmodels LeastSquares", statsmodels_norm(lambda norms: norms.LeastSquares(), lambda: 2)),
    Peer("mse", "statsmodels Gaussian", statsmodels_family(lambda families: families.Gaussian())),
    Peer("mae", "torch l1_loss", torch_loss("l1_loss")),
    Peer("mae", "torchmetrics mean_absolute_error", torchmetric("mean_absolute_error")),
    Peer("mae", "sklearn mean_absolute_error", sklearn_metric("mean_absolute_error")),
    Peer("mae", "sklearn AbsoluteError", sklearn_loss("AbsoluteError")),
    Peer("huber", "torch huber_loss", torch_loss("huber_loss")),
    Peer("huber", "optax huber_loss", optax_loss("huber_loss")),
    Peer("huber", "sklearn HuberLoss", sklearn_loss("HuberLoss")),
    Peer("huber", "scipy.special huber", scipy_special("huber")),
    Peer("huber", "scipy huber", scipy_least_squares("huber")),
    Peer("huber", "statsmodels HuberT", statsmodels_norm(lambda norms, delta: norms.HuberT(delta))),
    Peer("smooth_l1", "torch smooth_l1_loss", torch_loss("smooth_l1_loss")),
    Peer("pseudo_huber", "scipy.special pseudo_huber", scipy_special("pseudo_huber")),
    Peer("pseudo_huber", "scipy soft_l1", scipy_least_squares("soft_l1")),
    Peer("log_cosh", "optax log_cosh", optax_loss("log_cosh")),
    Peer("log_cosh", "torchmetrics log_cosh_error", torchmetric("log_cosh_error")),
    Peer("epsilon_insensitive", "sklearn EpsilonInsensitive", sklearn_sgd("EpsilonInsensitive")),
    Peer("squared_epsilon_insensitive", "sklearn SquaredEpsilonInsensitive", sklearn_sgd("SquaredEpsilonInsensitive")),
    Peer("msle", "sklearn mean_squared_log_error", sklearn_metric("mean_squared_log_error")),
    Peer("msle", "torchmetrics mean_squared_log_error", torchmetric("mean_squared_log_error")),
    Peer(
        "mape",
        "sklearn mean_absolute_percentage_error",
        sklearn_metric("mean_absolute_percentage_error"),
        at(epsilon=(1e-6, SCIKIT_EPSILON)),
    ),
    Peer(
        "mape",
        "torchmetrics mean_absolute_percentage_error",
        torchmetric("mean_absolute_percentage_error"),
        at(epsilon=(1e-6, TORCHMETRICS_EPSILON)),
    ),
    Peer(
        "smape",
        "torchmetrics symmetric_mean_absolute_percentage_error",
        torchmetric("symmetric_mean_absolute_percentage_error"),
        at(epsilon=(1e-6, TORCHMETRICS_EPSILON)),
    ),
    Peer("cauchy", "scipy cauchy", scipy_least_squares("cauchy")),
    Peer("cauchy", "statsmodels StudentT", statsmodels_norm(lambda norms, scale: norms.StudentT(scale, df=1))),
    Peer("tukey", "statsmodels TukeyBiweight", statsmodels_norm(lambda norms, scale: norms.TukeyBiweight(scale))),
    Peer(
        "barron", "scipy cauchy", scipy_least_squares("cauchy", 2**0.5, lambda alpha, scale: 1 / scale**2), barrons(0.0)
    ),
    Peer("barron", "scipy soft_l1", scipy_least_squares("soft_l1", 1, lambda alpha, scale: 1 / scale**2), barrons(1.0)),
    Peer(
        "barron",
        "scipy.special pseudo_huber",
        scipy_special("pseudo_huber", lambda alpha, scale: 1 / scale**2),
        barrons(1.0),
    ),
    Peer("barron_nll", "torch gaussian_nll_loss", functools.partial(torch_gaussian, full=True, factor=1), barrons(2.0)),
    Peer("barron_nll", "scipy.stats norm", scipy_density("norm"), barrons(2.0)),
    Peer("barron_nll", "scipy.stats cauchy", scipy_density("cauchy", 2**0.5), barrons(0.0)),
    Peer("quantile", "sklearn mean_pinball_loss", sklearn_metric("mean_pinball_loss", level="alpha")),
    Peer("quantile", "sklearn PinballLoss", sklearn_loss("PinballLoss", level="quantile")),
    Peer(
        "expectile",
        "statsmodels MQuantileNorm",
        statsmodels_norm(lambda norms, level: norms.MQuantileNorm(level, norms.LeastSquares()), lambda level: 2),
    ),
    Peer(
        "quantile_huber",
        "statsmodels MQuantileNorm",
        statsmodels_norm(
            lambda norms, level, delta: norms.MQuantileNorm(level, norms.HuberT(delta)), lambda level, delta: 1 / delta
        ),
    ),
    Peer("poisson_deviance", "torch poisson_nll_loss", torch_poisson),
    Peer("poisson_deviance", "torchmetrics tweedie_deviance_score", torchmetric("tweedie_deviance_score", power=1.0)),
    Peer("poisson_deviance", "sklearn mean_poisson_deviance", sklearn_metric("mean_poisson_deviance")),
    Peer("poisson_deviance", "sklearn HalfPoissonLoss", sklearn_loss("HalfPoissonLoss", 2, log_link=True)),
    Peer("poisson_deviance", "scipy.special kl_div", scipy_poisson),
    Peer("poisson_deviance", "statsmodels Poisson", statsmodels_family(lambda families: families.Poisson())),
    Peer("gamma_deviance", "torchmetrics tweedie_deviance_score", torchmetric("tweedie_deviance_score", power=2.0)),
    Peer("gamma_deviance", "sklearn mean_gamma_deviance", sklearn_metric("mean_gamma_deviance")),
    Peer("gamma_deviance", "sklearn HalfGammaLoss", sklearn_loss("HalfGammaLoss", 2, log_link=True)),
    Peer("gamma_deviance", "statsmodels Gamma", statsmodels_family(lambda families: families.Gamma())),
    Peer("tweedie_deviance", "torchmetrics tweedie_deviance_score", torchmetric("tweedie_deviance_score")),
    Peer("tweedie_deviance", "sklearn mean_tweedie_deviance", sklearn_metric("mean_tweedie_deviance")),
    Peer("tweedie_deviance", "sklearn HalfTweedieLossIdentity", sklearn_loss("HalfTweedieLossIdentity", 2)),
    Peer("tweedie_deviance", "sklearn HalfTweedieLoss", sklearn_loss("HalfTweedieLoss", 2, log_link=True)),
    Peer(
        "tweedie_deviance",
        "statsmodels Tweedie",
        statsmodels_family(lambda families, power: families.Tweedie(var_power=power)),
        powers(1.7, 1.0, 2.0),
    ),
    Peer(
        "tweedie_deviance",
        "statsmodels InverseGaussian",
        statsmodels_family(lambda families, power: families.InverseGaussian()),
        powers(3.0),
    ),
)


class Disagreement(NamedTuple):
    """Regions in which a peer gives another number than we, and why; ours are exact there."""

    loss: str
    name: str
    quantity: str
    regions: str
    why: str


CANCELS = "the textbook form cancels: digits are lost as pred nears target, in the end all of them"
EPSILON = "its own ε: scikit-learn has 2.2e-16, torchmetrics 1.17e-6, and we 1e-6 if not told otherwise"
UNIT_HESSIAN = "1 by decree: gradient boosting divides by it"
ONE_SIDED = "its slope at a perfect fit is that of one side, so that no fit is stationary; ours is 0"
LARGER_SIDE = "at the corner of the slope it takes the side r = 0 belongs to by its spelling, we the smaller curvature"
EVERYWHERE = "ordinary near equal far"

DISAGREEMENTS = (
    Disagreement("mae", "sklearn AbsoluteError", "slope", "equal", ONE_SIDED),
    Disagreement("mae", "sklearn AbsoluteError", "curvature", EVERYWHERE, UNIT_HESSIAN),
    Disagreement(
        "huber",
        "optax huber_loss",
        "slope",
        "near",
        "|r| − min(|r|, δ) has a slope of 1 − 1, times δ: δ = 1000 leaves 0",
    ),
    Disagreement("pseudo_huber", "scipy soft_l1", "value", "near", CANCELS),
    Disagreement("log_cosh", "optax log_cosh", "value", "near", CANCELS),
    Disagreement("log_cosh", "optax log_cosh", "slope", "near", CANCELS),
    Disagreement("log_cosh", "torchmetrics log_cosh_error", "value", "near", CANCELS),
    Disagreement("log_cosh", "torchmetrics log_cosh_error", "slope", "near", CANCELS),
    Disagreement("log_cosh", "torchmetrics log_cosh_error", "value", "far", "exp(r) overflows, at 100 already"),
    Disagreement("log_cosh", "torchmetrics log_cosh_error", "slope", "far", "inf / inf is NaN"),
    Disagreement("mape", "sklearn mean_absolute_percentage_error", "value", "far zero", EPSILON),
    Disagreement("mape", "torchmetrics mean_absolute_percentage_error", "value", "far zero", EPSILON),
    Disagreement("mape", "torchmetrics mean_absolute_percentage_error", "slope", "far zero", EPSILON),
    Disagreement(
        "smape", "torchmetrics symmetric_mean_absolute_percentage_error", "slope", "far", "the quotient rule cancels"
    ),
    Disagreement(
        "smape",
        "torchmetrics symmetric_mean_absolute_percentage_error",
        "slope",
        "corner",
        "at the kink pred = 0 it takes one side, we the subgradient 0",
    ),
    Disagreement("cauchy", "statsmodels StudentT", "value", "near", CANCELS),
    Disagreement("tukey", "statsmodels TukeyBiweight", "value", "near", CANCELS),
    Disagreement("barron", "scipy soft_l1", "value", "near", CANCELS),
    Disagreement("quantile", "sklearn PinballLoss", "slope", "equal", ONE_SIDED),
    Disagreement("quantile", "sklearn PinballLoss", "curvature", EVERYWHERE, UNIT_HESSIAN),
    Disagreement("expectile", "statsmodels MQuantileNorm", "curvature", "equal", LARGER_SIDE),
    Disagreement("expectile", "statsmodels MQuantileNorm", "weight", "equal", LARGER_SIDE),
    Disagreement("quantile_huber", "statsmodels MQuantileNorm", "curvature", "equal", LARGER_SIDE),
    Disagreement("quantile_huber", "statsmodels MQuantileNorm", "weight", "equal", LARGER_SIDE),
    Disagreement("poisson_deviance", "torch poisson_nll_loss", "value", "near", CANCELS),
    Disagreement("poisson_deviance", "torch poisson_nll_loss", "slope", "near", CANCELS),
    Disagreement("poisson_deviance", "torchmetrics tweedie_deviance_score", "value", "near", CANCELS),
    Disagreement("poisson_deviance", "torchmetrics tweedie_deviance_score", "slope", "near", CANCELS),
    Disagreement(
        "poisson_deviance",
        "torchmetrics tweedie_deviance_score",
        "slope",
        "zero",
        "0·log 0 is replaced by 0, but its derivative is NaN",
    ),
    Disagreement("gamma_deviance", "torchmetrics tweedie_deviance_score", "value", "near", CANCELS),
    Disagreement("gamma_deviance", "torchmetrics tweedie_deviance_score", "slope", "near", CANCELS),
    Disagreement("tweedie_deviance", "torchmetrics tweedie_deviance_score", "value", "near", CANCELS),
    Disagreement("tweedie_deviance", "torchmetrics tweedie_deviance_score", "slope", "near", CANCELS),
    Disagreement(
        "tweedie_deviance",
        "torchmetrics tweedie_deviance_score",
        "slope",
        "zero",
        "at power 1: 0·log 0 is replaced by 0, but its derivative is NaN",
    ),
    Disagreement("tweedie_deviance", "sklearn mean_tweedie_deviance", "value", "near", CANCELS),
    Disagreement("tweedie_deviance", "statsmodels Tweedie", "value", "near", CANCELS),
)


def settings_of(peer: Peer) -> list[Settings]:
    row = ROW[peer.loss]
    chosen = list(peer.settings or row.settings)
    if not peer.settings:
        chosen += [{**row.usual, name: 1000.0} for name in ("delta", "beta", "scale") if name in row.usual]
    return [{name: float(np.float32(value)) for name, value in settings.items()} for settings in chosen]


Bound = tuple[tuple[str, float], ...]


@functools.cache
def elements(name: str, settings: Bound) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All regions end to end: the name of each element's region, its prediction and its target."""
    parts = regions(ROW[name], dict(settings))
    region = np.concatenate([np.full(pair.shape[1], name) for name, pair in parts.items()])
    return region, *np.concatenate([*parts.values()], axis=1)


@functools.cache
def ours(name: str, settings: Bound, quantity: str) -> np.ndarray:
    loss, (_, pred, target) = ROW[name].loss, elements(name, settings)
    given = {name: jnp.float32(value) for name, value in settings}
    with jax.disable_jit():
        if quantity == "value":
            return np.float64(np.asarray(loss(pred, target, reduction="none", **given)))
        lift = {"slope": jaxloss.slope, "curvature": jaxloss.curvature, "weight": jaxloss.irls_weight}[quantity]
        return np.float64(np.asarray(lift(loss)(pred, target, **given)))


def differ(got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> np.ndarray:
    finite = np.isfinite(got) & np.isfinite(want)
    return (got != want) & ~(finite & (np.abs(np.where(finite, got, 0) - np.where(finite, want, 0)) <= bound))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("peer", PEERS, ids=[f"{peer.loss}-{peer.name}".replace(" ", "-") for peer in PEERS])
def test_a_peer_differs_where_the_table_says_and_nowhere_else(peer):
    row, in_float32 = ROW[peer.loss], peer.name.split()[0] in IN_FLOAT32
    found = set()
    for settings in settings_of(peer):
        bound = tuple(settings.items())
        region, pred, target = elements(peer.loss, bound)
        for quantity, numbers in peer.numbers(pred, target, **settings).items():
            numbers = np.float64(numbers)
            relative = ROUNDING if in_float32 else BARS[quantity] * row.tolerance
            least = np.where(region == "equal", 1e-5 if in_float32 else 1e-14, 0)  # 0 to rounding, at a perfect fit
            wrong = differ(ours(peer.loss, bound, quantity), numbers, relative * np.abs(numbers) + least)
            found |= {f"{quantity} {name}" for name in region[wrong]}
    listed = [entry for entry in DISAGREEMENTS if (entry.loss, entry.name) == (peer.loss, peer.name)]
    assert found == {f"{entry.quantity} {region}" for entry in listed for region in entry.regions.split()}


@pytest.mark.parametrize("name", sorted({peer.loss for peer in PEERS}))
def test_where_peers_are_asked_ours_are_exact(name):
    row = ROW[name]
    oracles = [*zip(QUANTITIES, (row.value, row.slope, row.curvature), row.sizes, strict=False)]
    for settings in {tuple(settings.items()) for peer in PEERS if peer.loss == name for settings in settings_of(peer)}:
        _, pred, target = elements(name, settings)
        for quantity, oracle, size in oracles[: 2 if name in LONG else 3]:
            want, unit = (exact(part, row, pred, target, **dict(settings)) for part in (oracle, size))
            bound = np.maximum(BARS[quantity] * row.tolerance * unit, LEAST)
            wrong = differ(ours(name, settings, quantity), want, bound)
            assert not wrong.any(), (quantity, settings, pred[wrong], target[wrong])


def test_every_disagreement_is_of_a_peer_in_the_table():
    assert {(entry.loss, entry.name) for entry in DISAGREEMENTS} <= {(peer.loss, peer.name) for peer in PEERS}
    assert all(entry.quantity in QUANTITIES and entry.why for entry in DISAGREEMENTS)


# What is not elementwise, and figures worth remembering.

PRED, TARGET = np.float32(np.exp(np.random.default_rng(0).standard_normal((2, COUNT))))
WEIGHTS = np.float32(np.random.default_rng(1).uniform(0.1, 3, COUNT))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss"])
def test_reductions_are_those_of_torch(name):
    functional, torch = pytest.importorskip("torch.nn.functional"), pytest.importorskip("torch")
    loss = {"mse_loss": jaxloss.mse, "l1_loss": jaxloss.mae}.get(name) or getattr(jaxloss, name.removesuffix("_loss"))
    for reduction in ("mean", "sum", "none"):
        pred = torch.tensor(PRED, requires_grad=True)
        want = getattr(functional, name)(pred, torch.tensor(TARGET), reduction=reduction)
        want.sum().backward()
        close(loss(PRED, TARGET, reduction=reduction), want.detach().numpy())
        gradient = jax.grad(lambda p, how=reduction: loss(p, TARGET, reduction=how).sum())(PRED)
        close(gradient, pred.grad.numpy())
    errors = getattr(functional, name)(torch.tensor(PRED), torch.tensor(TARGET), reduction="none")
    close(loss(PRED, TARGET, weights=WEIGHTS), (errors * torch.tensor(WEIGHTS)).mean().numpy())


WEIGHTED = {
    "mse": ("mean_squared_error", {}),
    "mae": ("mean_absolute_error", {}),
    "msle": ("mean_squared_log_error", {}),
    "mape": ("mean_absolute_percentage_error", {}),
    "quantile": ("mean_pinball_loss", {"level": "alpha"}),
    "poisson_deviance": ("mean_poisson_deviance", {}),
    "gamma_deviance": ("mean_gamma_deviance", {}),
    "tweedie_deviance": ("mean_tweedie_deviance", {"power": "power"}),
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_means_are_those_of_scikit_learn(name):
    (metric, names), row = WEIGHTED[name], ROW[name]
    metric, settings = getattr(pytest.importorskip("sklearn.metrics"), metric), row.usual if WEIGHTED[name][1] else {}
    theirs = {names[key]: value for key, value in settings.items()}
    want = metric(np.float64(TARGET), np.float64(PRED), sample_weight=WEIGHTS, **theirs)
    got = row.loss(PRED, TARGET, weights=WEIGHTS, reduction="weighted_mean", **settings)
    close(got, np.float64(want), rtol=5e-6)


def test_rmse_is_that_of_scikit_learn_and_torchmetrics():
    metrics, torch = pytest.importorskip("sklearn.metrics"), pytest.importorskip("torch")
    for weights in (None, WEIGHTS):
        want = metrics.root_mean_squared_error(TARGET, PRED, sample_weight=weights)
        close(jaxloss.rmse(PRED, TARGET, weights=weights), np.float64(want))
    metric = pytest.importorskip("torchmetrics.functional.regression").mean_squared_error
    close(jaxloss.rmse(PRED, TARGET), metric(torch.tensor(PRED), torch.tensor(TARGET), squared=False).numpy())


REFUSED = {
    "msle": (-1.5, 1.0),
    "poisson_deviance": (-1.0, 1.0),
    "gamma_deviance": (-1.0, 1.0),
    "tweedie_deviance": (-1.0, 1.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_outside_the_domain_scikit_learn_raises_and_ours_is_nan(name):
    """A loss under `jit` cannot look at its values."""
    (metric, names), row = WEIGHTED[name], ROW[name]
    pred, target = (np.full(COUNT, value, np.float32) for value in REFUSED[name])
    settings = {names[key]: value for key, value in row.usual.items()}
    with pytest.raises(ValueError, match=r"negative|positive|values|only"):
        getattr(pytest.importorskip("sklearn.metrics"), metric)(target, pred, **settings)
    assert np.isnan(row.loss(pred, target, **row.usual))


FIGURES = {
    "optax log_cosh": ({}, 1e-4, "value", 0.0),
    "optax huber_loss": ({"delta": 1000.0}, 1e-6, "slope", 0.0),
    "torchmetrics log_cosh_error": ({}, 100.0, "value", np.inf),
    "sklearn AbsoluteError": ({}, 0.0, "slope", -1.0),
    "scipy soft_l1": ({"delta": 1000.0}, 1e-6, "value", 0.0),
    "statsmodels TukeyBiweight": ({"scale": 1000.0}, 1e-6, "value", 0.0),
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", FIGURES)
def test_figures_worth_remembering(name):
    settings, residual, quantity, wrong = FIGURES[name]
    peer = next(peer for peer in PEERS if peer.name == name)
    row, pred, target = ROW[peer.loss], np.full(COUNT, residual, np.float32), np.zeros(COUNT, np.float32)
    with np.errstate(all="ignore"):
        assert peer.numbers(pred, target, **settings)[quantity].tolist() == COUNT * [wrong]
    lift, oracle = (lambda loss: loss, row.value) if quantity == "value" else (jaxloss.slope, row.slope)
    got = lift(row.loss)(pred, target, **settings)
    close(np.ravel(got)[0], exact(oracle, row, pred[:1], target[:1], **settings)[0], rtol=2e-6, atol=0)
