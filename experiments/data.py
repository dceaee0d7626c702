"""The data of the experiments: simulated with stated generators, or real and shipped with scikit-learn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import gammaincinv
from sklearn.datasets import load_diabetes, load_digits

from jaxloss import Standardizer


def noisy_line(points: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x uniform on [−1, 1] and y = 3x + 2 + noise·N(0, 1), both of shape (points, 1)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (points, 1))
    y = 3 * x + 2 + noise * rng.normal(size=(points, 1))
    return x.astype(np.float32), y.astype(np.float32)


def trips(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Trips through a town: (straight line in metres, turnings), and the way in metres, of shape (rows, 1).

    straight line ~ Uniform(500, 20,000); turnings ~ Poisson(5 + straight/1000)
    way = 1.3·straight + 60·turnings + 400·N(0, 1)
    """
    rng = np.random.default_rng(seed)
    straight = rng.uniform(500, 20_000, rows)
    turnings = rng.poisson(5 + straight / 1000)
    way = 1.3 * straight + 60 * turnings + 400 * rng.normal(size=rows)
    return np.column_stack([straight, turnings]), way[:, None]


def people(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Six standard normal features of a person; age in years and income in dollars, of shape (rows, 2).

    age = 42 + 9·tanh(x₀ + x₁) + 5·sin(2x₂) + 3·N(0, 1)
    income = exp(10.6 + 0.3·x₃ + 0.25·tanh(2x₄) + 0.15·x₃x₅ + 0.1·N(0, 1))
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6))
    noise = rng.normal(size=(rows, 2))
    age = 42 + 9 * np.tanh(x[:, 0] + x[:, 1]) + 5 * np.sin(2 * x[:, 2]) + 3 * noise[:, 0]
    log_income = 10.6 + 0.3 * x[:, 3] + 0.25 * np.tanh(2 * x[:, 4]) + 0.15 * x[:, 3] * x[:, 5] + 0.1 * noise[:, 1]
    return x, np.column_stack([age, np.exp(log_income)])


class Split(NamedTuple):
    """Features and targets of the training, validation and test rows."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """442 patients: ten raw features; disease progression a year later, of shape (442, 1) (Efron et al. 2004)."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    return x, y[:, None]


def split(x: np.ndarray, y: np.ndarray, seed: int, validation: float = 0.15, test: float = 0.2) -> Split:
    """Rows in a random order, cut into training, validation and test rows."""
    order = np.random.default_rng(seed).permutation(len(x))
    cuts = np.cumsum([round(len(x) * test), round(len(x) * validation)])
    test_rows, validation_rows, train_rows = np.split(order, cuts)
    return Split(*((x[rows], y[rows]) for rows in (train_rows, validation_rows, test_rows)))


def standardize(parts: Split) -> tuple[Split, Standardizer, Standardizer]:
    """The split in standard units, and the units of features and target, fitted on the training rows alone."""
    features, target = (Standardizer.fit(values) for values in parts.train)
    scaled = Split(
        *((features.transform(x).astype(np.float32), target.transform(y).astype(np.float32)) for x, y in parts)
    )
    return scaled, features, target


def least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients, the intercept last, that minimise the squared error; in float64."""
    design = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    return np.linalg.lstsq(design, y.astype(np.float64), rcond=None)[0]


STEFAN_BOLTZMANN = 5.670374419e-8
"""W/(m² K⁴)."""


class Radiometer(NamedTuple):
    """A plate before a radiometer, and how it is measured; temperatures in K, fluxes in W/m²."""

    plate: tuple[float, float]
    """The range of the plate's temperature T, uniform."""
    surroundings: tuple[float, float]
    """The range of that of its surroundings T₀, uniform."""
    emissivity: float
    noise: float
    """Standard deviation of the sensor's normal noise, the same everywhere."""

    def flux(self, x: np.ndarray) -> np.ndarray:
        """The net flux εσ(T⁴ − T₀⁴) of rows (T, T₀), of shape (rows, 1)."""
        return self.emissivity * STEFAN_BOLTZMANN * (x[:, :1] ** 4 - x[:, 1:] ** 4)

    def measure(self, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Temperatures (T, T₀), exactly known, and the flux as the sensor reads it."""
        rng = np.random.default_rng(seed)
        x = np.column_stack([rng.uniform(*ends, rows) for ends in (self.plate, self.surroundings)])
        return x, self.flux(x) + self.noise * rng.normal(size=(rows, 1))


class Market(NamedTuple):
    """How flats are priced: what a flat is worth on average, and how far a sale is from that."""

    worth: float
    """Of a new flat of 70 m² in the centre, in dollars."""
    area: float
    """Power of the area that the price grows with."""
    distance: float
    """Fall of the log price per kilometre from the centre."""
    noise: str
    """"lognormal": sales are exp(spread·N(0, 1) − spread²/2) of the worth; "gamma": Gamma of mean 1, sd spread."""
    spread: float

    def sell(self, rows: int, seed: int) -> Sales:
        """Flats of random area (log-normal, median 70 m²), distance, age, floor and quality, and their sales.

        log worth = log(worth) + area·log(m²/70) − distance·km + 0.3·sin(age/20) − 0.004·age + 0.02·floor + 0.3·quality
        """
        rng = np.random.default_rng(seed)
        area = 70 * np.exp(0.5 * rng.normal(size=rows))
        km = 4 * rng.gamma(2, size=rows)
        age, floor, quality = rng.uniform(0, 100, rows), rng.integers(0, 12, rows), rng.normal(size=rows)
        log_worth = np.log(self.worth) + self.area * np.log(area / 70) - self.distance * km
        log_worth += 0.3 * np.sin(age / 20) - 0.004 * age + 0.02 * floor + 0.3 * quality
        if self.noise == "lognormal":
            factor = np.exp(self.spread * rng.normal(size=rows) - self.spread**2 / 2)
            median = np.exp(-(self.spread**2) / 2)
        else:
            shape = self.spread**-2
            factor, median = rng.gamma(shape, 1 / shape, rows), gammaincinv(shape, 0.5) / shape
        worth = np.exp(log_worth)[:, None]
        x = np.column_stack([np.log(area), km, age, floor, quality])
        return Sales(x, worth * factor[:, None], worth, worth * median)


class Sales(NamedTuple):
    """Flats and their prices in dollars, with the mean and median that the price of such a flat has."""

    x: np.ndarray
    """log m², kilometres from the centre, age in years, floor, quality; of shape (rows, 5)."""
    price: np.ndarray
    mean: np.ndarray
    median: np.ndarray


class Recorder(NamedTuple):
    """Waves, and what two recorders of the same wave make of them; in units of the wave, periods in samples."""

    periods: tuple[float, float]
    """The range of the periods of a wave's three sines, log-uniform."""
    noise: float
    """Standard deviation of the normal noise."""
    share: float
    """Part of the samples with an impulse."""
    size: float
    """Impulses are size·(1 + Exp(1)) high."""
    signs: tuple[int, ...]
    """Which way they go, each as often: (−1, 1), or (1,)."""

    def record(self, waves: int, samples: int, seed: int) -> Recordings:
        """wave = Σ amplitude·sin(2πt/period + phase) over three, amplitudes uniform on [0.4, 1], phases on [0, 2π]."""
        rng = np.random.default_rng(seed)
        period = np.exp(rng.uniform(*np.log(self.periods), (waves, 3, 1)))
        phase, amplitude = rng.uniform(0, 2 * np.pi, period.shape), rng.uniform(0.4, 1, period.shape)
        clean = (amplitude * np.sin(2 * np.pi * np.arange(samples) / period + phase)).sum(1)

        def recording() -> np.ndarray:
            impulses = self.size * (1 + rng.exponential(size=clean.shape)) * rng.choice(self.signs, clean.shape)
            hit = rng.random(clean.shape) < self.share
            return clean + self.noise * rng.normal(size=clean.shape) + np.where(hit, impulses, 0)

        return Recordings(clean, recording(), recording())


class Recordings(NamedTuple):
    """Waves as they are and as two recorders heard them, each with noise and impulses of its own: (waves, samples)."""

    clean: np.ndarray
    first: np.ndarray
    second: np.ndarray


class Frames(NamedTuple):
    """Pictures of an object and where its centre is: by the label, and in truth."""

    image: np.ndarray
    """Of shape (frames, 32, 32, 1)."""
    label: np.ndarray
    """The centre as the tracker tells it, in pixels from the top left: (row, column)."""
    centre: np.ndarray
    """The centre as it is."""
    occluded: np.ndarray
    """Whether something was in front of the object, of shape (frames,)."""


def frames(number: int, seed: int, *, radius: float, noise: float, occluded: float, lost: str) -> Frames:
    """Simulated 32 × 32 frames of a round object, by which a square of 9 × 9 pixels passes.

    object = b·exp(−d²/(2·radius²)), b ~ Uniform(0.7, 1.3), its centre uniform at least 4 pixels from the edge; the
    square, of one brightness ~ Uniform(0, 1), hides what is behind it: its middle is uniform too, but at least 4 pixels
    from the object's centre; then noise·N(0, 1) in every pixel.
    label = centre + 0.3·N(0, 1), by a tracker. Of the frames in which the square is within 8 pixels, so that it is
    partly in front of the object, the tracker is lost in so many that they are the share `occluded` of all frames, on
    average. lost: "anywhere", its label is then uniform over the frame; "corner", 3 pixels from the top left.
    """
    if lost not in ("anywhere", "corner"):
        raise ValueError(f"frames: lost must be 'anywhere' or 'corner', got {lost!r}")
    rng = np.random.default_rng(seed)
    centre, square = rng.uniform(4, 27, (2, number, 2))
    while (close := np.linalg.norm(square - centre, axis=1) < 4).any():
        square[close] = rng.uniform(4, 27, (close.sum(), 2))
    touching = np.linalg.norm(square - centre, axis=1) < 8
    hidden = touching & (rng.random(number) < occluded / max(touching.mean(), 1 / number))
    pixels = np.arange(32)
    rows, columns = (np.square(pixels - centre[:, [axis]]) for axis in (0, 1))
    squares = rows[:, :, None] + columns[:, None, :]
    image = rng.uniform(0.7, 1.3, (number, 1, 1)) * np.exp(-squares / (2 * radius**2))
    over_rows, over_columns = (np.abs(pixels - square[:, [axis]]) < 4.5 for axis in (0, 1))
    covered = over_rows[:, :, None] & over_columns[:, None, :]
    image = np.where(covered, rng.uniform(0, 1, (number, 1, 1)), image) + noise * rng.normal(size=image.shape)
    wrong = rng.uniform(0, 31, (number, 2)) if lost == "anywhere" else np.full((number, 2), 3.0)
    label = np.where(hidden[:, None], wrong, centre + 0.3 * rng.normal(size=(number, 2)))
    return Frames(*(part.astype(np.float32) for part in (image[..., None], label, centre)), hidden)


class Walk(NamedTuple):
    """A random walk on states 1 … n that ends when it leaves on either side."""

    states: int
    discount: float
    fee: float
    """What a step costs …"""
    chance: float
    """… with this probability; mostly a step is free. Leaving on the right earns 1."""


def transitions(walk: Walk, rows: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Steps from states drawn uniformly, of shape (rows,) and (rows, 1): the state, the next one and whether the walk
    goes on there; and the reward, of shape (rows, 1). States are counted from 0 here."""
    rng = np.random.default_rng(seed)
    state = rng.integers(0, walk.states, rows)
    following = state + rng.choice((-1, 1), rows)
    reward = (following == walk.states) - walk.fee * (rng.random(rows) < walk.chance)
    goes_on = (following >= 0) & (following < walk.states)
    x = {
        "state": state.astype(np.int32),
        "next": following.clip(0, walk.states - 1).astype(np.int32),
        "goes_on": goes_on[:, None].astype(np.float32),
    }
    return x, reward[:, None].astype(np.float32)


def returns(walk: Walk, episodes: int, seed: int) -> np.ndarray:
    """Discounted sums of rewards of whole walks from each state, of shape (states, episodes)."""
    rng = np.random.default_rng(seed)
    state = np.repeat(np.arange(walk.states), episodes)
    total, factor, going = np.zeros(len(state)), 1.0, np.ones(len(state), bool)
    while going.any() and factor > 1e-6:
        state = state + rng.choice((-1, 1), len(state))
        reward = (state == walk.states) - walk.fee * (rng.random(len(state)) < walk.chance)
        total += np.where(going, factor * reward, 0)
        going &= (state >= 0) & (state < walk.states)
        factor *= walk.discount
    return total.reshape(walk.states, episodes)


def digits() -> np.ndarray:
    """1797 handwritten digits of 8 × 8 pixels in grey levels 0 to 16, of shape (1797, 64) (UCI, shipped with
    scikit-learn)."""
    return load_digits().data
