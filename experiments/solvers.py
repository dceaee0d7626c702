"""How long does an exact linear fit take, beside scikit-learn, statsmodels and SciPy, and is it as good?

    python -m experiments solvers

Each loss is fitted to rows drawn with heavy-tailed noise (counts for Poisson), by jaxloss in float64 and by a peer with
tight tolerances, in one process; the shortest of a few runs counts, compilation is told apart, and the objective is
that of jaxloss's loss at both coefficients. Then one loss of each kind is timed as the rows grow.

Answer, on two idle cores: as fast as the peer times, at an objective the same to 1e-15: least squares 1.6, Huber 4.0,
Poisson 1.8, the median (10,000 × 10) 2.2; Huber and Tukey with the scale from the median 18 and 17 (100,000 × 20), at
the same scale to 1e-12; 1000 bootstrap fits in one call 57. In other runs of that day Huber 4 to 5, Poisson 1.3 to 1.8,
the bootstrap 38 to 57. From 10,000 to 1,000,000 rows the time grows with a power between 0.8 and 1.04 of their number.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments import common
from jaxloss import huber, mae, mse, poisson_deviance, quantile, tukey
from jaxloss.solve import solve_linear

TINY = {"rows": (200, 400), "columns": (3,), "compared": 2000, "fits": 5, "repeats": 1}


@dataclass(frozen=True)
class Config(common.Config):
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Numbers of rows for the scaling plot."""
    columns: tuple[int, ...] = (10, 50)
    """Numbers of columns for the scaling plot."""
    compared: int = 100_000
    """Rows of the comparison with peers, of 20 columns; the median has a tenth of them and 10 columns."""
    fits: int = 1000
    """Bootstrap fits in one call, each of a hundredth as many rows as compared, and 5 columns."""
    repeats: int = 3
    seed: int = 0


def run(config: Config, folder: Path) -> dict[str, Any]:
    common.require(config, rows=100, compared=2000)
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peers, about tolerances they cannot reach
        compared = dict(comparisons(config))
        columns = ("", "ours, s", "peer, s", "ratio", "objective above ours", "compiled in, s")
        rows = [(name, *entry.values()) for name, entry in compared.items()]
        common.print_table(f"{config.compared} rows (median {config.compared // 10} × 10)", columns, rows)
        growth = scaling(config)
    slopes = {name: slopes_of(config.rows, times) for name, times in growth.items()}
    common.print_table(
        "\nseconds as the rows grow",
        ("", *map(str, config.rows), "slope", "of the last step"),
        [(name, *times, *slopes[name]) for name, times in growth.items()],
    )
    _draw(folder, config.rows, growth)
    claims = {
        "no objective is above a peer's by more than 1e-8": all(
            entry["excess"] > -1e-8 for entry in compared.values() if np.isfinite(entry["excess"])
        )
    }
    return {"compared": compared, "scaling": growth, "slopes": slopes, "claims": claims}


def drawn(rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x normal, y a line with Student-t noise of 3 degrees of freedom, and counts of a log-linear mean."""
    rng = np.random.default_rng(seed)
    x, line = rng.normal(size=(rows, columns)), np.linspace(-1, 1, columns)
    eta = x @ line
    return x, eta + 1 + rng.standard_t(3, rows), rng.poisson(np.exp(0.5 * eta / np.std(eta))).astype(float)


def ours(x: Any, y: Any, loss: Any, repeats: int, **settings: Any) -> tuple[float, float, Any]:
    """The time of a fit, that of its compilation, and the fit; x and y are on the device before."""
    x, y = jnp.asarray(x), jnp.asarray(y)

    def call() -> Any:
        return jax.block_until_ready(solve_linear(x, y, loss, **settings))

    first = common.shortest(call, 1)[0]
    best, fit = common.shortest(call, repeats)
    return best, first - best, fit


def comparisons(config: Config) -> Any:
    """(name, figures) of every loss with a peer."""
    from sklearn.linear_model import HuberRegressor, LinearRegression, PoissonRegressor

    x, y, counts = drawn(config.compared, 20, config.seed)
    robust = HuberRegressor(alpha=0, tol=1e-9, max_iter=10_000)
    delta = robust.fit(x, y).scale_ * robust.epsilon  # its scale is part of its fit; ours is given that one
    exact = {"alpha": 0, "tol": 1e-9, "max_iter": 10_000}
    cases = {
        "least squares": (mse, x, y, LinearRegression(), None),
        "huber": (Partial(huber, delta=delta), x, y, robust, None),
        "poisson": (poisson_deviance, x, counts, PoissonRegressor(**exact, solver="newton-cholesky"), np.exp),
    }
    for name, (loss, rows, target, model, link) in cases.items():
        best, compiled, fit = ours(rows, target, loss, config.repeats)
        theirs, _ = common.shortest(
            lambda model=model, rows=rows, target=target: model.fit(rows, target), config.repeats
        )
        eta = rows @ model.coef_ + model.intercept_
        value = float(loss(jnp.asarray(link(eta) if link else eta), jnp.asarray(target), reduction="sum"))
        yield name, figures(best, theirs, value / float(fit.objective) - 1, compiled)
    yield from with_statsmodels(config, x, y)
    yield from bootstrap(config)


def figures(best: float, theirs: float, excess: float, compiled: float) -> dict[str, float]:
    return {"ours": best, "peer": theirs, "ratio": theirs / best, "excess": excess, "compiled": compiled}


def with_statsmodels(config: Config, x: np.ndarray, y: np.ndarray) -> Any:
    """The median, to its default tolerance of 1e-6; Huber and Tukey with the scale from the median, which stop by
    another rule than ours, so that their objectives are not compared.
    """
    try:
        from statsmodels.api import RLM, QuantReg, add_constant
        from statsmodels.robust.norms import HuberT, TukeyBiweight
    except ModuleNotFoundError:
        return
    rows, target, level = x[: config.compared // 10, :10], y[: config.compared // 10], Partial(quantile, level=0.5)
    best, compiled, fit = ours(rows, target, level, config.repeats)
    theirs, found = common.shortest(lambda: QuantReg(target, add_constant(rows)).fit(0.5), config.repeats)
    value = float(level(jnp.asarray(add_constant(rows) @ found.params), jnp.asarray(target), reduction="sum"))
    yield "median", figures(best, theirs, value / float(fit.objective) - 1, compiled)
    for name, loss, norm in (
        ("huber, scale", Partial(huber, delta=1.345), HuberT()),
        ("tukey, scale", tukey, TukeyBiweight()),
    ):
        best, compiled, _ = ours(x, y, loss, config.repeats, scale_estimator="mad")
        theirs, _ = common.shortest(lambda norm=norm: RLM(y, add_constant(x), norm).fit(), 1)
        yield name, figures(best, theirs, np.nan, compiled)


def bootstrap(config: Config) -> Any:
    """Many weighted Huber fits in one mapped call, beside a loop over a tenth of them."""
    from sklearn.linear_model import HuberRegressor

    rows = config.compared // 100
    x, y, _ = drawn(rows, 5, config.seed)
    weights = np.random.default_rng(config.seed).multinomial(rows, np.full(rows, 1 / rows), config.fits).astype(float)
    fitted = jax.jit(jax.vmap(lambda w: solve_linear(x, y, Partial(huber, delta=1.35), weights=w)))
    on_device = jnp.asarray(weights)

    def call() -> Any:
        return jax.block_until_ready(fitted(on_device))

    first = common.shortest(call, 1)[0]
    best, _ = common.shortest(call, config.repeats)
    share = max(config.fits // 50, 1)
    model = HuberRegressor(alpha=0, max_iter=1000)
    theirs, _ = common.shortest(lambda: [model.fit(x, y, sample_weight=w) for w in weights[:share]], 1)
    yield f"{config.fits} bootstrap fits", figures(best, theirs * config.fits / share, np.nan, first - best)


def scaling(config: Config) -> dict[str, list[float]]:
    """Seconds for each number of rows, of one loss of each kind."""
    kinds = {"mse": mse, "huber": huber, "mae": mae, "tukey": tukey, "poisson": poisson_deviance}
    growth: dict[str, list[float]] = {}
    for columns in config.columns:
        for rows in config.rows:
            x, y, counts = drawn(rows, columns, config.seed)
            for name, loss in kinds.items():
                target = counts if name == "poisson" else y
                growth.setdefault(f"{name}, {columns} columns", []).append(ours(x, target, loss, 2)[0])
    return growth


def slopes_of(rows: tuple[int, ...], times: list[float]) -> tuple[float, float]:
    """The exponent of the growth from the first number of rows to the last, and from the last but one."""
    if len(rows) < 2:
        return np.nan, np.nan
    first, last = (float(np.log(times[-1] / times[at]) / np.log(rows[-1] / rows[at])) for at in (0, -2))
    return first, last


def _draw(folder: Path, rows: tuple[int, ...], growth: dict[str, list[float]]) -> None:
    figure, (axes,) = common.figure(1, height=4.2)
    names = sorted({name.split(",")[0] for name in growth})
    widths = sorted({name.split(", ")[1] for name in growth}, key=lambda text: int(text.split()[0]))
    for name, times in growth.items():
        loss, width = name.split(", ")
        style = ("-o", "--s", ":^")[widths.index(width) % 3]
        axes.plot(rows, times, style, color=f"C{names.index(loss)}", label=name, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds", title="exact fits in float64")
    axes.legend(frameon=False, fontsize=7, ncols=2)
    figure.savefig(folder / "figure.png", dpi=140)
