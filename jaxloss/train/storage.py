"""One checkpoint on disk: the leaves of a tree written by orbax, and the manifest by which all of it is verified.

    arrays/…         what orbax wrote
    manifest.json    path, dtype and shape of every leaf, size and SHA-256 of every file; its own digest

orbax alone notices neither a flipped byte nor an empty folder, and casts dtypes in silence.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "FORMAT",
    "described",
    "digest",
    "flat",
    "flush",
    "placed",
    "problem_of",
    "read_arrays",
    "read_manifest",
    "render_manifest",
    "seal",
    "stored",
    "write",
]

FORMAT = 2
ARRAYS, MANIFEST = "arrays", "manifest.json"


def problem_of(action: Callable[[], None]) -> str:
    """Do it; what went wrong on one line, or ""."""
    try:
        action()
    except Exception as error:  # a failing disk is an OSError from Python, a damaged one anything at all from orbax
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


# Leaves.


def flat(tree: Any) -> dict[str, Any]:
    """The leaves by their path in the tree."""
    return {jax.tree_util.keystr(path) or "the tree": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def described(path: str, leaf: Any) -> str:
    """The leaf's dtype and shape, in words."""
    if isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
        return f"a Python {type(leaf).__name__}"
    dtype = getattr(leaf, "dtype", None)
    kinds = np.number, np.bool_, jax.dtypes.prng_key
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise TypeError(f"checkpoint: {path} is a {type(leaf).__name__}; a checkpoint holds arrays and numbers")
    return f"{dtype} {tuple(leaf.shape)}"


def stored(tree: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """What orbax is given for each leaf, and the leaf's entry in the manifest."""
    arrays, entries = [], []
    for path, leaf in flat(tree).items():
        entry = {"path": path, "leaf": described(path, leaf)}
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            entry["key"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            leaf = np.asarray(leaf, order="C")  # the first process writes it; a device array costs orbax twice the time
        if leaf.dtype == object:
            raise TypeError(f"checkpoint: {path} is an integer of more than 64 bits")
        entry |= {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        arrays.append(leaf)
        entries.append(entry)
    return arrays, entries


def placed(array: np.ndarray, like: Any, key: str | None) -> Any:
    """The array as `like` is held: a number, a NumPy array, or on its devices; `key` is the kind of a random key."""
    if isinstance(like, np.ndarray):
        return array
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return array[()] if isinstance(like, np.generic) else array.item()
    sharding = like.sharding if not isinstance(like, jax.Array) or like.committed else None
    wrap: Any = jnp.asarray if key is None else functools.partial(jax.random.wrap_key_data, impl=key)
    if sharding is None:
        leaf = wrap(array)
    elif key is not None:
        leaf = jax.jit(wrap, out_shardings=sharding)(array)
    else:
        leaf = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    if leaf.dtype != like.dtype:
        raise ValueError(f"checkpoint: {like.dtype} needs jax.config.update('jax_enable_x64', True), nothing is cast")
    return leaf


def digest(tree: Any) -> str:
    """SHA-256 of a tree's leaves, with their paths, dtypes and shapes: tells two data sets apart in a configuration.

    >>> digest((np.zeros(3), np.ones(2))) == digest((np.zeros(3), np.ones(2, np.float32)))
    False
    """
    leaves = {path: _digest(np.asarray(leaf)) for path, leaf in flat(tree).items()}
    return hashlib.sha256(json.dumps(leaves).encode()).hexdigest()


def _digest(array: np.ndarray) -> str:
    whole = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    whole.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return whole.hexdigest()


# Files.


def write(folder: Path, arrays: list[Any]) -> None:
    """Hand the arrays to orbax. All processes together; each writes what it alone holds, the first all the rest."""
    (folder / ARRAYS).mkdir(parents=True, exist_ok=True)
    given = {str(number): array for number, array in enumerate(arrays) if array.size}  # orbax stores no empty arrays
    if given:
        with _orbax() as (handler, args, path):
            handler.save(path(folder / ARRAYS), args=args.PyTreeSave(given))


def seal(folder: Path, content: dict[str, Any]) -> None:
    """Complete what `write` began in all processes: the manifest is written, and everything is on the disk."""
    arrays = folder / ARRAYS
    if any(arrays.iterdir()):
        with _orbax() as (handler, _, path):
            handler.finalize(path(arrays))
    content = {"format": FORMAT, **content, "files": _digest_files(arrays)}
    (folder / MANIFEST).write_text(render_manifest(content))
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def read_manifest(folder: Path) -> tuple[str, dict[str, Any]]:
    """(what is wrong, or "", and the content)."""
    try:
        text = (folder / MANIFEST).read_text()
        content = json.loads(text)["content"]
        if text != render_manifest(content):
            return f"{MANIFEST} differs from what was written", {}
        return "", content
    except FileNotFoundError:
        return f"{MANIFEST} is missing" if folder.exists() and any(folder.iterdir()) else "the folder is empty", {}
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})", {}


def read_arrays(folder: Path, content: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays by path, after every file is verified. Each process on its own."""
    present = _digest_files(folder / ARRAYS)
    for name, (size, sha256) in content["files"].items():
        if name not in present:
            raise ValueError(f"{ARRAYS}/{name} is missing")
        if present[name] != [size, sha256]:
            told = "differs from what was written" if present[name][0] == size else f"has not {size} bytes"
            raise ValueError(f"{ARRAYS}/{name} {told}")
    entries = dict(enumerate(content["leaves"]))
    empty = {
        number: np.zeros(entry["shape"], entry["dtype"]) for number, entry in entries.items() if 0 in entry["shape"]
    }
    read = {}
    if len(empty) < len(entries):
        with _orbax() as (handler, args, path):
            import orbax.checkpoint as ocp

            wanted = {
                str(number): ocp.RestoreArgs(restore_type=np.ndarray) for number in entries if number not in empty
            }
            read = handler.restore(path(folder / ARRAYS), args=args.PyTreeRestore(restore_args=wanted))
    arrays = {}
    for number, entry in entries.items():
        array = empty[number] if number in empty else read[str(number)]
        if (str(array.dtype), list(array.shape)) != (entry["dtype"], entry["shape"]):
            raise ValueError(f"{entry['path']} comes back as {array.dtype} {array.shape}")
        arrays[entry["path"]] = array
    return arrays


def flush(path: Path) -> None:
    """Have the disk hold the file, or the folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest_files(folder: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file under the folder."""
    files = {}
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):
        with path.open("rb") as file:
            digested = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, digested]
    return files


def render_manifest(content: dict[str, Any]) -> str:
    """The manifest's text: reading and sealing it again gives the same text, to the last blank and digit."""
    return json.dumps({"content": content, "sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest()})


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[Any, Any, Any]]:
    """orbax's handler of trees, its arguments and its paths; what goes wrong is told by us, once, and not in its log.

    Without its checkpointer, which would write to a temporary folder of its own, start a thread and take twice the
    time; and without compression, which takes most of the time and gains little on parameters.
    """
    import orbax.checkpoint as ocp  # a quarter of a second, which only runs with checkpoints pay
    from etils import epath

    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield ocp.PyTreeCheckpointHandler(use_compression=False), ocp.args, epath.Path
    finally:
        log.setLevel(level)
