"""What many processes must agree on before they act: one of them alone would leave the others waiting."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["agreed", "gathered"]

BLOCK = 256
"""Bytes that texts are padded to a multiple of, so that few lengths are compiled."""


def gathered(text: str) -> list[str]:
    """The text of every process, in the order of processes; all of them must call this."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(own.size, np.int32))
    padded = np.zeros(-(-max(sizes) // BLOCK) * BLOCK, np.uint8)
    padded[: own.size] = own
    rows = multihost_utils.process_allgather(padded) if padded.size else np.zeros((len(sizes), 0), np.uint8)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes)]


def agreed(problem: str) -> str:
    """The first problem any process has; "" if none."""
    return next(filter(None, gathered(problem)), "")
