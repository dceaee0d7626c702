"""The same numbers as PyTorch, scikit-learn, SciPy and Optax, where they have the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ROWS, each
from support import close, sample

import jaxloss

RANDOM = np.random.default_rng(0)
PRED, TARGET = (np.float32(3 * RANDOM.standard_normal((7, 3))) for _ in range(2))
WEIGHTS = np.float32(RANDOM.uniform(0.1, 3, (7, 1)))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@each([row for row in ROWS if row.torch])
def test_value_and_gradient_equal_torch(row, reduction):
    torch = pytest.importorskip("torch")
    function = getattr(torch.nn.functional, row.torch)
    pred, target = map(np.array, sample(row))
    for settings in row.settings:
        inputs = torch.tensor(pred, requires_grad=True)
        want = function(inputs, torch.tensor(target), reduction=reduction, **settings)
        want.sum().backward()

        def total(pred, settings=settings, target=target):
            losses = row.loss(pred, target, reduction=reduction, **settings)
            return losses.sum(), losses

        gradient, got = jax.grad(total, has_aux=True)(jnp.asarray(pred))
        close(got, want.detach().numpy())
        close(gradient, inputs.grad.numpy())


@pytest.mark.parametrize("name", ["mae", "huber", "smooth_l1"])
def test_gradient_at_a_perfect_fit_equals_torch(name):
    torch = pytest.importorskip("torch")
    row = next(row for row in ROWS if row.name == name)
    inputs = torch.zeros(3, requires_grad=True)
    getattr(torch.nn.functional, row.torch)(inputs, torch.zeros(3)).backward()
    close(jax.grad(row.loss)(jnp.zeros(3), jnp.zeros(3)), inputs.grad.numpy(), atol=0)


def test_weighted_mean_is_torch_mean_of_weighted_errors():
    torch = pytest.importorskip("torch")
    errors = torch.nn.functional.mse_loss(torch.tensor(PRED), torch.tensor(TARGET), reduction="none")
    close(jaxloss.mse(PRED, TARGET, weights=WEIGHTS), (errors * torch.tensor(WEIGHTS)).mean().numpy())


@pytest.mark.parametrize(("loss", "peer"), [("mse", "mean_squared_error"), ("mae", "mean_absolute_error")])
def test_weighted_means_equal_scikit_learn(loss, peer):
    metrics = pytest.importorskip("sklearn.metrics")
    want = getattr(metrics, peer)(TARGET, PRED, sample_weight=WEIGHTS[:, 0])
    close(getattr(jaxloss, loss)(PRED, TARGET, weights=WEIGHTS, reduction="weighted_mean"), np.float64(want))


def test_rmse_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    for weights in (None, WEIGHTS):
        per_row = None if weights is None else weights[:, 0]
        want = [
            metrics.root_mean_squared_error(TARGET[:, i], PRED[:, i], sample_weight=per_row)
            for i in range(TARGET.shape[1])
        ]
        close(jaxloss.rmse(PRED, TARGET, weights=weights, axis=0), np.array(want))


@pytest.mark.parametrize("name", ["huber", "pseudo_huber"])
def test_scipy(name):
    special = pytest.importorskip("scipy.special")
    for delta in (1e-3, 0.3, 1.0, 40.0):
        want = getattr(special, name)(delta, PRED.astype(np.float64) - TARGET)
        close(getattr(jaxloss, name)(PRED, TARGET, delta=delta, reduction="none"), want, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "peer"), [("mse", "squared_error"), ("huber", "huber_loss"), ("log_cosh", "log_cosh")]
)
def test_optax(name, peer):
    optax = pytest.importorskip("optax")
    want = np.asarray(getattr(optax, peer)(jnp.asarray(PRED), jnp.asarray(TARGET)))
    close(getattr(jaxloss, name)(PRED, TARGET, reduction="none"), want, rtol=1e-5)


def test_known_wrong_answers_elsewhere_are_right_here():
    def at(number):
        return jnp.array([number]), jnp.zeros(1)

    close(jaxloss.log_cosh(*at(1e-4)), np.float64(5e-9), rtol=1e-6, atol=0)  # 0 by the textbook form
    assert np.isfinite(jaxloss.log_cosh(*at(1e30)))
    for number in (1e-3, 1e-6):
        gradient = jax.grad(jaxloss.huber)(*at(number), delta=1000.0)
        close(gradient, np.array([number]), rtol=2e-6, atol=0)
    assert jax.grad(jaxloss.mae)(*at(0.0)).tolist() == [0.0]
