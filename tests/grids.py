"""Predictions and targets over the whole range of float32, for the accuracy.

Each grid is drawn for a row and one of its settings; a row with many settings gets fewer points for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TINY = np.finfo(np.float32).tiny
LENGTHS = ("delta", "beta", "epsilon", "scale")
"""The settings in units of the residual, about which losses change their form."""

Pairs = tuple[np.ndarray, np.ndarray]


def _count(row: Any, full: bool) -> int:
    return (1200 if full else 100) * 5 // max(5, len(row.sweep))


def _sizes(random: np.random.Generator, settings: dict[str, float], count: int, end: float = 30) -> np.ndarray:
    """Numbers of every magnitude, a third of them about the settings."""
    exponents = np.linspace(-end, end, count)
    sizes = [10.0**exponents * random.uniform(0.99, 1.01, count), [10.0**-end, 10.0**end]]
    sizes += [settings[name] * 10.0 ** random.uniform(-2, 2, count // 2) for name in LENGTHS if settings.get(name)]
    return np.concatenate(sizes)


def _near(random: np.random.Generator, target: np.ndarray) -> Pairs:
    """Predictions at target·(1 ± 2⁻ᵏ), and targets."""
    target = np.float32(target)
    steps = random.choice([-1, 1], target.size) * 2.0 ** -np.resize(np.arange(1, 21), target.size)
    return np.float32(target * (1 + steps)), target


def _joined(*pairs: Pairs) -> Pairs:
    pred, target = (np.concatenate([np.float32(pair[part]) for pair in pairs]) for part in (0, 1))
    normal = (np.abs(pred) >= TINY) | (pred == 0)
    return pred[normal], target[normal]


def of_residuals(row: Any, settings: dict[str, float], full: bool) -> Pairs:
    """Predictions beside target 0, and beside targets of about the residual's size; with all corners."""
    random = np.random.default_rng(0)
    sizes = _sizes(random, settings, _count(row, full))
    corners = np.float32([0.0, *row.corners(0.0, **settings)])
    beside = np.concatenate([corners, np.nextafter(corners, np.float32(9e9)), np.nextafter(corners, -np.float32(9e9))])
    zero_target = np.concatenate([sizes, -sizes, beside])
    # Of 11 digits each, so that their difference is exact: what its rounding costs is no fault of the loss.
    unit = 2.0 ** (np.floor(np.log2(sizes)) - 10)
    other_pred, other_target = (
        unit * np.round(part * sizes / unit) for part in random.uniform(0.6, 1, (2, sizes.size))
    )
    other_pred = random.choice([-1, 1], sizes.size) * other_pred
    return _joined((zero_target, np.zeros_like(zero_target)), (other_pred, other_target))


def of_relative_errors(row: Any, settings: dict[str, float], full: bool) -> Pairs:
    """The residuals above, beside targets of every size: equal signs and unequal ones, near and far."""
    random = np.random.default_rng(1)
    pred, target = of_residuals(row, settings, full)
    sizes = _sizes(random, settings, _count(row, full) // 2)
    signs = random.choice([-1, 1], (2, sizes.size))
    other = random.permutation(sizes)
    epsilon = np.float32(settings["epsilon"])
    large = np.float32(0.75) * epsilon
    beside = np.array([large, epsilon - large])  # their sum is epsilon exactly
    corners = np.array([row.corners(each, epsilon=epsilon) for each in beside])
    return _joined(
        (pred, target),
        (0 * sizes, sizes),
        (signs[0] * other, signs[1] * sizes),
        _near(random, sizes),
        (corners.T.ravel(), np.resize(beside, corners.size)),
    )


def above_minus_one(row: Any, settings: dict[str, float], full: bool) -> Pairs:
    """Predictions and targets of every size above −1, near each other, far apart, and near −1."""
    random = np.random.default_rng(2)
    sizes = _sizes(random, settings, _count(row, full))
    small = sizes[sizes < 0.9]
    line = np.concatenate([sizes, -small, -1 + 2.0 ** -np.arange(1, 24)])
    pred, target = _joined((random.permutation(line), line), _near(random, line), (line, line * 0))
    inside = (pred > -1) & (target > -1)
    return pred[inside], target[inside]


def of_means(row: Any, settings: dict[str, float], full: bool) -> Pairs:
    """Positive predictions and targets: near each other, within some decades, anywhere; targets of 0 where allowed."""
    random = np.random.default_rng(3)
    sizes = _sizes(random, settings, _count(row, full))
    decades = np.clip(sizes * 10.0 ** random.uniform(-3, 3, sizes.size), 1e-30, 1e30)
    pairs = [(random.permutation(sizes), sizes), (decades, sizes), _near(random, sizes)]
    power = settings.get("power", {"poisson_deviance": 1, "gamma_deviance": 2}.get(row.name))
    if power < 2:
        pairs.append((sizes, 0 * sizes))
    if power <= 0:
        pairs.append((sizes, -random.permutation(sizes)))
    return _joined(*pairs)
