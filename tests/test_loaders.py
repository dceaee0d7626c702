"""What users bring as data and as a model: loaders of every kind, dicts, tensors, modules; each trains or is told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from support import close, start_program
from test_fit import ROWS, data, linear, start

from jaxloss import mse
from jaxloss.train import Batch, Stream, fit, fit_many, supervised

SETTINGS = {"loss": mse, "optimizer": optax.sgd(0.1), "epochs": 2}
X, TARGET = data()
PARTS = [(X[rows], TARGET[rows]) for rows in np.split(np.arange(ROWS), [16, 32, 48])]


def trained(batches, **settings):
    return fit(linear, start(), batches, **SETTINGS, **settings).params


KINDS = {
    "lists": [list(part) for part in PARTS],
    "dicts": [{"x": x, "target": target} for x, target in PARTS],
    "dicts with y": [{"y": target, "x": x, "id": np.arange(len(x))} for x, target in PARTS],
    "dicts with names": Stream([{"image": x, "label": target} for x, target in PARTS], keys=("image", "label")),
    "batches": [Batch(*part) for part in PARTS],
    "batches on the device": [Batch(*map(jnp.asarray, part)) for part in PARTS],
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_any_kind(kind):
    close(trained(KINDS[kind]), trained(PARTS))


def test_a_torch_loader_and_tensors():
    torch = pytest.importorskip("torch")
    tensors = torch.tensor(X), torch.tensor(TARGET)
    dataset = torch.utils.data.TensorDataset(*tensors)
    close(trained(torch.utils.data.DataLoader(dataset, batch_size=16)), trained(PARTS))
    close(trained(tensors), trained((X, TARGET)))
    with pytest.raises(TypeError, match="fit: data must be arrays on the host, got Tensor") as told:
        trained((tensors[0].requires_grad_(), tensors[1]))
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_grain_with_two_worker_processes():
    pytest.importorskip("grain")
    output, errors = start_program("grain_workers").communicate(timeout=300)  # grain's workers write on the other one
    assert output.strip() == "trained", errors[-2000:]


def test_a_weight_of_a_dict_counts():
    weights = np.linspace(0, 1, ROWS, dtype=np.float32)
    named = {"x": X, "y": TARGET, "weights": weights}
    close(trained([named]), trained(Batch(X, TARGET, weights)))
    close(trained(named), trained(Batch(X, TARGET, weights)))
    close(trained(Stream([named], keys=("x", "y"))), trained((X, TARGET)))


def test_more_rows_a_batch_than_there_are_is_all_rows():
    close(trained((X, TARGET), batch_size=1000), trained((X, TARGET)))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), start())
    many = fit_many(linear, stacked, (X, TARGET), batch_size=1000, **SETTINGS)
    close(jax.tree.map(lambda leaf: leaf[1], many.params), trained((X, TARGET)), rtol=1e-5)


class Bare(nnx.Module):
    def __call__(self, x):
        return x


REFUSED = {
    "names": (
        lambda: trained([{"image": X, "label": TARGET}]),
        "got dict of image, label: say which are x",
    ),
    "no such key": (lambda: trained(Stream([{"x": X, "y": TARGET}], keys=("a", "b"))), "got dict of x, y"),
    "five parts": (lambda: trained([(X, TARGET, None, None, None)]), "got tuple of 5"),
    "one pass": (lambda: trained(iter([(X, TARGET)])), "no batch in epoch 2: an iterator serves one pass"),
    "one array": (
        lambda: trained([X]),
        "batch 0 of epoch 1 must be (x, target), a Batch or a dict",
    ),
    "an NNX module": (lambda: fit(Bare(), None, (X, TARGET), **SETTINGS), "Bare: pass the two of `apply, params"),
    "a linen module": (lambda: supervised(linen.Dense(1), mse), "apply is a flax module, Dense"),
    "no iterable": (lambda: Stream(3), "Stream: batches must be an iterable of them, got int"),
    "whole arrays": (lambda: Stream((X, TARGET)), "Stream: batches must be an iterable of them, got tuple"),
    "one key": (lambda: Stream([], keys="xy"), "Stream: keys must be the names of x and target"),
    "no steps": (lambda: Stream([], epoch_steps=0), "Stream: epoch_steps=0 must be at least 1"),
    "half a step": (lambda: Stream([], epoch_steps=1.5), "Stream: epoch_steps must be an integer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_is_told_in_one_line(case):
    refused, words = REFUSED[case]
    with pytest.raises((TypeError, ValueError)) as told:
        refused()
    assert words in str(told.value)
    assert "\n" not in str(told.value)
