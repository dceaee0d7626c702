"""Break every loss in every place, and see its row go red: a test that cannot fail is a defect."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import pathlib
import types

import pytest
from catalogue import each_loss
from test_accuracy import check_accuracy

FLIPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}


def mutants_of(node: ast.AST):
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


@functools.cache
def parsed(path: str) -> ast.Module:
    return ast.parse(pathlib.Path(path).read_text())


def functions_of(tree: ast.Module, name: str) -> set[str]:
    """The functions of the module that one of them uses, itself included: closed forms and helpers."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found, open_names = set(), {name}
    while open_names:
        current = open_names.pop()
        found.add(current)
        used = {node.id for node in ast.walk(functions[current]) if isinstance(node, ast.Name)}
        open_names |= (used & set(functions)) - found
    return found


def mutations(tree: ast.Module, names: set[str]):
    """(function, source, mutated source, module with that one change), for every place in the functions' bodies."""
    for position, function in enumerate(tree.body):
        if not isinstance(function, ast.FunctionDef) or function.name not in names:
            continue
        for index, statement in enumerate(function.body):
            for place, node in enumerate(ast.walk(statement)):
                for number, mutant in enumerate(mutants_of(node)):
                    module = copy.deepcopy(tree)
                    body = module.body[position].body
                    target = list(ast.walk(body[index]))[place]
                    replacement = list(mutants_of(target))[number]
                    body[index] = Replace(target, replacement).visit(body[index])
                    yield function.name, ast.unparse(node), ast.unparse(mutant), ast.fix_missing_locations(module)


class Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, replacement: ast.AST):
        self.target, self.replacement = target, replacement

    def visit(self, node):
        return self.replacement if node is self.target else self.generic_visit(node)


MOST = 10
"""Mutants tried of one loss, spread evenly over its functions: some use hundreds of places."""


@pytest.mark.slow
@each_loss
def test_mutants_are_caught(row):
    """Most of them: at bounds past which a formula no longer changes, and at guards of NaN, a slip changes nothing."""
    path = inspect.getsourcefile(row.loss.__wrapped__)
    tree = parsed(path)
    every = list(mutations(tree, functions_of(tree, row.name)))
    survivors, tried = [], every[:: -(-len(every) // MOST)]
    for function, source, mutated, module in tried:
        namespace = types.ModuleType(row.loss.__module__)
        exec(compile(module, path, "exec"), vars(namespace))
        try:
            check_accuracy(row, getattr(namespace, row.name), full=False)
        except (AssertionError, TypeError):
            continue
        survivors.append(f"{function}: {source}  ->  {mutated}")
    assert len(survivors) <= 0.4 * len(tried), survivors
