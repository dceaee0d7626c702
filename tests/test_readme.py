"""The README's examples run, and its commands are the ones the checks use."""

import doctest
from pathlib import Path

from experiments import losses

README = Path(__file__).parent.parent / "README.md"


def test_examples_run():
    result = doctest.testfile(str(README), module_relative=False, optionflags=doctest.ELLIPSIS, verbose=False)
    assert result.attempted > 30
    assert result.failed == 0


def test_the_table_of_losses_is_up_to_date():
    """When it is not: python -m experiments losses --readme README.md."""
    assert losses.inserted(README.read_text(), losses.table()) == README.read_text()


def test_the_two_commands_are_there():
    text = README.read_text()
    assert "pip install -e '.[experiments]' && python -m experiments mlp\n" in text
    assert "pip install -e '.[test]' && pytest\n" in text
