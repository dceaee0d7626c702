"""Whether one of several outputs is what the loss is made of, because of its unit or because it is the hardest."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Balance"]

SHOWN = 6
"""Weights are printed for at most so many outputs."""


class Balance(NamedTuple):
    """How the squared error is spread over the outputs; one entry for each, in their order."""

    names: tuple[str, ...]
    shares: tuple[float, ...]
    """Parts of Σwr² over all outputs."""
    standardized_shares: tuple[float, ...]
    """The same with each target divided by its standard deviation, as `Standardizer` does."""
    weights: tuple[float, ...]
    """The inverse variance of each target: as weights, they train as standardised targets do."""
    dominant: str | None
    """The output whose residuals the loss is made of, if there is one."""
    because_of_unit: bool
    """Whether it is so no more when the targets are standardised."""

    @classmethod
    def of(cls, names: list[str], figures: list[dict[str, float]]) -> Balance:
        """The balance of outputs with these figures."""
        squares = np.array([each["mse"] * each["weight"] for each in figures])
        variances = np.array([each["target_sd"] ** 2 for each in figures])
        weights = np.divide(1.0, variances, where=variances > 0, out=np.ones_like(variances))
        plain, standardized = _shares(squares), _shares(squares * weights)
        first = int(np.argmax(np.nan_to_num(plain)))
        dominates = 0.5 + 0.5 / len(names)  # two outputs: one counts three times the other
        dominant = names[first] if plain[first] >= dominates else None
        unit = dominant is not None and bool(standardized[first] < dominates)
        parts = tuple(plain.tolist()), tuple(standardized.tolist()), tuple(weights.tolist())
        return cls(tuple(names), *parts, dominant, unit)

    @property
    def advice(self) -> tuple[str, ...]:
        """One sentence where an output dominates."""
        if self.dominant is None:
            return ()
        first = self.names.index(self.dominant)
        share, standardized = self.shares[first], self.standardized_shares[first]
        told = f"{self.dominant} makes up {share:.1%} of the squared error"
        if not self.because_of_unit:
            return (f"{told}, and {standardized:.1%} of it with standardised targets: it is the hardest to predict.",)
        weights = ", ".join(f"{weight:.3g}" for weight in self.weights)
        inverse = f"weights=[[{weights}]]" if len(self.names) <= SHOWN else "weights of 1 / target variance"
        return (
            f"{told} because of its unit ({standardized:.1%} with standardised targets): standardise the targets "
            f"(Standardizer), or give the loss {inverse}, the inverse variances.",
        )


def _shares(squares: np.ndarray) -> np.ndarray:
    squares = np.where(np.isnan(squares), 0, squares)  # an output without residuals adds nothing
    total = squares.sum()
    return squares / total if 0 < total < np.inf else np.full_like(squares, np.nan)
