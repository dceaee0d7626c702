"""Which way the imports point, what a room shows of itself, and how large a function may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from support import ROOT, run_python

PACKAGE = ROOT / "jaxloss"
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
# Module or folder of jaxloss, and what it imports of jaxloss, beside itself and `numerics`: the arrows of DESIGN, and
# what they rest on. No more, and no less.
ARROWS = {
    "numerics": set(),
    "contract": set(),
    "derivatives": set(),
    "reduce": {"contract"},
    "lift": {"derivatives", "reduce", "contract"},
    "losses": {"lift", "contract"},
    "composite": {"reduce", "contract"},
    "scaling": {"contract"},
    "likelihood": {"lift", "reduce", "contract"},
    "metrics": {"reduce", "contract"},
    "diagnostics": {"metrics", "contract"},
    "plots": {"likelihood", "lift", "contract"},
    "solve": {"lift", "losses", "reduce", "contract"},
    "train": {"reduce", "contract"},
}
HEAVY = {"flax": "train", "optax": "train", "orbax": "train", "matplotlib": "plots"}
"""Packages that `import jaxloss` does not load, and the one room that may."""


def imports_of(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) of everything imported, at any depth; the name is empty for a module as a whole."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "a relative import"
            assert node.level == 0, "a relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def room_of(file: str) -> str:
    return file.removesuffix(".py").split("/")[0]


def test_imports_point_one_way():
    drawn: dict[str, set[str]] = {room: set() for room in ARROWS}
    for file, tree in TREES.items():
        room, found = room_of(file), set()
        for module, name in imports_of(tree):
            parts = [*module.split("."), name]
            assert HEAVY.get(parts[0], room) == room, f"{file} imports {parts[0]}"
            if parts[0] == "jaxloss":
                found.add(parts[1])
        if room == "__init__":
            assert not found & {"train", "solve", "plots"}, "these are loaded only when imported"
        else:
            drawn[room] |= found - {room, "numerics"}
    assert drawn == ARROWS


def test_importing_loads_nothing_heavy_and_touches_no_backend():
    code = f"import sys, jaxloss; print(sorted({{m.partition('.')[0] for m in sys.modules}} & set({list(HEAVY)!r})))"
    assert run_python(code, JAX_PLATFORMS="doesnotexist").strip() == "[]"


def exported(tree: ast.Module) -> set[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return None


def test_all_names_what_other_rooms_import():
    """And modules of the same room: what is imported is public, and what is public is defined."""
    missing = set()
    for file, tree in TREES.items():
        for module, name in imports_of(tree):
            if not module.startswith("jaxloss.") or not name:
                continue
            source = module.removeprefix("jaxloss.").replace(".", "/")
            if f"{source}.py" in TREES and name not in (exported(TREES[f"{source}.py"]) or ()):
                missing.add(f"{source}.py: {name}, for {file}")
    assert missing == set()
    for file, tree in TREES.items():
        defined = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        defined |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert (exported(tree) or set()) <= defined, file


def own_attributes() -> set[str]:
    """The names of the attributes that the project declares itself: fields and methods, and what it sets on objects."""
    found = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}  # type: ignore
                found |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return {name for name in found if not name.startswith("__")}


def test_no_attribute_of_our_own_is_asked_for_by_name():
    """A Protocol or a class says what an object has; `getattr` and `hasattr` are for objects of others."""
    ours, found = own_attributes(), set()
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
                name = node.args[1]
                if isinstance(name, ast.Constant) and name.value in ours:
                    found.add(f"{file}:{node.lineno} {name.value}")
    assert found == set()


ARGUMENTS, LINES = 7, 80

LARGE: dict[str, str] = {
    "train/fitting.py fit": "a public door: half of its lines are its docstring",
    "train/step.py make_step": "a public door: the parts of a step close over what it is given",
    "train/many.py fit_many": "a public door: half of its lines are its docstring",
    "solve/inputs.py checked": "what `solve_linear` and `covariance` are given, one by one",
    "solve/nonlinear.py _fit": "the data of the problem one by one, each of which has derivatives",
    "solve/certificate.py settled": "the quadratic model at the fit, and what is allowed, one by one",
    "solve/certificate.py polish": "the rows, the basis and the ridge it refines, which no other room holds together",
}
"""Functions that may have more arguments or lines, and why."""


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions and methods of a module, with the class they are in, or the function."""

    def inside(node: ast.AST, outer: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for part in ast.iter_child_nodes(node):
            named = isinstance(part, ast.FunctionDef | ast.ClassDef)
            name = f"{outer}.{part.name}".lstrip(".") if named else outer
            if isinstance(part, ast.FunctionDef):
                yield name, part
            yield from inside(part, name)

    return inside(tree, "")


def public_doors() -> set[str]:
    """What a user calls: the names that the packages' `__init__.py` export."""
    return {name for file, tree in TREES.items() if file.endswith("__init__.py") for _, name in imports_of(tree)}


def test_functions_are_small():
    large, doors = set(), public_doors()
    for file, tree in TREES.items():
        for name, function in functions(tree):
            arguments = function.args
            count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > LINES or (count > ARGUMENTS and not doors & set(name.split("."))):
                large.add(f"{file} {name}: {count} arguments, {lines} lines")
    unexplained = {entry for entry in large if entry.split(":")[0] not in LARGE}
    assert unexplained == set()
    assert set(LARGE) == {entry.split(":")[0] for entry in large}, "no longer large"


def test_a_file_fits_in_the_head():
    long = {str(path): lines for path in PACKAGE.rglob("*.py") if (lines := path.read_text().count("\n")) > 400}
    assert long == {}
    assert Path(PACKAGE / "__init__.py").exists()
