"""The settings said to be 95 % efficient at the normal are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

# The library's scale is that of the literature in all of them: q = |r|/scale.
TUNED = {"huber": 1.345, "tukey": 4.685, "cauchy": 2.385, "welsch": 2.985, "fair": 1.400}


def efficiency(loss, **settings: float) -> float:
    """(E ψ')²/E ψ² for standard normal errors, relative to the 1 of squared error."""
    with jax.enable_x64(True):
        corners = [-12.0, *(sign * value for value in settings.values() for sign in (-1, 1)), 0.0, 12.0]
        nodes, weights = np.polynomial.legendre.leggauss(80)
        ends = np.unique(np.clip(corners, -12, 12))
        half = np.diff(ends) / 2
        points = (ends[:-1] + half)[:, None] + half[:, None] * nodes
        density = half[:, None] * weights * np.exp(-(points**2) / 2) / np.sqrt(2 * np.pi)
        at = jnp.asarray(points), jnp.zeros(points.shape)
        slopes, curvatures = jaxloss.slope(loss)(*at, **settings), jaxloss.curvature(loss)(*at, **settings)
        assert slopes.dtype == jnp.float64
        return float((density * curvatures).sum() ** 2 / (density * slopes**2).sum())


@pytest.mark.parametrize("name", TUNED)
def test_the_documented_setting_is_95_percent_efficient(name):
    loss = getattr(jaxloss, name)
    assert efficiency(loss, **{"delta" if name == "huber" else "scale": TUNED[name]}) == pytest.approx(0.95, abs=1e-3)
    assert f"{TUNED[name]:.3f}" in loss.__doc__
    assert "95 %" in loss.__doc__


def test_squared_error_is_fully_efficient():
    assert efficiency(jaxloss.mse) == pytest.approx(1, abs=1e-12)
