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
    "gamma_deviance": {
        "gamma_deviance: 2 * math.log(jnp.finfo(pred.dtype).max) -> math.log(jnp.finfo(pred.dtype).max)": PAST,
    },
    "barron": {
        "_curvature: alpha < 2 -> alpha > 2": "at infinity the limit, which the formula nears",
        "_log: 0 * residual -> 0": TYPE,
        "_log: lost + z_low -> lost - z_low": SMALL,
    },
    "barron_nll": {
        "_log_partition: -38 -> 38": UNUSED,  # the nodes of float64
        "_log_partition: jnp.finfo(alpha.dtype).bits > 32 -> jnp.finfo(alpha.dtype).bits < 32": UNUSED,
    },
    "tweedie_deviance": {
        "_log: 0 * x -> 0": TYPE,
        "_log: 0 * x -> 0 (2)": TYPE,
        "_tweedie_curvature: -50 -> 50": "for powers past a thousand, which test_no_nan draws",
        "tweedie_deviance: power >= 1 -> power <= 1 (2)": "for a prediction of 0, which test_limits has",
        "tweedie_deviance: target > 0 -> target < 0": "for a prediction of 0, which test_limits has",
    },
}
