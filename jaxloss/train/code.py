"""What a function of the user does, as far as two processes can tell: its code, and what it reads from its module."""

from __future__ import annotations

import dis
import functools
import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import jax
import numpy as np

__all__ = ["code_digest", "defaults_of", "globals_of", "is_ours", "is_own"]

PACKAGES = {"site-packages", "dist-packages"}
LIBRARY = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})


def is_ours(function: Any) -> bool:
    """Whether the function is of this package, whatever name a decorator has given it."""
    return getattr(function, "__globals__", {}).get("__name__", "").partition(".")[0] == "jaxloss"


def is_own(function: Any) -> bool:
    """Whether it is a function of the user: neither of this package nor of an installed one."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType) or is_ours(function):
        return False
    return not code.co_filename.startswith(LIBRARY) and PACKAGES.isdisjoint(Path(code.co_filename).parts)


def code_digest(function: Any) -> str:
    """The instructions, constants and names of a function, whatever its place, its lines and its docstring are.

    The same in every process of one version of Python.

    >>> code_digest(lambda x: 2 * x) == code_digest(lambda y: 2 * y)
    True
    >>> code_digest(lambda x: 2 * x) == code_digest(lambda x: 3 * x)
    False
    """
    text = _text(function.__code__, function.__doc__)
    version = ".".join(platform.python_version_tuple()[:2])
    return f"{hashlib.sha256(text.encode()).hexdigest()[:12]} of Python {version}"


def _text(code: CodeType, docstring: str | None = None) -> str:
    constants = code.co_consts[code.co_consts[:1] == (docstring,) :]
    return f"{code.co_code.hex()} {code.co_names} {[_constant(constant) for constant in constants]}"


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _text(value)
    if isinstance(value, tuple | frozenset):
        parts = [_constant(part) for part in value]
        return f"{type(value).__name__} {sorted(parts) if isinstance(value, frozenset) else parts}"
    return repr(value)


def defaults_of(function: Any) -> dict[str, Any]:
    """The functions and numbers that a function has as defaults, by name."""
    code, values = function.__code__, function.__defaults__ or ()
    first = code.co_argcount - len(values)
    return _telling(dict(zip(code.co_varnames[first:], values)) | (function.__kwdefaults__ or {}))


def globals_of(function: Any) -> dict[str, Any]:
    """The functions and numbers that a function reads from its module, by name.

    Not those it writes there, and no other objects: they may differ in every process.
    """
    named, reads = function.__globals__, list(_instructions(function.__code__))
    written = {one.argval for one in reads if one.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")}
    names = sorted({one.argval for one in reads if one.opname == "LOAD_GLOBAL"} - written)
    return _telling({name: named[name] for name in names if name in named and not name.startswith("__")})


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)


def _telling(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _is_telling(value)}


def _is_telling(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_telling(part) for part in value)
    if isinstance(value, bool | int | float | str | np.ndarray | np.generic | jax.Array | functools.partial):
        return True
    return not isinstance(value, type) and (hasattr(value, "__code__") or hasattr(value, "__wrapped__"))
