"""How long does a stranger wait for the first answer, beside the libraries that need no compilation?

    python -m experiments first

Every row of the table is measured in fresh processes, importing apart: the first call, the next one, a call with
another number of rows, and the first call of a second process that finds the programs of the first in JAX's persistent
compilation cache. Beside it stands the first call of the fastest peer that solves the same problem (scikit-learn,
statsmodels or SciPy, with the objective of its answer above ours, relative), and, as a yardstick for a busy machine,
the first call of `jnp.linalg.lstsq` on the same data in the same process.

Answer, on two idle cores, 10,000 × 10 in float64, in seconds: least squares 0.78, Huber 1.45 (with its scale 1.58),
Poisson 1.35, Tukey with its scale 1.80, a median 1.73, levenberg_marquardt 1.37, diagnose 0.61, where lstsq takes 0.2
to 0.3. Another number of rows takes no longer than the next call, 0.005 to 0.03, but for the last two. With the cache
a second process waits 0.4 to 1.1. Peers take 0.004 to 0.065 at once, at objectives up to 1e-9 above.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import common

TINY = {"rows": 60, "columns": 2, "processes": 1, "only": ("huber",)}


@dataclass(frozen=True)
class Config(common.Config):
    rows: int = 10_000
    """Rows of the data; the call with another number of rows has a few less."""
    columns: int = 10
    """Columns of the data."""
    processes: int = 5
    """Fresh processes per row of the table; medians are reported."""
    only: tuple[str, ...] = ()
    """Which rows of the table to measure; all if not given."""
    seed: int = 0


def run(config: Config, folder: Path) -> dict[str, Any]:
    unknown = set(config.only) - set(TASKS)
    if unknown:
        raise common.UserError(f"--only {' '.join(sorted(unknown))}: the rows are {', '.join(TASKS)}")
    found = {name: measure(name, config) for name in config.only or TASKS}
    columns = ("", "first call", "next", "other rows", "with the cache", "lstsq, first", "peer, first", "peer's excess")
    keys = ("first", "next", "other", "cached", "yardstick", "peer", "excess")
    table = [(name, *(times.get(key, float("nan")) for key in keys)) for name, times in found.items()]
    common.print_table(f"Seconds, {config.rows} rows × {config.columns} columns, float64", columns, table)
    _draw(folder, found)
    return {"calls": found}


def measure(name: str, config: Config) -> dict[str, float]:
    """The medians over fresh processes of what one row of the table shows."""
    told: list[dict[str, float]] = []
    for _ in range(config.processes):
        with tempfile.TemporaryDirectory() as cache:
            first = _in_a_process(name, config, cache)
            second = _in_a_process(name, config, cache)
        told.append(first | {"cached": second["first"]})
    return {key: float(np.median([times[key] for times in told])) for key in told[0]}


def _in_a_process(name: str, config: Config, cache: str) -> dict[str, float]:
    """What `tell` prints in a new process whose compilation cache is the given folder."""
    told = f"from experiments.first import tell; tell({name!r}, {config.rows}, {config.columns}, {config.seed})"
    settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join(path for path in (root, os.environ.get("PYTHONPATH")) if path)
    done = subprocess.run(
        [sys.executable, "-c", told],
        env=os.environ | settings | {"JAX_ENABLE_X64": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"first: the process for {name!r} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def tell(name: str, rows: int, columns: int, seed: int) -> None:
    """Print, as JSON, the seconds of the calls of one row of the table, and those of its peer."""
    import jax
    import jax.numpy as jnp

    task, peer = TASKS[name]
    full, less = (_data(number, columns, seed) for number in (rows, rows - max(rows // 100, 1)))
    call = task(columns)
    seconds, answers = {}, []
    for key, data in (("first", full), ("next", full), ("other", less)):
        started = time.perf_counter()
        answers.append(jax.block_until_ready(call(*data)))
        seconds[key] = time.perf_counter() - started
    started = time.perf_counter()
    jax.block_until_ready(jnp.linalg.lstsq(full[0], full[1])[0])
    seconds["yardstick"] = time.perf_counter() - started
    try:
        their_call = peer(columns) if peer else None
    except ModuleNotFoundError:
        their_call = None
    if their_call:
        started = time.perf_counter()
        theirs = their_call(*full)
        seconds["peer"] = time.perf_counter() - started
        if name in SAME:
            seconds["excess"] = _objective(name, *full, *theirs) / _objective(name, *full, *answers[0]) - 1
    print(json.dumps(seconds))


def _data(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x normal; y a line with Student-t noise of 3 degrees of freedom; counts of a log-linear mean."""
    rng = np.random.default_rng(seed)
    x, line = rng.normal(size=(rows, columns)), np.linspace(-1, 1, columns)
    eta = x @ line
    return x, eta + 1 + rng.standard_t(3, rows), rng.poisson(np.exp(0.5 * eta / np.std(eta))).astype(float)


LOSSES = {
    "least squares": ("mse", {}, None),
    "huber": ("huber", {"delta": 1.35}, None),
    "huber, scale": ("huber", {"delta": 1.345}, "mad"),
    "poisson": ("poisson_deviance", {}, None),
    "tukey, scale": ("tukey", {}, "mad"),
    "median": ("quantile", {"level": 0.5}, None),
}
"""The losses given to `solve_linear`: name, settings and scale estimator."""
SAME = ("least squares", "poisson", "median")
"""Where the peer minimises the very same objective: the others estimate a scale by a rule of their own."""


def _linear(name: str) -> Callable[[int], Callable]:
    def task(columns: int) -> Callable:
        from jax.tree_util import Partial

        import jaxloss
        from jaxloss.solve import solve_linear

        loss, settings, scale = LOSSES[name]
        bound = Partial(getattr(jaxloss, loss), **settings)

        def call(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Any:
            fit = solve_linear(x, counts if name == "poisson" else y, bound, scale_estimator=scale)
            return fit.coef, fit.intercept, fit.scale

        return call

    return task


def _objective(name: str, x: Any, y: Any, counts: Any, coef: Any, intercept: Any, _scale: Any) -> float:
    """The loss of all rows."""
    import jaxloss

    loss, settings, _ = LOSSES[name]
    eta = x @ np.asarray(coef) + float(intercept)
    pred, target = (np.exp(eta), counts) if name == "poisson" else (eta, y)
    return float(getattr(jaxloss, loss)(pred, target, reduction="sum", **settings))


def _scikit(name: str, **settings: Any) -> Callable[[int], Callable]:
    def peer(columns: int) -> Callable:
        from sklearn import linear_model

        model = getattr(linear_model, name)(**settings)

        def call(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Any:
            model.fit(x, counts if name == "PoissonRegressor" else y)
            return model.coef_, model.intercept_, getattr(model, "scale_", 1.0)

        return call

    return peer


def _robust(norm: str) -> Callable[[int], Callable]:
    def peer(columns: int) -> Callable:
        import statsmodels.api as sm

        def call(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Any:
            fit = sm.RLM(y, sm.add_constant(x), getattr(sm.robust.norms, norm)()).fit()
            return fit.params[1:], fit.params[0], fit.scale

        return call

    return peer


def _median(columns: int) -> Callable:
    import statsmodels.api as sm

    def call(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Any:
        fit = sm.QuantReg(y, sm.add_constant(x)).fit(0.5)
        return fit.params[1:], fit.params[0], 1.0

    return call


def _decay(params: Any, x: Any) -> Any:
    """The nonlinear model: an exponential in the first column, and a level."""
    import jax.numpy as jnp

    return params[0] * jnp.exp(-params[1] * x[:, 0]) + params[2]


def _nonlinear(columns: int) -> Callable:
    import jax.numpy as jnp

    from jaxloss.solve import levenberg_marquardt

    def call(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Any:
        target = 2 * np.exp(-0.5 * x[:, 0]) + 1 + 0.1 * np.sin(7 * y)
        return levenberg_marquardt(_decay, jnp.ones(3), x, target).params

    return call


def _curve_fit(columns: int) -> Callable:
    from scipy.optimize import curve_fit

    def call(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Any:
        target = 2 * np.exp(-0.5 * x[:, 0]) + 1 + 0.1 * np.sin(7 * y)
        return curve_fit(lambda u, a, b, c: a * np.exp(-b * u) + c, x[:, 0], target, p0=np.ones(3))[0]

    return call


def _network(columns: int) -> Callable:
    import optax
    from flax import nnx

    from experiments.models import MLP
    from jaxloss import mse
    from jaxloss.train import fit, functional

    apply, params = functional(MLP((columns, 64, 64, 1), rngs=nnx.Rngs(0)))
    optimizer = optax.adamw(1e-3)

    def call(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Any:
        rows = x.astype(np.float32), y[:, None].astype(np.float32)
        return fit(apply, params, rows, loss=mse, optimizer=optimizer, epochs=1, batch_size=32).params

    return call


def _diagnosis(columns: int) -> Callable:
    from jaxloss import diagnose

    def call(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Any:
        return diagnose(x @ np.linspace(-1, 1, columns) + 1, y)

    return call


def _score(family: str) -> Callable[[int], Callable]:
    def task(columns: int) -> Callable:
        import jax
        import jax.numpy as jnp

        import jaxloss

        gradient = jax.jit(jax.grad(jaxloss.crps))

        def call(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> Any:
            centre, one = jnp.asarray(x[:, 0]), jnp.ones(len(y))
            dist = {
                "Normal": lambda: jaxloss.Normal(centre, one),
                "Gamma": lambda: jaxloss.Gamma(centre, 2 * one),
                "StudentT": lambda: jaxloss.StudentT(5 * one, centre, one),
            }[family]()
            return gradient(dist, jnp.asarray(counts + 1.0))

        return call

    return task


TASKS: dict[str, tuple[Callable[[int], Callable], Callable[[int], Callable] | None]] = {
    "least squares": (_linear("least squares"), _scikit("LinearRegression")),
    "huber": (_linear("huber"), _scikit("HuberRegressor", alpha=0.0)),
    "huber, scale": (_linear("huber, scale"), _robust("HuberT")),
    "poisson": (_linear("poisson"), _scikit("PoissonRegressor", alpha=0.0)),
    "tukey, scale": (_linear("tukey, scale"), _robust("TukeyBiweight")),
    "median": (_linear("median"), _median),
    "levenberg_marquardt": (_nonlinear, _curve_fit),
    "fit of a network": (_network, None),
    "diagnose": (_diagnosis, None),
    "gradient of crps, Normal": (_score("Normal"), None),
    "gradient of crps, Gamma": (_score("Gamma"), None),
    "gradient of crps, StudentT": (_score("StudentT"), None),
}
"""What is timed, and the fastest peer that answers the same question, if there is one: each makes its call."""


def _draw(folder: Path, found: dict[str, dict[str, float]]) -> None:
    figure, (axes,) = common.figure(1, height=0.6 + 0.5 * len(found))
    places = np.arange(len(found))
    for number, (key, label) in enumerate(
        {"first": "first call", "cached": "first call with the cache", "other": "other rows", "peer": "peer"}.items()
    ):
        values = [times.get(key, np.nan) for times in found.values()]
        axes.barh(places + 0.2 * (number - 1.5), values, 0.2, label=label)
    axes.set(yticks=places, yticklabels=list(found), xscale="log", xlabel="seconds")
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "figure.png", dpi=140)
