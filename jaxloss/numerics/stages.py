"""Control flow that a concrete call decides on the host, and a traced one inside its program.

XLA compiles both sides of every branch. A call on values that can be seen runs its stages one after another, each a
program of its own, and compiles what is seldom needed only when it is; under `jit`, `vmap` and `grad` the same stages
are parts of one program.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

__all__ = ["FEW_ROWS", "is_concrete", "stage", "unless", "while_loop"]

FEW_ROWS = 2**14
"""Up to so many rows compiling takes longer than running, and programs are compiled the quick way."""
FEW = 2**20
"""The same of numbers."""
QUICK = {"xla_cpu_use_fusion_emitters": False}
"""XLA's older code generator for loops compiles nearly twice as fast; what it makes can be a fifth slower."""
QUICKEST = {**QUICK, "xla_backend_optimization_level": 0}
"""Without LLVM's optimizations a program compiles three times as fast again, and runs half as fast."""


def is_concrete(*values: Any) -> bool:
    """Whether none is traced, so that the values may be looked at."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def stage(*static: int, light: bool = False) -> Callable[[Callable], Callable]:
    """Compile a function of arrays as a program of its own on concrete calls, quickly where rows are few.

    static: the places of its arguments that are no arrays. light: whether it runs so shortly that compiling is what it
    costs. Traced, the function is a part of the caller's program.
    """

    def compiled(function: Callable) -> Callable:
        usual = jax.jit(function, static_argnums=static)

        @functools.cache
        def quick() -> Callable:
            return jax.jit(function, static_argnums=static, compiler_options=_known_options(light))

        @functools.wraps(function)
        def run(*args: Any) -> Any:
            shapes = [np.shape(leaf) for leaf in jax.tree.leaves(args)]
            few = all(math.prod(shape) <= FEW and (not shape or shape[0] <= FEW_ROWS) for shape in shapes)
            return (quick() if few and is_concrete(args) else usual)(*args)

        return run

    return compiled


@functools.cache
def _known_options(light: bool) -> dict[str, Any]:
    """Those for quick compilation that this version of XLA knows, on CPUs."""
    known = {} if jax.default_backend() != "cpu" else QUICKEST if light else QUICK
    try:
        jax.jit(lambda x: x, compiler_options=known)(0.0)
    except jax.errors.JaxRuntimeError:  # the older code generator has gone from the newest
        known = {name: value for name, value in known.items() if name not in QUICK}
    return known


def unless(good: jax.Array, found: Any, otherwise: Callable[[jax.Array], Any]) -> Any:
    """What was found if it is good, else `otherwise(bad)`.

    Traced it is a loop of at most one turn: mapped, it is skipped where all are good; `cond` would always compute both.
    For this the work must depend on `bad`, which is True: XLA moves what does not out of a loop.
    """
    if is_concrete(good):
        return found if good else otherwise(jnp.asarray(True))
    return lax.while_loop(
        lambda state: ~state[0], lambda state: (jnp.asarray(True), otherwise(~state[0])), (good, found)
    )[1]


def while_loop(going: Callable[[Any], jax.Array], step: Callable[[Any], Any], state: Any) -> Any:
    """`lax.while_loop`, or a loop on the host, which compiles the stages of a step one by one."""
    if not is_concrete(state):
        return lax.while_loop(going, step, state)
    while going(state):
        state = step(state)
    return state
