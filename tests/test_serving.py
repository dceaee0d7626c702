"""A model that is saved and served, in a process that has neither its code nor jaxloss."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxloss import Standardizer
from jaxloss.train import functional, load_model, save_model

ROWS = np.random.default_rng(0).normal(3, 5, (7, 4))

SERVER = """
import sys
sys.modules["jaxloss"] = sys.modules["flax"] = sys.modules["optax"] = None  # they cannot be imported
import pathlib, jax, numpy, orbax.checkpoint as ocp
folder = pathlib.Path(sys.argv[1])
predict = jax.export.deserialize(bytearray((folder / "predict.bin").read_bytes())).call
params = ocp.StandardCheckpointer().restore(folder / "params")
numpy.save(folder / "pred.npy", predict(params, numpy.load(folder / "rows.npy")))
"""


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    apply, params = functional(Net(nnx.Rngs(0)))
    units = Standardizer.fit(ROWS)

    def predict(params, x):
        return apply(params, units.transform(x).astype(jnp.float32))

    folder = tmp_path_factory.mktemp("models") / "net"
    save_model(folder, params, {"units": units, "widths": [4, 8, 2]}, predict=predict, x=ROWS[:1].astype(np.float32))
    return folder, params, units, np.asarray(predict(params, ROWS.astype(np.float32)))


def test_it_comes_back(model):
    folder, params, units, pred = model
    saved = load_model(folder)
    assert jax.tree.structure(saved.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, saved.params, params)
    again = Standardizer(**saved.config["units"])
    np.testing.assert_array_equal(again.transform(ROWS), units.transform(ROWS))
    assert again.mean.dtype == units.mean.dtype
    assert saved.config["widths"] == [4, 8, 2]
    np.testing.assert_allclose(saved.predict(saved.params, ROWS.astype(np.float32)), pred, 1e-6, 1e-6)


def test_it_is_served_without_the_library(model):
    folder, _, _, pred = model
    np.save(folder / "rows.npy", ROWS.astype(np.float32))
    command = [sys.executable, "-c", SERVER, str(folder)]
    served = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert served.returncode == 0, served.stderr
    np.testing.assert_allclose(np.load(folder / "pred.npy"), pred, 1e-6, 1e-6)


def test_what_cannot_be_saved_or_read_is_told_in_one_line(model, tmp_path):
    folder, params, _, _ = model
    for call, error, words in (
        (lambda: save_model(folder, params), FileExistsError, "there already"),
        (lambda: save_model(tmp_path / "a", [jnp.ones(2)]), TypeError, "nested dicts"),
        (lambda: save_model(tmp_path / "a", params, predict=lambda params, x: x), TypeError, "predict needs x"),
        (lambda: save_model(tmp_path / "a", params, {"loss": print}), TypeError, "config"),
    ):
        with pytest.raises(error, match=words) as told:
            call()
        assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())
    path = folder / "model.json"
    text = path.read_text()
    path.write_text(text.replace("float32 (4, 8)", "float32 (8, 4)"))
    with pytest.raises(ValueError, match=r"float32 \(8, 4\)"):
        load_model(folder)
    path.write_text(text)
