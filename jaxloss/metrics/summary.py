"""From sums and moments to the figures that are reported, on the host in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxloss.metrics import histogram

if TYPE_CHECKING:
    from jaxloss.metrics.residual_stats import ResidualStats

QUANTILES = (0.01, 0.05, 0.125, 0.25, 0.5, 0.75, 0.875, 0.95, 0.99)
"""Levels of the quantiles of the residual in a summary; the eighths are those of octile skew."""

TOP = 0.01
"""The share of the weight whose part of the squared error is reported."""


def summarize(stats: ResidualStats, finite_only: bool) -> dict[str, Any]:
    """What `ResidualStats.summary` returns."""
    count, nonfinite, weight = stats.total("count"), stats.total("nonfinite"), stats.total("weight")
    known = weight > 0 if finite_only else (weight > 0) & (nonfinite == 0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        figures = _errors(stats, weight)
        if stats.moments is not None:
            figures |= _moments(stats, weight)
        if stats.histogram is not None:
            figures |= _shape(stats)
    expand = {"quantiles": known[..., None]}
    figures = {name: _plain(np.where(expand.get(name, known), value, np.nan)) for name, value in figures.items()}
    result = {"n": _plain(count.astype(np.int64)), "weight": _plain(weight)}
    result |= {"nonfinite": _plain(nonfinite.astype(np.int64))} | figures
    if stats.histogram is not None:
        result["quantile_levels"] = np.array(QUANTILES)
    if stats.worst is not None:
        worst = stats.worst._asdict()
        result |= {f"worst_{name}": np.asarray(worst[name]) for name in ("row", "pred", "target")}
        with np.errstate(invalid="ignore", over="ignore"):
            result["worst_residual"] = result["worst_pred"] - result["worst_target"]
    return result


def _plain(value: np.ndarray) -> Any:
    """A Python number for a pooled statistic."""
    return value.item() if np.ndim(value) == 0 else value


def _errors(stats: ResidualStats, weight: np.ndarray) -> dict[str, Any]:
    mse, mae = stats.total("square") / weight, stats.total("absolute") / weight
    rmse = np.sqrt(mse)
    positive, negative = stats.total("positive"), stats.total("negative")
    return {
        "effective_n": weight * weight / stats.total("weight_square"),
        "mse": mse,
        "rmse": rmse,
        "mae": mae,
        "bias": stats.total("residual") / weight,
        "max_error": np.asarray(stats.largest, np.float64),
        "rmse_over_mae": rmse / mae,
        "sign_imbalance": (positive - negative) / weight,
    }


def _moments(stats: ResidualStats, weight: np.ndarray) -> dict[str, Any]:
    residual, target, pred = (stats.moment(name, name) for name in ("residual", "target", "pred"))
    absolute = stats.moment("absolute", "absolute")
    spread = stats.moment("pred", "residual", "residual")
    return {
        "bias": stats.mean("residual"),
        "r2": _against(stats.total("square"), target),
        "explained_variance": _against(residual, target),
        "pearson": _correlation(stats.moment("pred", "target"), pred, target),
        "residual_sd": np.sqrt(residual / weight),
        "residual_skewness": stats.moment(*["residual"] * 3) / weight / (residual / weight) ** 1.5,
        "residual_kurtosis": stats.moment(*["residual"] * 4) / weight / (residual / weight) ** 2,
        "target_mean": stats.mean("target"),
        "target_sd": np.sqrt(target / weight),
        "target_skewness": stats.moment(*["target"] * 3) / weight / (target / weight) ** 1.5,
        "target_kurtosis": stats.moment(*["target"] * 4) / weight / (target / weight) ** 2,
        "pred_mean": stats.mean("pred"),
        "pred_sd": np.sqrt(pred / weight),
        "residual_by_pred": _correlation(stats.moment("pred", "residual"), pred, residual),
        "absolute_by_pred": _correlation(stats.moment("pred", "absolute"), pred, absolute),
        "square_by_pred": spread / weight / (np.sqrt(pred / weight) * residual / weight),
    }


def _shape(stats: ResidualStats) -> dict[str, Any]:
    weights = stats.histogram.value  # type: ignore[union-attr]
    quantiles = histogram.quantile(weights, QUANTILES)
    low, median, high = (quantiles[..., QUANTILES.index(level)] for level in (0.125, 0.5, 0.875))
    return {
        "median_absolute_error": histogram.quantile(weights, [0.5], absolute=True)[..., 0],
        "octile_skew": ((high - median) - (median - low)) / (high - low),
        "top_share": histogram.top_share(weights, TOP),
        "quantiles": quantiles,
    }


def _against(error: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """1 − error/spread; over a spread of 0 it is 1 for no error, else 0."""
    return np.where(spread == 0, np.where(error == 0, 1.0, 0.0), 1 - error / spread)


def _correlation(product: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.clip(product / (np.sqrt(left) * np.sqrt(right)), -1, 1)
