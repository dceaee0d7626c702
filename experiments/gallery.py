"""What do all experiments of this project answer, and do their claims hold here and now?

    python -m experiments gallery --tiny

Runs every experiment, at full size or tiny, and writes what each asked, printed and drew to RESULTS.md, with the
environment and the time it took. Full size writes to experiments/RESULTS.md, tiny to the run folder. Goes on after an
interruption with `--out FOLDER --resume`: experiments that have a result there are not run again.

Claims of time are told, but hold only on an idle machine at full size, and count only there.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import common
from experiments.__main__ import closest, names, summary

TIMED = ("bench_stats", "kernels", "solvers", "speed")
"""Experiments whose claims are of time."""


@dataclass(frozen=True)
class Config(common.Config):
    tiny: bool = False
    """Sizes that take seconds, of which the claims still hold."""
    only: tuple[str, ...] = ()
    """These experiments, by name; default all."""


def run(config: Config, folder: Path) -> dict[str, Any]:
    every = [name for name in names() if name != "gallery"]
    for name in config.only:
        if name not in every:
            raise common.UserError(f"--only {name}: no such experiment{closest(name, every)}")
    chosen = config.only or every
    for number, name in enumerate(chosen, 1):
        if not (folder / name / "result.json").exists():
            print(f"[{number}/{len(chosen)}] {name} …", flush=True)
            _run_one(name, config.tiny, folder / name)
    told = {name: json.loads((folder / name / "result.json").read_text()) for name in chosen}
    results = (folder if config.tiny else Path(__file__).parent) / "RESULTS.md"
    results.write_text(_page(told, folder, results.parent))
    counted = {
        f"{name}: {claim}": holds
        for name, result in told.items()
        for claim, holds in ({"runs": False} if "error" in result else result.get("claims", {})).items()
        if not (config.tiny and name in TIMED and claim != "runs")
    }
    rows = [
        (
            name,
            result["seconds"],
            f"{sum(claims.values())} of {len(claims)}" if (claims := result.get("claims")) else "",
        )
        for name, result in told.items()
    ]
    common.print_table("Experiments", ("", "seconds", "claims that hold"), rows)
    for claim, holds in counted.items():
        if not holds:
            print(f"NO   {claim}")
    print(f"{sum(counted.values())} of {len(counted)} claims hold; all is told in {results}")
    _draw(folder, told)
    return {"claims": counted}


def _run_one(name: str, tiny: bool, folder: Path) -> None:
    """Run an experiment as the command line would, and keep what it prints beside its result."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    printed, started = io.StringIO(), time.perf_counter()
    try:
        module = importlib.import_module(f"experiments.{name}")
        config = module.Config(**getattr(module, "TINY", {}) if tiny else {})
        common.write_json(folder / "config.json", asdict(config))
        with contextlib.redirect_stdout(printed):
            result = module.run(config, folder)
        result["seed"] = getattr(config, "seed", None)
    except common.UserError as error:  # such as data that are not here
        print(f"left out: {error}", file=printed)
        result = {"left_out": str(error)}
    except ModuleNotFoundError as missing:  # such as those of the tests
        print(f"left out: it needs {missing.name}: pip install -e '.[test]'", file=printed)
        result = {"left_out": f"needs {missing.name}"}
    except (Exception, SystemExit) as error:
        traceback.print_exc(file=printed)
        result = {"error": f"{type(error).__name__}: {error}"}
    result |= {"seconds": time.perf_counter() - started, "environment": common.environment()}
    (folder / "printed.txt").write_text(printed.getvalue())
    common.write_json(folder / "result.json", result)


def _page(told: dict[str, Any], folder: Path, beside: Path) -> str:
    """RESULTS.md; the figures are copied beside it."""
    environment = next(iter(told.values()))["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    parts = [
        "# What the experiments found\n",
        "Written by `python -m experiments gallery`: question, command, what was printed, figure.\n",
        f"{environment['machine']}, {environment['device']}, Python {environment['python']}, {versions}.\n",
    ]
    figures = beside / "figures"
    for name, result in told.items():
        seconds, commit = result["seconds"], result["environment"]["commit"]
        made = f"`python -m experiments {name}`, {seconds:.0f} s, commit {commit}"
        parts.append(f"## {name}\n\n{summary(name)}\n\n{made}\n")
        printed = (folder / name / "printed.txt").read_text().rstrip()
        parts.append(f"```text\n{printed}\n```\n")
        drawn = folder / name / "figure.png"
        if drawn.exists():
            figures.mkdir(exist_ok=True)
            shutil.copy(drawn, figures / f"{name}.png")
            parts.append(f"![{name}](figures/{name}.png)\n")
    return "\n".join(parts)


def _draw(folder: Path, told: dict[str, Any]) -> None:
    figure, (axes,) = common.figure(1, height=0.3 * len(told) + 1)
    figure.set_size_inches(7, 0.3 * len(told) + 1)
    names_, seconds = list(told)[::-1], [result["seconds"] for result in told.values()][::-1]
    colours = [
        "C3" if not all(told[name].get("claims", {"": "error" not in told[name]}).values()) else "C0" for name in names_
    ]
    axes.bar_label(axes.barh(names_, seconds, color=colours), fmt="%.0f s", padding=3)
    axes.set(xlabel="seconds; red: a claim that does not hold", title="wall time of each experiment")
    axes.margins(x=0.12)
    figure.savefig(folder / "figure.png", dpi=140)
