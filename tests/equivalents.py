"""The mutants that change nothing, by loss, each with the reason; `test_mutations` fails for any other survivor.

A mutant is "function: source -> mutated source"; "(2)" is the second of that name in the function.
"""

from __future__ import annotations

PAST = "a bound past which the formula is constant in float32, or still finite; its exact place is of no account"
SPELLING = "a threshold between two spellings that are both accurate there"
UNUSED = "a branch that this loss, or float32, never takes"
TYPE = "a zero that only gives the type"
SMALL = "a correction of less than the error allowed"

_ROOT = "0.55 * float(jnp.finfo(residual.dtype).max) ** 0.5"

# What barron and barron_nll share.
_BARRON = {
    "_alpha_slope: -jnp.inf -> jnp.inf": "at α = −∞ the formula is 0 by itself",
    "_parts: 0 * ratio -> 0": TYPE,
    "_parts: 2 * high + low -> 2 * high - low": SMALL,  # low² ≤ 2⁻²⁴·q², as in welsch
    "_parts: 2 * high + low -> 2 * high - low (2)": SMALL,
    "_parts: 0.25 * beta_low * bend -> 0.25 * beta_low": SMALL,  # 2⁻²⁴·bend, and bend < 80
    "_parts: 2.0 ** (info.maxexp - 1) * scale -> 2.0 ** (info.maxexp - 1)": PAST,
}

# Branches for α < 0, which barron_nll does not take.
_NEGATIVE = (
    "_alpha_slope: -1 -> 1",
    "_alpha_slope: at.y > -1 -> at.y < -1",
    "_parts: -1 -> 1",
    "_parts: -2 -> 2",
    "_parts: -jnp.inf -> jnp.inf",
    "_parts: jnp.where(near, slant * v, 0.5 * alpha * u) -> jnp.where(near, 0.5 * alpha * u, slant * v)",
    "_parts: z * (z * inverse - t) -> z",
    "_parts: z * (z * inverse - t) -> z * inverse - t",
    "_parts: z * inverse - t -> z * inverse + t",
    "_parts: z * inverse -> inverse",
    "_parts: z * inverse -> z",
    "_value: -at.beta -> at.beta",
    "_value: -at.beta / jnp.where(alpha >= 0, 1, at.alpha) -> -at.beta",
    "_value: -jnp.inf -> jnp.inf",
    "_value: alpha >= 0 -> alpha <= 0 (2)",
    "_value: jnp.where(alpha >= 0, 1, at.alpha) -> jnp.where(alpha >= 0, at.alpha, 1)",
)

EQUIVALENT: dict[str, dict[str, str]] = {
    "pseudo_huber": {
        "_far: 0.25 * jnp.finfo(residual.dtype).max ** 0.5 -> jnp.finfo(residual.dtype).max ** 0.5": PAST,
    },
    "cauchy": {
        f"_held: {_ROOT} -> float(jnp.finfo(residual.dtype).max) ** 0.5": PAST,
    },
    "welsch": {
        f"_held: {_ROOT} -> float(jnp.finfo(residual.dtype).max) ** 0.5": UNUSED,
        f"_held: {_ROOT} -> 0.55": UNUSED,
        "_decay: 2 * high + low -> 2 * high - low": SMALL,  # low² ≤ 2⁻²⁴·q², and q² < 90
    },
    "tukey": {
        f"_held: {_ROOT} -> float(jnp.finfo(residual.dtype).max) ** 0.5": UNUSED,
        f"_held: {_ROOT} -> 0.55": UNUSED,
        f"_held: ({_ROOT} if bound is None else bound) * scale -> scale": "the bound is 1",
    },
    "fair": {
        f"_held: {_ROOT} -> float(jnp.finfo(residual.dtype).max) ** 0.5": PAST,
        "fair: 0.5 * scale -> scale": SPELLING,
    },
    "poisson_deviance": {
        "_poisson_slope: 2 + 0 * pred -> 2 - 0 * pred": "the zero is there for NaN alone",
    },
    "barron": _BARRON,
    "barron_nll": {
        **_BARRON,
        **dict.fromkeys(_NEGATIVE, UNUSED),
        "_parts: 0.25 * beta_low -> beta_low": SMALL,
        "_parts: rest + 0.25 * beta_low * bend -> rest - 0.25 * beta_low * bend": SMALL,
        "_log_partition: -38 -> 38": UNUSED,  # the nodes of float64
        "_log_partition: jnp.finfo(alpha.dtype).bits > 32 -> jnp.finfo(alpha.dtype).bits < 32": UNUSED,
    },
    "tweedie_deviance": {
        "_log: 0 * x -> 0": TYPE,
        "_log: 0 * x -> 0 (2)": TYPE,
        "tweedie_deviance: two * log_ratio -> log_ratio": SPELLING,
        "tweedie_deviance: two * log_ratio -> two (2)": SPELLING,
    },
}
