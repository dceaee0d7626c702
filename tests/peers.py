"""The losses of PyTorch, scikit-learn, SciPy, statsmodels, Optax and torchmetrics that the catalogue has: one table.

Where a peer computes a mean it is asked for one element at a time. All compute in the type of pred and target, but
Optax in float32. Nothing is imported before it is asked for; a library that is missing raises `ModuleNotFoundError`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Numbers = dict[str, Any]
"""Value, slope, curvature and IRLS weight of every element, as far as the peer has them."""
Settings = dict[str, Any]


# How each library is asked for its numbers: functions (pred, target, **settings) -> {quantity: array}.


def torch_loss(name: str, factor: float = 1.0, **fixed: Any) -> Callable[..., Numbers]:
    """An elementwise loss of torch.nn.functional."""

    def numbers(pred, target, **settings):
        functional = import_module("torch.nn.functional")
        return by_autograd(
            lambda p, t: factor * getattr(functional, name)(p, t, reduction="none", **fixed, **settings), pred, target
        )

    return numbers


def by_autograd(function: Callable, pred: np.ndarray, target: np.ndarray) -> Numbers:
    torch = import_module("torch")
    p = torch.tensor(pred, requires_grad=True)
    values = function(p, torch.tensor(target))
    (slope,) = torch.autograd.grad(values.sum(), p)
    return {"value": values.detach().numpy(), "slope": slope.numpy()}


def torch_poisson(pred, target):
    """Twice the log-likelihood ratio, which is the deviance; eps is what it adds to pred for fear of log 0."""
    nll = functools.partial(import_module("torch.nn.functional").poisson_nll_loss, log_input=False, eps=1e-30)
    return by_autograd(lambda p, t: 2 * (nll(p, t, reduction="none") - nll(t, t, reduction="none")), pred, target)


def torch_gaussian(pred, target, *, scale, full, factor, **_):
    functional, torch = import_module("torch.nn.functional"), import_module("torch")

    def nll(p, t):
        return factor * functional.gaussian_nll_loss(
            p, t, torch.full_like(p, scale * scale), full=full, reduction="none"
        )

    return by_autograd(nll, pred, target)


def torchmetric(name: str, **fixed: Any) -> Callable[..., Numbers]:
    """A metric of torchmetrics, a mean: asked for one element at a time."""

    def numbers(pred, target, *, epsilon=None, **settings):
        torch = import_module("torch")
        metric = getattr(import_module("torchmetrics.functional.regression"), name)

        def each(p, t):
            return torch.stack([metric(p[i : i + 1], t[i : i + 1], **fixed, **settings) for i in range(len(p))])

        return by_autograd(each, pred, target)

    return numbers


def optax_loss(name: str, factor: float = 1.0) -> Callable[..., Numbers]:
    def numbers(pred, target, **settings):
        loss = getattr(import_module("optax.losses"), name)
        both = jax.vmap(jax.value_and_grad(lambda p, t: factor * loss(p, t, **settings)))
        return dict(zip(("value", "slope"), map(np.asarray, both(jnp.asarray(pred), jnp.asarray(target))), strict=True))

    return numbers


def sklearn_metric(name: str, **names: str) -> Callable[..., Numbers]:
    """A metric of scikit-learn, a mean: asked for one element at a time. names: what it calls our settings."""

    def numbers(pred, target, *, epsilon=None, **settings):
        metric = getattr(import_module("sklearn.metrics"), name)
        settings = {names.get(key, key): value for key, value in settings.items()}

        def one(i):
            try:
                return metric(target[i : i + 1], pred[i : i + 1], **settings)
            except ValueError:  # outside what it accepts
                return np.nan

        return {"value": np.array([one(i) for i in range(len(pred))])}

    return numbers


def sklearn_loss(name: str, factor: float = 1.0, log_link: bool = False, **names: str) -> Callable[..., Numbers]:
    """A loss class of scikit-learn's estimators. Of one with a log link, the numbers for pred = exp(raw)."""

    def numbers(pred, target, **settings):
        loss = getattr(import_module("sklearn._loss.loss"), name)
        loss = loss(**{names.get(key, key): value for key, value in settings.items()})
        raw = np.log(pred) if log_link else pred
        value = loss.loss(target, raw) + loss.constant_to_optimal_zero(target)
        slope, curvature = loss.gradient_hessian(target, raw)
        if log_link:
            slope, curvature = slope / pred, (curvature - slope) / pred**2
        return {"value": factor * value, "slope": factor * slope, "curvature": factor * curvature}

    return numbers


def sklearn_sgd(name: str) -> Callable[..., Numbers]:
    """A loss of SGDRegressor."""

    def numbers(pred, target, *, epsilon):
        loss = getattr(import_module("sklearn.linear_model._sgd_fast"), name)(epsilon)
        pairs = list(zip(pred.tolist(), target.tolist(), strict=True))
        slopes = np.array([loss.py_dloss(p, t) for p, t in pairs])
        return {"value": np.array([loss.py_loss(p, t) for p, t in pairs]), "slope": slopes}

    return numbers


def scipy_special(name: str, factor: Callable[..., float] = lambda **_: 1.0) -> Callable[..., Numbers]:
    def numbers(pred, target, **settings):
        function = getattr(import_module("scipy.special"), name)
        length = settings.get("delta", settings.get("scale"))
        return {"value": factor(**settings) * function(length, pred - target)}

    return numbers


def scipy_poisson(pred, target):
    return {"value": 2 * import_module("scipy.special").kl_div(target, pred)}


def scipy_density(name: str, width: float = 1.0) -> Callable[..., Numbers]:
    def numbers(pred, target, *, scale, **_):
        family = getattr(import_module("scipy.stats"), name)
        return {"value": -family.logpdf(target, pred, width * scale)}

    return numbers


def scipy_least_squares(loss: str, width: float = 1.0, factor: Callable[..., float] = lambda **_: 1.0):
    """Cost and gradient of scipy.optimize.least_squares at its start."""

    def numbers(pred, target, **settings):
        least_squares = import_module("scipy.optimize").least_squares
        f_scale = width * settings.get("delta", settings.get("scale", 1.0))
        starts = pred - target
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
        own = norm(import_module("statsmodels.robust.norms"), **settings)
        residual, scaled = target - pred, factor(**settings)
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
        own = family(import_module("statsmodels.genmod.families"), **settings)
        return {"value": np.float64(own.resid_dev(target, pred)) ** 2}

    return numbers


class Peer(NamedTuple):
    """A loss of ours, what it is called elsewhere, its numbers there, and the settings it is limited to."""

    loss: str
    name: str
    """The library, and what it calls the loss."""
    numbers: Callable[..., Numbers]
    settings: tuple[Settings, ...] = ()
    """Empty if it takes all that ours takes."""
    epsilon: float | None = None
    """Its own ε, if it takes none."""

    @property
    def library(self) -> str:
        return self.name.split()[0].split(".")[0]


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
        epsilon=SCIKIT_EPSILON,
    ),
    Peer(
        "mape",
        "torchmetrics mean_absolute_percentage_error",
        torchmetric("mean_absolute_percentage_error"),
        epsilon=TORCHMETRICS_EPSILON,
    ),
    Peer(
        "smape",
        "torchmetrics symmetric_mean_absolute_percentage_error",
        torchmetric("symmetric_mean_absolute_percentage_error"),
        epsilon=TORCHMETRICS_EPSILON,
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
