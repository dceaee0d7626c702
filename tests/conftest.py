"""A hostile configuration for the whole suite; warnings are errors already, in pyproject.toml."""

from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("suite", deadline=None, max_examples=12, derandomize=True, database=None)
hypothesis.settings.register_profile("fresh", deadline=None, max_examples=25, print_blob=True, database=None)
hypothesis.settings.load_profile("suite")  # `--hypothesis-profile=fresh` draws new examples each time


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """A compiled program takes some 20 memory maps. Linux allows a process 65,530; beyond them XLA crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _same_numbers(request):
    """A test draws the same numbers whichever tests ran before it in its process."""
    random = getattr(request.module, "RANDOM", None)
    if random is not None:
        random.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture
def eager():
    """Operation by operation, for tests of what is computed rather than compiled: losses share most operations."""
    with jax.disable_jit():
        yield
