"""The same numbers as PyTorch, scikit-learn, SciPy, statsmodels, Optax and torchmetrics, where they have the loss.

The table of peers is in `peers.py`, that of the disagreements is here. Every peer is asked for value, slope, curvature
and IRLS weight, as far as it has them, in six regions; where it differs from us must be exactly what the table says,
and ours are compared to the exact oracles of the catalogue all the same. PyTorch, torchmetrics and Optax are asked in
float32, as their users do, the others in float64.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import LONG, ROWS, Row, Settings
from peers import PEERS, Peer
from support import close, exact, sample

import jaxloss

QUANTITIES = ("value", "slope", "curvature", "weight")
BARS = dict(zip(QUANTITIES, (2e-6, 2e-6, 2e-5, 2e-6), strict=True))
LEAST = 2 * float(np.finfo(np.float32).tiny)
IN_FLOAT32 = ("torch", "torchmetrics", "optax")
ROUNDING = 1e-4
"""What the textbook forms of these lose of float32's seven digits at ordinary values; more is a disagreement."""

ROW = {row.name: row for row in ROWS}


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
    if peer.epsilon is not None:
        chosen = [{"epsilon": 1e-6}, {"epsilon": peer.epsilon}]
    elif not peer.settings:
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
    pytest.importorskip(peer.library)
    row, in_float32 = ROW[peer.loss], peer.library in IN_FLOAT32
    found = set()
    for settings in settings_of(peer):
        bound = tuple(settings.items())
        region, pred, target = elements(peer.loss, bound)
        given = (pred, target) if in_float32 else (np.float64(pred), np.float64(target))
        for quantity, numbers in peer.numbers(*given, **settings).items():
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
    pytest.importorskip(peer.library)
    row, pred, target = ROW[peer.loss], np.full(COUNT, residual, np.float32), np.zeros(COUNT, np.float32)
    with np.errstate(all="ignore"):
        given = (pred, target) if peer.library in IN_FLOAT32 else (np.float64(pred), np.float64(target))
        assert peer.numbers(*given, **settings)[quantity].tolist() == COUNT * [wrong]
    lift, oracle = (lambda loss: loss, row.value) if quantity == "value" else (jaxloss.slope, row.slope)
    got = lift(row.loss)(pred, target, **settings)
    close(np.ravel(got)[0], exact(oracle, row, pred[:1], target[:1], **settings)[0], rtol=2e-6, atol=0)
