"""Run an experiment: `python -m experiments NAME --setting value`; without a name, list them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import io
import os
import pkgutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import experiments

SHARED = ("common", "data", "models", "sweeps")


TELL_COMPILATION = ("first", "solvers", "speed")
"""Experiments that report how long programs take to compile, and so compile them anew."""


def names() -> list[str]:
    """The experiments, by file name."""
    found = (module.name for module in pkgutil.iter_modules(experiments.__path__))
    return sorted(name for name in found if name not in SHARED and not name.startswith("_"))


def summary(name: str) -> str:
    """The first line of an experiment's docstring, read without importing it."""
    source = (Path(experiments.__path__[0]) / f"{name}.py").read_text()
    return source.split('"""')[1].strip().splitlines()[0]


def overview() -> str:
    """What there is, one line each."""
    width = max(map(len, names()))
    listed = "\n".join(f"  {name:{width}}  {summary(name)}" for name in names())
    usage = "python -m experiments NAME [--help] [--setting value]"
    where = "Each writes to a new folder under runs/NAME (or --out FOLDER)."
    return "\n\n".join([usage, listed, where, platform_options().format_help()])


def platform_options() -> argparse.ArgumentParser:
    """Settings that every experiment has: where it runs, and whether it goes on."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(
        "--no-cache", action="store_true", help="compile anew, instead of keeping programs in the user's cache folder"
    )
    group = parser.add_argument_group("settings of every experiment that trains by fit")
    group.add_argument("--devices", type=int, help="spread the rows over so many devices; on the CPU they are made")
    group.add_argument("--resume", action="store_true", help="go on in the run folder --out from its last checkpoint")
    group.add_argument("--profile", action="store_true", help="write a profiler trace to the run folder")
    group.add_argument(
        "--distributed", nargs="*", metavar="ADDRESS PROCESSES NUMBER",
        help="one of several processes: under Slurm no more is needed, else host:port, their number, and which it is",
    )  # fmt: skip
    return parser


def prepare(name: str, words: list[str]) -> tuple[Any, list[str]]:
    """Set the devices and processes up, before anything touches them; the session, and the words that are left."""
    try:
        chosen, rest = platform_options().parse_known_args(words)
    except argparse.ArgumentError as error:
        raise SystemExit(str(error)) from None
    import jax

    if chosen.devices is not None:
        if chosen.devices < 1:
            raise SystemExit(f"--devices {chosen.devices}: must be at least 1")
        jax.config.update("jax_num_cpu_devices", chosen.devices)
    if chosen.distributed is not None:
        if len(chosen.distributed) not in (0, 3) or not all(word.isdecimal() for word in chosen.distributed[1:]):
            raise SystemExit("--distributed: give host:port, the number of processes and which this is, or nothing")
        address = [kind(word) for kind, word in zip((str, int, int), chosen.distributed)]
        jax.distributed.initialize(*address, heartbeat_timeout_seconds=10)
    if not chosen.no_cache and name not in TELL_COMPILATION and not jax.config.jax_compilation_cache_dir:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxloss"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    from experiments import common

    return common.Session(chosen.devices, chosen.resume, chosen.profile), rest


def closest(word: str, known: list[str]) -> str:
    """A hint at what may have been meant."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def parse(name: str, module: Any, words: list[str]) -> Any:
    """The settings as the experiment's config; a bad one is told in one line."""
    import tyro

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(module.Config, prog=f"python -m experiments {name}", description=module.__doc__, args=words)
    except SystemExit as stop:
        if not stop.code:
            raise
        flags = [word.split("=")[0] for word in words if word.startswith("--")]
        known = [f"--{field.replace('_', '-')}" for field in module.Config.__dataclass_fields__]
        for flag in flags:
            if flag.replace("_", "-") not in known and not flag.startswith("--no-"):
                hint = closest(flag, known)
                raise SystemExit(f"{name}: unknown setting {flag}{hint} (settings: --help)") from None
        text = " ".join("".join(" " if mark in "│╭╮╰╯─" else mark for mark in told.getvalue()).split())
        raise SystemExit(f"{name}: {text}") from None


def main(words: list[str]) -> int:
    """List, explain or run."""
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    name, *rest = words
    if name not in names():
        raise SystemExit(f"unknown experiment {name!r}{closest(name, names())} (python -m experiments lists them)")
    try:
        session, rest = prepare(name, rest)
        import jax

        from experiments import common

        module = importlib.import_module(f"experiments.{name}")
    except ModuleNotFoundError as missing:
        raise SystemExit(f"{name}: needs {missing.name}: pip install -e '.[test]'") from None
    config = parse(name, module, rest)
    try:
        folder = common.run_folder(name, config.out, session)
        config = dataclasses.replace(config, session=dataclasses.replace(session, run_dir=folder))
        if not common.is_first_process():  # it trains with the others, and keeps what it draws to itself
            with tempfile.TemporaryDirectory() as aside, contextlib.redirect_stdout(io.StringIO()):
                module.run(config, Path(aside))
            return 0
        common.write_json(folder / "config.json", dataclasses.asdict(config))
        environment = common.environment()
        started = time.perf_counter()
        with jax.profiler.trace(folder) if session.profile else contextlib.nullcontext():
            result = module.run(config, folder)
    except (common.UserError, ValueError) as error:
        raise SystemExit(f"{name}: {error}") from None
    result |= {"seed": vars(config).get("seed"), "seconds": time.perf_counter() - started}
    common.write_json(folder / "result.json", result | {"environment": environment})
    print(f"\nwritten to {folder}/: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0 if all(result.get("claims", {}).values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
