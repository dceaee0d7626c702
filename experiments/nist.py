"""How many of NIST's certified digits do the solvers find, and how many do NumPy and SciPy?

    python -m experiments nist --data FOLDER

The Statistical Reference Datasets of NIST (public domain): small regression problems with parameters certified to 15
(linear) and 11 (nonlinear) digits, each nonlinear one with two starts, the first far away. FOLDER holds them as
`certified.json`. Every problem in float64 with default settings; digits are −log₁₀ of the largest relative error of a
parameter, and at most those that are published.

Answer: `levenberg_marquardt` finds 10.4 to 11 of 11 digits of every parameter of the 12 nonlinear problems from both
starts, in 10 to 83 iterations, and as many of the standard errors. SciPy's `curve_fit`, with default settings too,
finds 3.7 to 8.7, and none from the far starts of MGH09, BoxBOD and Bennett5. `solve_linear` finds 12.8 digits of
Norris, 14.7 of NoInt1, 14.6 of Longley, all 15 of both Wampler problems and 7.6 of Filip, where NumPy's `lstsq` finds
12.3, 14.7, 10.9, 9.6, 7.8 and none.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from experiments import common
from jaxloss.solve import levenberg_marquardt

REPOSITORY = Path(__file__).parent.parent
EXP, PI = jnp.exp, jnp.pi

LINEAR_BARS = {"Norris": 11, "NoInt1": 11, "Wampler1": 11, "Longley": 11, "Wampler4": 8, "Filip": 7}
"""The digits that `solve_linear` is to find."""


def _rise(b, x):
    return b[0] * (1 - EXP(-b[1] * x))


def _chwirut(b, x):
    return EXP(-b[0] * x) / (b[1] + b[2] * x)


def _cubic_ratio(b, x):
    return (b[0] + x * (b[1] + x * (b[2] + x * b[3]))) / (1 + x * (b[4] + x * (b[5] + x * b[6])))


def _lanczos(b, x):
    return b[0] * EXP(-b[1] * x) + b[2] * EXP(-b[3] * x) + b[4] * EXP(-b[5] * x)


def _gauss(b, x):
    peaks = b[2] * EXP(-(((x - b[3]) / b[4]) ** 2)) + b[5] * EXP(-(((x - b[6]) / b[7]) ** 2))
    return b[0] * EXP(-b[1] * x) + peaks


def _waves(b, x):
    def wave(cosine, sine, period):
        return cosine * jnp.cos(2 * PI * x / period) + sine * jnp.sin(2 * PI * x / period)

    return b[0] + wave(b[1], b[2], 12) + wave(b[4], b[5], b[3]) + wave(b[7], b[8], b[6])


MODELS: dict[str, Callable] = {
    "Misra1a": _rise,
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Chwirut1": _chwirut,
    "Chwirut2": _chwirut,
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "Lanczos1": _lanczos,
    "Lanczos2": _lanczos,
    "Lanczos3": _lanczos,
    "Gauss1": _gauss,
    "Gauss2": _gauss,
    "Gauss3": _gauss,
    "Kirby2": lambda b, x: (b[0] + x * (b[1] + x * b[2])) / (1 + x * (b[3] + x * b[4])),
    "Hahn1": _cubic_ratio,
    "Nelson": lambda b, x: b[0] - b[1] * x[:, 0] * EXP(-b[2] * x[:, 1]),  # of log y
    "MGH09": lambda b, x: b[0] * x * (x + b[1]) / (x * (x + b[2]) + b[3]),
    "MGH10": lambda b, x: b[0] * EXP(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * EXP(-b[3] * x) + b[2] * EXP(-b[4] * x),
    "Roszman1": lambda b, x: b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / PI,
    "ENSO": _waves,
    "Thurber": _cubic_ratio,
    "Rat42": lambda b, x: b[0] / (1 + EXP(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + EXP(b[1] - b[2] * x)) ** (1 / b[3]),
    "Eckerle4": lambda b, x: b[0] / b[1] * EXP(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": _rise,
}


@dataclass(frozen=True)
class Config(common.Config):
    data: Path = REPOSITORY.parent / "shared" / "data" / "nist"
    """Folder with certified.json."""
    problems: str = ""
    """Names with commas between them; all if not given."""


def certified(folder: Path) -> dict[str, dict[str, Any]]:
    """The problems, "linear" and "nonlinear", by name."""
    path = folder / "certified.json"
    if not path.is_file():
        raise common.UserError(f"--data {folder}: holds no certified.json (NIST's Statistical Reference Datasets)")
    return json.loads(path.read_text())


def arrays(name: str, problem: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """x, flat if it has one column, and y of a nonlinear problem."""
    x, y = np.array(problem["x"]), np.array(problem["y"])
    return x[:, 0] if x.shape[1] == 1 else x, np.log(y) if name == "Nelson" else y


def digits(got: Any, want: Any, most: int) -> float:
    """How many digits of every number agree."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    error = np.max(np.abs(got - want) / np.where(want == 0, 1, np.abs(want)))
    return float(np.clip(-np.log10(max(error, 1e-300)), 0, most)) if np.isfinite(error) else 0.0


def nonlinear(name: str, problem: dict[str, Any], start: list[float]) -> dict[str, Any]:
    """Digits from one start, ours and SciPy's."""
    x, y = arrays(name, problem)
    fit = levenberg_marquardt(MODELS[name], jnp.array(start), x, y)
    spread = np.sqrt(float(fit.objective) / problem["df_resid"])
    compiled = jax.jit(MODELS[name])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            theirs = curve_fit(lambda x, *b: np.asarray(compiled(jnp.array(b), x)), x, y, start)[0]
    except RuntimeError:  # it has not converged
        theirs = np.full(len(start), np.nan)
    return {
        "digits": digits(fit.params, problem["coef"], 11),
        "standard errors": digits(fit.standard_errors, problem["se"], 11),
        "residual sd": digits(spread, problem["resid_sd"], 11),
        "iterations": int(fit.iterations),
        "converged": bool(fit.converged),
        "curve_fit": digits(theirs, problem["coef"], 11),
    }


def linear(problem: dict[str, Any]) -> dict[str, float]:
    """Digits of the coefficients, ours and NumPy's."""
    from jaxloss.solve import solve_linear

    x, y, intercept = np.array(problem["x"]), np.array(problem["y"]), problem["intercept"]
    if problem["powers"] is not None:
        x = x ** [power for power in problem["powers"] if power]
    fit = solve_linear(x, y, intercept=intercept)
    ours = [*([float(fit.intercept)] if intercept else []), *np.ravel(fit.coef)]
    theirs = np.linalg.lstsq(np.column_stack([*([np.ones(len(x))] if intercept else []), x]), y, rcond=None)[0]
    return {"digits": digits(ours, problem["coef"], 15), "lstsq": digits(theirs, problem["coef"], 15)}


def run(config: Config, folder: Path) -> dict[str, Any]:
    problems = certified(config.data)
    known = [*problems["linear"], *problems["nonlinear"]]
    chosen = [name.strip() for name in config.problems.split(",")] if config.problems else known
    for name in chosen:
        if name not in known:
            raise common.UserError(f"--problems {name}: not in {config.data}, which has {', '.join(known)}")
    with jax.enable_x64(True):
        straight = {name: linear(problems["linear"][name]) for name in problems["linear"] if name in chosen}
        curved = {
            f"{name} {number}": nonlinear(name, problem, problem[f"start{number}"])
            for name, problem in problems["nonlinear"].items()
            if name in chosen
            for number in (1, 2)
        }
    claims = _report(straight, curved)
    _draw(folder, straight, curved)
    return {"linear": straight, "nonlinear": curved, "claims": claims}


def _report(straight: dict[str, Any], curved: dict[str, Any]) -> dict[str, bool]:
    claims = {}
    if straight:
        rows = [(name, entry["digits"], entry["lstsq"]) for name, entry in straight.items()]
        common.print_table("Digits of every coefficient, of 15", ("", "solve_linear", "NumPy lstsq"), rows)
        bars = {name: LINEAR_BARS.get(name, 0) for name in straight}
        claims["solve_linear finds the digits asked for"] = all(
            entry["digits"] >= bars[name] for name, entry in straight.items()
        )
        claims["solve_linear is nowhere half a digit below lstsq"] = all(
            entry["digits"] >= entry["lstsq"] - 0.5 for entry in straight.values()
        )
    if curved:
        columns = ("digits", "standard errors", "residual sd", "curve_fit", "iterations")
        rows = [(name, *(entry[column] for column in columns)) for name, entry in curved.items()]
        heads = ("problem, start", "parameters", "standard errors", "residual sd", "curve_fit", "iterations")
        common.print_table("levenberg_marquardt: digits of 11, and curve_fit's parameters", heads, rows)
        claims["8 digits of every parameter from both starts"] = all(e["digits"] >= 8 for e in curved.values())
        claims["6 digits of every standard error"] = all(e["standard errors"] >= 6 for e in curved.values())
        claims["6 digits of the residual's sd"] = all(e["residual sd"] >= 6 for e in curved.values())
        claims["all said to have converged"] = all(e["converged"] for e in curved.values())
    return claims


def _draw(folder: Path, straight: dict[str, Any], curved: dict[str, Any]) -> None:
    panels = [
        ("linear", straight, "digits", "solve_linear", "lstsq", "NumPy lstsq", 15),
        ("nonlinear: problem, start", curved, "digits", "levenberg_marquardt", "curve_fit", "SciPy curve_fit", 11),
    ]
    panels = [panel for panel in panels if panel[1]]
    height = 1.6 + 0.2 * max(len(panel[1]) for panel in panels)
    figure, axes = common.figure(len(panels), height=height)
    for axis, (title, entries, ours, our_label, theirs, their_label, most) in zip(axes, panels, strict=True):
        names = list(entries)
        places = np.arange(len(names))
        axis.plot([entries[name][theirs] for name in names], places, "s", color="tab:orange", label=their_label)
        axis.plot([entries[name][ours] for name in names], places, "o", color="tab:blue", label=our_label)
        axis.set_yticks(places, names)
        axis.invert_yaxis()
        axis.axvline(most, color="gray", linestyle="--", linewidth=1, label=f"all {most} published")
        axis.set(xlabel="correct digits of the worst parameter", title=title, xlim=(-0.5, most + 0.7))
        axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=1, fontsize=8)
    figure.savefig(folder / "figure.png", dpi=140)
