"""A trained model on disk: its parameters as orbax lays them out, what it needs in JSON, and its compiled predictor.

folder/params/       the parameters, which orbax reads
folder/model.json    the configuration, and dtype and shape of every parameter and feature
folder/predict.bin   the predictor as `jax.export` writes it; if one was given
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import SingleDeviceSharding

from jaxloss.contract import shown
from jaxloss.train.storage import described, flat

__all__ = ["SavedModel", "load_model", "save_model"]

PARAMS, MODEL, PREDICT = "params", "model.json", "predict.bin"


class SavedModel(NamedTuple):
    """What `load_model` returns."""

    params: Any
    config: dict[str, Any]
    predict: Callable[[Any, Any], Any] | None
    """`predict(params, x)`; None if none was saved."""


def save_model(
    folder: str | Path,
    params: Any,
    config: dict[str, Any] | None = None,
    *,
    predict: Callable | None = None,
    x: Any = None,
) -> None:
    """Write a model that can be served without its code, and without this library.

    folder: must not exist; it appears when all is written.
    params: nested dicts of arrays, as `functional` gives.
    config: what else the model needs, by name: what JSON can hold, arrays, and named tuples of them such as a
        `Standardizer`, which come back as arrays and dicts: `Standardizer(**config["units"])`.
    predict: `predict(params, x) -> pred`, such as `apply`, or one that scales before and after. It is exported for any
        number of rows, on CPUs, GPUs and TPUs.
    x: features, as `predict` will be given; of them dtypes and shapes count, but for the number of rows.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     line = lambda params, x: params["slope"] * x
    ...     save_model(f"{folder}/line", {"slope": jnp.array(2.0)}, {"unit": "m"}, predict=line, x=jnp.zeros(1))
    ...     params, config, predict = load_model(f"{folder}/line")
    >>> predict(params, jnp.arange(3.0)).tolist(), config
    ([0.0, 2.0, 4.0], {'unit': 'm'})
    """
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    if folder.exists():
        raise FileExistsError(f"save_model: {folder} is there already: choose another folder")
    if not isinstance(params, dict) or not params:
        raise TypeError(f"save_model: params must be nested dicts of arrays, got {shown(params)}")
    params = jax.tree.map(jnp.asarray, params)
    try:
        text = json.dumps({"config": _encode(config or {}), "params": _shapes(params), "x": _shapes(x)}, indent=2)
    except TypeError as error:
        raise TypeError(f"save_model: config must be what JSON can hold, and arrays: {error}") from None
    program = None
    if predict is not None:
        if not jax.tree.leaves(x):
            raise TypeError("save_model: predict needs x, features of the dtypes and shapes it will be given")
        rows = export.symbolic_shape("rows")
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*rows, *jnp.shape(leaf)[1:]), jnp.result_type(leaf)), x)
        program = export.export(jax.jit(predict), platforms=("cpu", "cuda", "tpu"))(params, like).serialize()
    aside = folder.with_name(f"unfinished_{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    (aside / MODEL).write_text(text)
    if program is not None:
        (aside / PREDICT).write_bytes(program)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(aside / PARAMS, params)
    aside.rename(folder)


def load_model(folder: str | Path) -> SavedModel:
    """Read what `save_model` has written; raises `ValueError` for parameters not of the shapes in `model.json`."""
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    told = json.loads((folder / MODEL).read_text())
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder / PARAMS).item_metadata.tree
        here = next(iter(jnp.zeros(()).devices()))  # they may have been saved from another device
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(here)), found
        )
        params = checkpointer.restore(folder / PARAMS, like)
    if _shapes(params) != told["params"]:
        raise ValueError(f"load_model: {folder} holds parameters {_shapes(params)}, {MODEL} tells of {told['params']}")
    path = folder / PREDICT
    predict = export.deserialize(bytearray(path.read_bytes())).call if path.exists() else None
    return SavedModel(params, _decode(told["config"]), predict)


def _shapes(tree: Any) -> dict[str, str]:
    return {path: described(path, jnp.asarray(leaf)) for path, leaf in flat(tree).items()}


ARRAY = "dtype of the array"
"""The entry by which the JSON of an array is told from a dict."""


def _encode(value: Any) -> Any:
    """What JSON can hold, from which `_decode` makes the same again."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return {ARRAY: str(value.dtype), "values": np.asarray(value).tolist()}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(name): _encode(entry) for name, entry in value.items()}
    return [_encode(entry) for entry in value] if isinstance(value, list | tuple) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if ARRAY in value:
            return np.asarray(value["values"], value[ARRAY])
        return {name: _decode(entry) for name, entry in value.items()}
    return [_decode(entry) for entry in value] if isinstance(value, list) else value
