"""Every docstring example runs, and every public name has a docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import ROOT

import jaxloss

HEAVY = ("jaxloss.train", "jaxloss.plots")  # loaded only when imported; their own tests run their examples
MODULES = [
    importlib.import_module(name)
    for _, name, _ in pkgutil.walk_packages(jaxloss.__path__, "jaxloss.")
    if not name.startswith(HEAVY)
]


def documented(module):
    """(name, docstring) of the module, of what it defines, and of the methods of its classes.

    doctest's own finder passes over losses: a lifted function's globals are those of the module that lifts.
    """
    yield module.__name__, module.__doc__
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__ and name not in getattr(module, "__all__", ()):
            continue
        if callable(value) and not name.startswith("_"):
            yield f"{module.__name__}.{name}", value.__doc__
        if inspect.isclass(value):
            for method, member in vars(value).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{module.__name__}.{name}.{method}", function.__doc__


DOCSTRINGS = dict(entry for module in [jaxloss, *MODULES] for entry in documented(module))
EXAMPLES = {name: text for name, text in DOCSTRINGS.items() if text and ">>>" in text}
SLOW = "jaxloss.likelihood.joint.Mixture.initial_bias"


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == SLOW)) for name in EXAMPLES])
def test_examples_in_docstrings_run(name):
    names = {"jax": jax, "jnp": jnp, "np": np, **vars(jaxloss)}
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], names, name, None, None)
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0


def test_every_public_name_has_a_docstring():
    named = {f"{module.__name__}.{name}" for module in MODULES for name in getattr(module, "__all__", ())}
    assert named
    bare = [name for name in named & set(DOCSTRINGS) if not DOCSTRINGS[name]]
    assert bare == []


def test_every_loss_shows_an_example():
    for name, loss in vars(jaxloss).items():
        if hasattr(loss, "lifted"):
            assert f"{loss.__module__}.{name}" in EXAMPLES
            assert loss.__doc__.partition("\n")[0].endswith((".", ")"))


def test_the_files_that_contributing_names_are_there():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    table = page.split("### Where things are")[1].split("\n## ")[0]
    named = re.findall(r"`((?:jaxloss|experiments)/[\w/]+\.py)`", table)
    assert len(named) >= 20
    assert [path for path in named if not (ROOT / path).exists()] == []
