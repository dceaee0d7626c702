"""The recipes of CONTRIBUTING.md: each diff applies to a copy of the repository, and its command passes there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT

RECIPES = ("A loss", "A family of distributions", "A solver for another kind of loss", "An experiment")
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(recipe: str, language: str) -> str:
    """The text of the fenced blocks of that language in the recipe's section."""
    section = PAGE.split(f"\n### {recipe}\n")[1].split("\n##")[0]
    return "".join(re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("jaxloss", "experiments", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "figures"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def apply(recipe: str, folder: Path) -> None:
    words = ["git", "apply", "--recount", "-"]
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        words, input=blocks(recipe, "diff"), cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_applies(recipe, copy):
    before = {path: path.read_text() for path in copy.rglob("*.py")}
    apply(recipe, copy)
    changed = [path for path in copy.rglob("*.py") if before.get(path) != path.read_text()]
    assert len(changed) == blocks(recipe, "diff").count("\n+++ ")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs(recipe, copy):
    apply(recipe, copy)
    environment = {**os.environ, "PYTHONPATH": str(copy), "JAX_PLATFORMS": "cpu"}
    for command in blocks(recipe, "sh").splitlines():
        done = subprocess.run(
            command, shell=True, cwd=copy, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        if command.startswith("pytest"):
            assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout[-1000:]
