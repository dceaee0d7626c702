"""The same numbers as PyTorch, scikit-learn, SciPy, statsmodels, Optax and torchmetrics, where they have the loss.

The table of peers is in `peers.py`. Every peer is asked for value, slope, curvature and IRLS weight, as far as it has
them, in six regions, and must agree with us but where `NOT_COMPARED` says why it need not: there ours are compared to
the exact oracles of the catalogue alone, as they are everywhere. PyTorch, torchmetrics and Optax are asked in float32,
as their users do, the others in float64.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import LONG, ROW, Row, Settings
from peers import PEERS, Peer
from support import close, exact, sample

import jaxloss

QUANTITIES = ("value", "slope", "curvature", "weight")
BARS = dict(zip(QUANTITIES, (2e-6, 2e-6, 2e-5, 2e-6), strict=True))
LEAST = 2 * float(np.finfo(np.float32).tiny)
IN_FLOAT32 = ("torch", "torchmetrics", "optax")
ROUNDING = 1e-4
"""What the textbook forms of these lose of float32's seven digits at ordinary values; more is a disagreement."""

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


CANCELS = "the textbook form cancels: digits are lost as pred nears target, in the end all of them"
EPSILON = "its own ε: scikit-learn has 2.2e-16, torchmetrics 1.17e-6, and we 1e-6 if not told otherwise"
UNIT_HESSIAN = "1 by decree: gradient boosting divides by it"
ONE_SIDED = "its slope at a perfect fit is that of one side, so that no fit is stationary; ours is 0"
LARGER_SIDE = "at the corner of the slope it takes the side r = 0 belongs to by its spelling, we the smaller curvature"
ZERO_TIMES_LOG = "at power 1, 0·log 0 is replaced by 0, but its derivative is NaN"
EVERYWHERE = "ordinary near equal far"

SMAPE = "torchmetrics symmetric_mean_absolute_percentage_error"
MAPE = "mean_absolute_percentage_error"

NOT_COMPARED: tuple[tuple[str, str, str, str, str], ...] = (
    ("mae", "sklearn AbsoluteError", "slope", "equal", ONE_SIDED),
    ("mae", "sklearn AbsoluteError", "curvature", EVERYWHERE, UNIT_HESSIAN),
    (
        "huber",
        "optax huber_loss",
        "slope",
        "near",
        "|r| − min(|r|, δ) has a slope of 1 − 1, times δ",
    ),
    ("pseudo_huber", "scipy soft_l1", "value", "near", CANCELS),
    ("log_cosh", "optax log_cosh", "value slope", "near", CANCELS),
    ("log_cosh", "torchmetrics log_cosh_error", "value slope", "near", CANCELS),
    ("log_cosh", "torchmetrics log_cosh_error", "value slope", "far", "exp(r) overflows, at 100 already"),
    ("mape", f"sklearn {MAPE}", "value", "far zero", EPSILON),
    ("mape", f"torchmetrics {MAPE}", "value slope", "far zero", EPSILON),
    ("smape", SMAPE, "slope", "far", "the quotient rule cancels"),
    ("smape", SMAPE, "slope", "corner", "at the kink pred = 0 it takes one side, we the subgradient 0"),
    ("cauchy", "statsmodels StudentT", "value", "near", CANCELS),
    ("tukey", "statsmodels TukeyBiweight", "value", "near", CANCELS),
    ("barron", "scipy soft_l1", "value", "near", CANCELS),
    ("quantile", "sklearn PinballLoss", "slope", "equal", ONE_SIDED),
    ("quantile", "sklearn PinballLoss", "curvature", EVERYWHERE, UNIT_HESSIAN),
    ("expectile", "statsmodels MQuantileNorm", "curvature weight", "equal", LARGER_SIDE),
    ("quantile_huber", "statsmodels MQuantileNorm", "curvature weight", "equal", LARGER_SIDE),
    ("poisson_deviance", "torch poisson_nll_loss", "value slope", "near", CANCELS),
    *(
        (f"{family}_deviance", "torchmetrics tweedie_deviance_score", "value slope", "near", CANCELS)
        for family in ("poisson", "gamma", "tweedie")
    ),
    ("poisson_deviance", "torchmetrics tweedie_deviance_score", "slope", "zero", ZERO_TIMES_LOG),
    ("tweedie_deviance", "torchmetrics tweedie_deviance_score", "slope", "zero", ZERO_TIMES_LOG),
    ("tweedie_deviance", "sklearn mean_tweedie_deviance", "value", "near", CANCELS),
    ("tweedie_deviance", "statsmodels Tweedie", "value", "near", CANCELS),
)
"""(loss, peer, quantities, regions, why): where no agreement is asked of a peer. `experiments accuracy` shows it."""


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
def test_a_peer_agrees(peer):
    pytest.importorskip(peer.library)
    row, in_float32 = ROW[peer.loss], peer.library in IN_FLOAT32
    apart = {
        (quantity, region)
        for loss, name, quantities, regions, _ in NOT_COMPARED
        if (loss, name) == (peer.loss, peer.name)
        for quantity in quantities.split()
        for region in regions.split()
    }
    for settings in settings_of(peer):
        bound = tuple(settings.items())
        region, pred, target = elements(peer.loss, bound)
        given = (pred, target) if in_float32 else (np.float64(pred), np.float64(target))
        for quantity, numbers in peer.numbers(*given, **settings).items():
            numbers = np.float64(numbers)
            relative = ROUNDING if in_float32 else BARS[quantity] * row.tolerance
            least = np.where(region == "equal", 1e-5 if in_float32 else 1e-14, 0)  # 0 to rounding, at a perfect fit
            wrong = differ(ours(peer.loss, bound, quantity), numbers, relative * np.abs(numbers) + least)
            assert {(quantity, name) for name in region[wrong]} <= apart, settings


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


def test_every_exception_is_of_a_peer_in_the_table():
    assert {entry[:2] for entry in NOT_COMPARED} <= {(peer.loss, peer.name) for peer in PEERS}
    assert {quantity for entry in NOT_COMPARED for quantity in entry[2].split()} <= set(QUANTITIES)


# What is not elementwise.

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


OUTSIDE = {"msle": -1.5, "poisson_deviance": -1.0, "gamma_deviance": -1.0, "tweedie_deviance": -1.0}


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_the_domain_a_loss_is_nan(name):
    """scikit-learn raises there; a loss under `jit` cannot look at its values."""
    pred = np.full(COUNT, OUTSIDE[name], np.float32)
    assert np.isnan(ROW[name].loss(pred, np.ones(COUNT, np.float32), **ROW[name].usual))
