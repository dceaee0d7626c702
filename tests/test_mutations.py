"""Break every loss in every place, and see its row go red: a test that cannot fail is a defect.

Every mutant of a loss, of its closed forms and of their helpers in its module is tried, and must be seen by the cases
of `test_accuracy` or stand in `equivalents.py` with the reason. The scalar functions are run without `pointwise`,
operation by operation: so nothing is compiled twice.
"""

from __future__ import annotations

import ast
import collections
import copy
import functools
import inspect
import pathlib
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from catalogue import Row, each_loss
from equivalents import EQUIVALENT
from test_accuracy import check_accuracy

import jaxloss
from jaxloss import lift

FLIPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}


def mutants_of(node: ast.AST) -> Iterator[ast.AST]:
    """What a slip of the pen would make of a node: another sign, a lost factor, exchanged branches."""
    if isinstance(node, ast.BinOp) and type(node.op) in FLIPPED:
        yield ast.BinOp(node.left, FLIPPED[type(node.op)](), node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        yield from (node.left, node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        yield node.left
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node.operand
    if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPPED:
        yield ast.Compare(node.left, [FLIPPED[type(node.ops[0])]()], node.comparators)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "jnp.where":
        condition, first, second = node.args
        yield ast.Call(node.func, [condition, second, first], [])


EVERY = {"barron_nll": 23}
"""A case of it costs an integral: every 23rd is enough to see its mutants."""


SHARED = {"barron_nll": ("_loss", "_barron_slope", "_barron_curvature")}
"""What is mutated, with all it uses, in the row of another loss of the module."""


class Mutant(NamedTuple):
    """A module with one change, the function it is in, and its name: "function: source -> mutated source"."""

    function: str
    name: str
    module: ast.Module


class Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, replacement: ast.AST):
        self.target, self.replacement = target, replacement

    def visit(self, node):
        return self.replacement if node is self.target else self.generic_visit(node)


@functools.cache
def parsed(path: str) -> ast.Module:
    return ast.parse(pathlib.Path(path).read_text())


def defined(statement: ast.stmt) -> str:
    """The name that a statement of a module defines: a function, a class, a variable."""
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return getattr(statement, "name", "")


def used_by(tree: ast.Module, *names: str) -> set[str]:
    """The names of the module that these use, directly or not, themselves included; what decorates them is not used."""
    statements = {defined(statement): statement for statement in tree.body}
    found, unseen = set(), set(names)
    while unseen:
        current = unseen.pop()
        found.add(current)
        body = getattr(statements[current], "body", [statements[current]])
        used = {node.id for statement in body for node in ast.walk(statement) if isinstance(node, ast.Name)}
        unseen |= (used & set(statements)) - found
    return found


def mutants(tree: ast.Module, names: set[str]) -> Iterator[Mutant]:
    """One for every place in the bodies of what is named; the second of the same name in a function is "… (2)"."""
    seen = collections.Counter()
    for position, statement in enumerate(tree.body):
        if defined(statement) not in names:
            continue
        bodies = getattr(statement, "body", [])
        for index, part in enumerate(bodies):
            for place, node in enumerate(ast.walk(part)):
                for number, mutant in enumerate(mutants_of(node)):
                    name = f"{defined(statement)}: {ast.unparse(node)} -> {ast.unparse(mutant)}"
                    seen[name] += 1
                    module = copy.copy(tree)
                    module.body = list(tree.body)
                    module.body[position] = changed = copy.deepcopy(statement)
                    target = list(ast.walk(changed.body[index]))[place]
                    replacement = list(mutants_of(target))[number]
                    changed.body[index] = Replace(target, replacement).visit(changed.body[index])
                    name += f" ({seen[name]})" if seen[name] > 1 else ""
                    yield Mutant(defined(statement), name, ast.fix_missing_locations(module))


class Scalars(NamedTuple):
    """The scalar function of a loss, and its closed forms, as they are given to `pointwise`."""

    value: Callable
    slope: Callable | None
    curvature: Callable | None
    partials: Mapping[str, Callable]

    def parts(self) -> dict[str, Callable]:
        """Value, slope and curvature: closed forms where there are any, else automatic derivatives."""
        slope = self.slope or jax.grad(self.value)
        return {"slope": slope, "curvature": self.curvature or jax.grad(slope), "value": self.value}

    def partial(self, name: str, residual: bool) -> Callable:
        """The derivative of the value in a setting, or in the target."""
        if name in self.partials:
            return self.partials[name]
        if residual and name == "target":
            return lambda pred, target, **settings: -self.parts()["slope"](pred, target, **settings)

        def derivative(pred, target, **settings):
            rest = {"target": target, **settings}
            at = rest.pop(name)
            return jax.jvp(lambda x: self.value(pred, **rest, **{name: x}), (at,), (jnp.ones_like(at),))[1]

        return derivative


def executed(module: ast.Module, path: str, name: str) -> Scalars:
    """The loss of that name in the module, run afresh, with the lifting left out."""

    def pointwise(function=None, *, slope=None, curvature=None, partials=None, **declared):
        if function is None:
            return functools.partial(pointwise, slope=slope, curvature=curvature, partials=partials)
        return Scalars(function, slope, curvature, partials or {})

    namespace = types.ModuleType(f"mutated_{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lift, "pointwise", pointwise)
        exec(compile(module, path, "exec"), vars(namespace))
    return getattr(namespace, name)


def check_scalars(row: Row, scalars: Scalars, wanted: Collection[str], every: int = 1) -> None:
    """Those parts of the loss against the row."""
    residual = jaxloss.traits(row.loss).residual
    parts = scalars.parts() | {name: scalars.partial(name, residual) for name in row.partials}
    check_accuracy(row, {what: jax.vmap(part) for what, part in parts.items() if what in wanted}, False, every)


def called_in(path: str, run: Callable[[], None]) -> set[str]:
    """The functions and classes of the file that are called as it runs."""
    found = set()

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename == path:
            found.add(frame.f_code.co_qualname.partition(".")[0])

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@each_loss
def test_mutants_are_caught(row):
    """All but those that change nothing, each listed with the reason."""
    path = inspect.getsourcefile(row.loss.__wrapped__)
    tree = parsed(path)
    own = executed(tree, path, row.name)
    wanted = ("slope", "curvature", "value", *row.partials)
    check_scalars(row, own, wanted)
    calls = {what: called_in(path, lambda what=what: check_scalars(row, own, {what})) for what in wanted}
    closed_forms = [form.__name__ for form in (own.slope, own.curvature, *own.partials.values()) if form]
    survivors, names, caught = set(), set(), set()
    own_names = used_by(tree, row.name, *closed_forms) - used_by(tree, *SHARED.get(row.name, ()))
    for mutant in mutants(tree, own_names):
        names.add(mutant.name)
        touched = [what for what, called in calls.items() if mutant.function in called]
        try:
            scalars = executed(mutant.module, path, row.name)
            check_scalars(row, scalars, touched, EVERY.get(row.name, 1))
        except (AssertionError, RuntimeWarning):  # a wrong number, or one that overflows: the row has seen it
            caught.add(mutant.name)
            continue
        except (
            AttributeError,
            TypeError,
            ValueError,
        ):  # a mutant that does not even run; any other error is a fault of this test
            continue
        survivors.add(mutant.name)
    equivalent = set(EQUIVALENT.get(row.name, {}))
    assert caught, f"of {len(names)} mutants none gave a wrong number"
    assert not survivors - equivalent, "the row does not see:\n" + "\n".join(sorted(survivors - equivalent))
    assert not equivalent - names, "no such mutant any more:\n" + "\n".join(sorted(equivalent - names))
    assert not equivalent - survivors, "listed as equivalent, but seen:\n" + "\n".join(sorted(equivalent - survivors))
