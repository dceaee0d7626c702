"""Every experiment, run small: what it writes, and that what its docstring claims holds."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data, physics, sweeps
from experiments.__main__ import main, names
from jaxloss import mse, train

REPOSITORY = Path(__file__).parent.parent


def run(folder, name, *words):
    code = main([name, *words, "--out", str(folder / name)])
    result = json.loads((folder / name / "result.json").read_text())
    return code, result


def tiny(folder, name):
    """Run an experiment on the small sizes that it names for that."""
    words = []
    for setting, value in importlib.import_module(f"experiments.{name}").TINY.items():
        flag = setting.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
    return run(folder, name, *words)


def assert_complete(folder, result, *files):
    assert {path.name for path in folder.iterdir()} == {"config.json", "result.json", "figure.png", *files}
    assert (folder / "figure.png").stat().st_size > 5000
    environment = result["environment"]
    assert {"jax", "flax", "optax", "jaxloss"} <= set(environment["versions"])
    assert {"python", "device", "commit"} <= set(environment)
    assert "seed" in result


def test_linear_finds_the_line(tmp_path, capsys):
    code, result = run(tmp_path, "linear")
    assert code == 0
    assert abs(result["weight"] - 3) < 0.02
    assert abs(result["bias"] - 2) < 0.02
    assert abs(result["loss"] - 0.04) < 0.005
    for name in ("weight", "bias"):
        assert abs(result[name] - result["least_squares"][name]) < 0.005
    assert_complete(tmp_path / "linear", result, "metrics.jsonl", "checkpoints")
    assert "least squares" in capsys.readouterr().out


def test_mlp_beats_the_mean(tmp_path, capsys):
    code, result = tiny(tmp_path, "mlp")
    assert code == 0
    assert result["rmse"] < 0.85 * result["baselines"]["mean"]["rmse"]
    assert result["rmse"] < 1.2 * result["baselines"]["least_squares"]["rmse"]
    assert {"rmse", "mae"} == set(result["baselines"]["least_squares"])
    assert_complete(tmp_path / "mlp", result, "metrics.jsonl", "checkpoints")
    out = capsys.readouterr().out
    assert f"{result['rmse']:.4g}" in out, "the figures printed are the figures written"


def test_settings_reach_the_run(tmp_path):
    _, result = run(tmp_path, "linear", "--loss", "huber", "--optimizer", "adam", "--points", "50")
    config = json.loads((tmp_path / "linear" / "config.json").read_text())
    assert (config["loss"], config["optimizer"], config["points"]) == ("huber", "adam", 50)
    assert result["loss"] > 0


def test_overview_lists_each_experiment(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in names())


REFUSED = {
    "unknown experiment": (["liner"], "linear"),
    "unknown setting": (["linear", "--los", "mse"], "--loss"),
    "unknown loss": (["linear", "--loss", "hubr"], "huber"),
    "unknown optimizer": (["linear", "--optimizer", "sdg"], "sgd"),
    "not a number": (["linear", "--epochs", "many"], "--epochs"),
    "too few points": (["linear", "--points", "1"], "points"),
    "too few trips": (["units", "--rows", "5"], "--rows"),
    "too few people": (["multi_output", "--rows", "5"], "--rows"),
    "too many typos": (["outliers", "--typos", "9"], "typos"),
    "unknown in the gallery": (["gallery", "--only", "liner"], "linear"),
    "no data": (["nist", "--data", "nowhere"], "nowhere"),
    "no frames": (["coordinates", "--frames", "0"], "--frames"),
    "too many lost": (["coordinates", "--occluded", "0.9"], "--occluded"),
    "no code": (["autoencoder", "--code", "0"], "--code"),
    "no rate": (["autoencoder", "--rates", "0"], "--rates"),
    "no transitions": (["value", "--transitions", "0"], "--transitions"),
    "no epochs": (["value", "--epochs", "0"], "--epochs"),
    "unknown setting of value": (["value", "--epoch", "1"], "--epochs"),
    "no batch": (["mlp", "--batch-size", "0"], "batch_size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case, tmp_path):
    words, hint = REFUSED[case]
    with pytest.raises(SystemExit) as stop:
        main([*words, *(["--out", str(tmp_path / "run")] if len(words) > 1 else [])])
    message = stop.value.code
    assert isinstance(message, str)
    assert hint in message
    assert "\n" not in message


def test_run_folder_is_never_overwritten(tmp_path):
    (tmp_path / "linear").mkdir()
    (tmp_path / "linear" / "precious").touch()
    with pytest.raises(SystemExit, match="new folder"):
        run(tmp_path, "linear")


def test_runs_as_a_command_from_anywhere_in_the_checkout():
    command = [sys.executable, "-m", "experiments", "nothing"]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert told.stderr.count("\n") == 1


def test_losses_prints_the_table(tmp_path, capsys):
    _, result = run(tmp_path, "losses")
    assert len(result["losses"]) > 20
    assert "| `huber(delta=1)` |" in capsys.readouterr().out
    assert_complete(tmp_path / "losses", result, "losses.md")


def test_kernels_runs_small(tmp_path):
    """Its claims are about a quiet machine and are not asserted here, only that every part runs."""
    _, result = tiny(tmp_path, "kernels")
    assert {entry["loss"] for entry in result["ratios"]} == {"mse", "barron"}
    assert_complete(tmp_path / "kernels", result)


@pytest.mark.slow
def test_accuracy_keeps_its_bars_and_shows_the_others(tmp_path, capsys):
    _, result = tiny(tmp_path, "accuracy")
    assert result["claims"] == {"log_cosh keeps the bars": True, "smape keeps the bars": True}
    assert {"slope", "optax slope"} <= set(result["worst"]["log_cosh"])
    printed = capsys.readouterr().out
    assert all(head in printed for head in ("jaxloss", "optax", "torch", "metrics", "sklearn", "scipy", "models"))
    assert_complete(tmp_path / "accuracy", result)


@pytest.mark.slow
def test_first_calls_are_told(tmp_path):
    """Times are not asserted, only that every part of a row is there."""
    _, result = tiny(tmp_path, "first")
    assert set(result["calls"]) == {"huber"}
    assert {"first", "next", "other", "cached", "yardstick"} <= set(result["calls"]["huber"])
    assert_complete(tmp_path / "first", result)


@pytest.mark.slow
def test_speed_runs_small(tmp_path):
    """Its claims are about a quiet machine and are not asserted here, only that every part runs."""
    _, result = tiny(tmp_path, "speed")
    assert result["mlp_over_bound"] > 0
    assert result["seconds_per_loop"]["linear: jaxloss"] > 0
    assert_complete(tmp_path / "speed", result)


def test_nist_finds_the_digits(tmp_path, capsys):
    """On problems made up in the layout of NIST's, whose own are not shipped."""
    x = [[0.5 * number] for number in range(8)]
    y = [3 * math.exp(-0.5 * row[0]) / (1 + 0.25 * row[0]) for row in x]
    problem = {"x": x, "y": y, "start1": [0.1, 0.1, 0.1], "start2": [0.4, 0.3, 0.1], "coef": [0.5, 1 / 3, 0.25 / 3]}
    problem |= {"df_resid": 5, "se": [1.0, 1.0, 1.0], "resid_sd": 1.0}
    (tmp_path / "certified.json").write_text(json.dumps({"linear": {}, "nonlinear": {"Chwirut2": problem}}))
    _, result = run(tmp_path, "nist", "--data", str(tmp_path))
    assert set(result["nonlinear"]) == {"Chwirut2 1", "Chwirut2 2"}
    assert result["claims"]["8 digits of every parameter from both starts"]
    assert not result["claims"]["6 digits of the residual's sd"], (
        "a fit without errors has a residual sd of 0, not of 1"
    )
    assert "curve_fit" in capsys.readouterr().out
    assert_complete(tmp_path / "nist", result)


@pytest.mark.slow
def test_bench_stats_runs_small(tmp_path):
    """Whether the bars are kept is for a run of the size it is about."""
    code, result = tiny(tmp_path, "bench_stats")
    assert code == (0 if all(result["claims"].values()) else 1)
    assert len(result["claims"]) == 2
    assert set(result["shares"]) == set(result["seconds_per_pass"])
    assert min(result["seconds_per_pass"].values()) > 0
    assert_complete(tmp_path / "bench_stats", result)


@pytest.mark.slow
def test_devices_resuming_and_profiling(tmp_path):
    def run(*words):
        words = [sys.executable, "-m", "experiments", "mlp", "--out", str(tmp_path / "run"), *words]
        return subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, timeout=300)

    first = run("--epochs", "3", "--devices", "4", "--profile")
    assert first.returncode == 0, first.stderr
    assert list((tmp_path / "run").rglob("*.trace.json.gz"))
    again = run("--epochs", "5")
    assert again.returncode == 1
    assert "--resume" in again.stderr
    resumed = run("--epochs", "5", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    other = run("--epochs", "5", "--resume", "--batch-size", "16")
    assert "batch_size: 32 in the checkpoint, 16 now" in other.stderr
    for words in (["--devices", "0"], ["--devices", "many"], ["--distributed", "here"]):
        refused = run(*words)
        assert refused.returncode == 1
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr


def test_gallery_tells_all_and_goes_on(tmp_path, capsys):
    words = ("--tiny", "--only", "linear", "losses")
    code, result = run(tmp_path, "gallery", *words)
    assert code == 0
    page = (tmp_path / "gallery" / "RESULTS.md").read_text()
    assert "## linear" in page
    assert "y = 3x + 2 + noise" in page
    assert (tmp_path / "gallery" / "figures" / "losses.png").exists()
    first = (tmp_path / "gallery" / "linear" / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    run(tmp_path, "gallery", *words, "--resume")
    assert "linear …" not in capsys.readouterr().out
    assert (tmp_path / "gallery" / "linear" / "result.json").stat().st_mtime_ns == first
    assert result["claims"] == {}


# What each experiment shows beyond the claims that it asserts itself.


def noise(result):
    assert set(result["growing"]) == {"mse", "nll", "β-NLL", "CRPS", "quantiles"}


def units(result):
    assert len(result["claims"]) == 10
    metres, kilometres = result["values"]["mse"]
    assert metres == pytest.approx(1e6 * kilometres, rel=1e-4)
    assert result["descent"]["standard"]["metres"] < 100


def multi_output(result):
    assert len(result["claims"]) == 10
    assert result["shares"]["raw"]["loss"] > 0.99999
    assert all(len(fit["test"]["rmse"]) == 2 for fit in result["fits"].values())


def calibrate(result):
    """On few samples: what they show of rates is left to the whole run, and to the slow tests of diagnose."""
    faults = {entry["kind"]: entry[entry["fault"]] for entry in result["rates"] if entry["fault"]}
    assert set(faults.values()) == {1.0}


def outliers(result):
    assert result["off"]["mse"][0] > 0.2
    assert max(result["off"][name][0] for name in ("huber", "tukey")) < 0.02
    found = result["each"][0]["found"]
    assert found["outliers"]
    assert found["named"] == found["typos"]
    assert len(found["typos"]) == 8


def robust_line(result):
    assert result["errors"]["mse"][-1] > 1 > 0.5 > result["errors"]["tukey"][-1]


def solvers(result):
    compared = result["compared"]
    assert {"least squares", "huber", "poisson", "5 bootstrap fits"} <= set(compared)
    assert max(abs(compared[name]["excess"]) for name in ("least squares", "huber")) < 1e-7
    if "median" in compared:  # where statsmodels is installed, which stops earlier than we do
        assert -1e-10 < compared["median"]["excess"] < 1e-3


def price(result):
    for market in result["markets"].values():
        error = {way: one["relative"][0] for way, one in market.items()}
        assert error["log mse"] < error["gamma"] < error["mse"]
        assert market["log mse"]["mae"][0] < market["mse"]["mae"][0]
        assert market["log mse"]["total"][0] < -10 < -5 < market["log·smearing"]["total"][0]


def of_physics(result):
    for plate in result["plates"].values():
        assert abs(plate["mse"]["validation"][0] - 1) < 0.02
        assert plate["line"]["validation"][0] > 1.4
        assert plate["mse"]["off"] > 0.5
        assert f"{plate['mse']['validation'][0]:.3f}" in result["verdict"]


def signal(result):
    for name in ("upwards", "second"):
        gain = {way: one["gain"][0] for way, one in result["settings"][name].items()}
        least = min(gain[way] for way in ("huber", "log_cosh", "mae")) - gain["mse"]
        assert least > 2
        assert f"{least:.1f}" in result["verdict"]


def coordinates(result):
    means, other = result["means"]["tuned"], result["each"]["other"]
    assert result["best"] != "mse"
    assert means["mse"] > 2 * means[result["best"]]
    assert all(robust < squared for robust, squared in zip(other["tukey"]["pixels"], other["mse"]["pixels"]))
    assert "With 10 % bad labels" in result["answer"]


def autoencoder(result):
    documented = importlib.import_module("experiments.autoencoder").__doc__
    for metric, name in result["winners"].items():
        assert any(line.strip().startswith(metric) and line.endswith(name) for line in documented.splitlines())
        sizes = {loss: abs(sum(values)) for loss, values in result["scores"][metric].items()}
        assert min(sizes, key=sizes.get) == name
    assert result["answer"].startswith("No loss wins every metric")


def of_value(result):
    assert len(result["claims"]) == 6
    for found in result["each"].values():
        assert max(found["mse"]["rmsve"]) < 0.02
        assert max(found["quantile_huber, δ = 0.001"]["quantiles"]) < 0.05
        assert min(found["quantile_huber, δ = 1"]["quantiles"]) > 0.1


SHOWN = [noise, units, multi_output, calibrate, outliers, robust_line, solvers, price, of_physics, signal, coordinates]
SHOWN += [autoencoder, of_value]
PRINTED = {"outliers": "dominated by outliers"}


@pytest.mark.slow
@pytest.mark.parametrize("check", SHOWN, ids=lambda check: check.__name__.removeprefix("of_"))
def test_what_an_experiment_claims_holds(check, tmp_path, capsys):
    """On fewer rows and shorter training, which the claims survive."""
    name = check.__name__.removeprefix("of_")
    code, result = tiny(tmp_path, name)
    assert result["claims"]
    assert [claim for claim, holds in result["claims"].items() if not holds] == []
    assert code == 0
    check(result)
    assert result.get("verdict", result.get("answer", PRINTED.get(name, ""))) in capsys.readouterr().out
    assert_complete(tmp_path / name, result)


TOO_LITTLE = {
    "price --rows 0": "--rows 0: must be at least 100",
    "price --rows 99": "--rows 99: must be at least 100",
    "price --dollar-rates 1 0": r"--dollar-rates \(1.0, 0.0\): must be positive",
    "physics --epochs 0": "--epochs 0: must be positive",
    "physics --hidden 0": "--hidden 0: must be positive",
    "physics --rows 199": "--rows 199: must be at least 200",  # of which a batch is
    "signal --waves 0": "--waves 0: must be at least 2",
    "solvers --rows 1000 10": r"--rows \(1000, 10\): must be at least 100",
} | {f"{name} --seeds 1": "--seeds 1: must be at least 2" for name in ("price", "physics", "signal", "autoencoder")}


@pytest.mark.parametrize("words", TOO_LITTLE)
def test_too_little_is_one_line(words, tmp_path):
    name, *rest = words.split()
    with pytest.raises(SystemExit, match=rf"^{name}: {TOO_LITTLE[words]}$"):
        main([name, *rest, "--out", str(tmp_path / "run")])


def test_radiometer_follows_the_law():
    plate = data.Radiometer(plate=(300, 500), surroundings=(270, 320), emissivity=0.5, noise=7)
    assert plate.flux(np.array([[500.0, 300.0]])).item() == pytest.approx(0.5 * 5.670374e-8 * (6.25e10 - 8.1e9))
    x, y = plate.measure(20_000, seed=0)
    assert (y - plate.flux(x)).std() == pytest.approx(7, rel=0.03)
    assert x.min(0).round() == pytest.approx([300, 270])
    assert x.max(0).round() == pytest.approx([500, 320])


@pytest.mark.parametrize("noise", ["lognormal", "gamma"])
def test_sales_have_the_mean_and_median_that_are_told(noise):
    market = data.Market(worth=1e5, area=1.0, distance=0.1, noise=noise, spread=0.5)
    sales = market.sell(40_000, seed=0)
    assert (sales.price / sales.mean).mean() == pytest.approx(1, abs=0.01)
    assert (sales.price < sales.median).mean() == pytest.approx(0.5, abs=0.01)
    spread = np.log(sales.price / sales.mean).std() if noise == "lognormal" else (sales.price / sales.mean).std()
    assert spread == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(("signs", "mean"), [((1,), 1), ((-1, 1), 0)])
def test_recordings_differ_by_noise_and_impulses(signs, mean):
    waves = data.Recorder(periods=(20, 40), noise=0.1, share=0.1, size=2.0, signs=signs).record(200, 200, seed=0)
    errors = [recording - waves.clean for recording in (waves.first, waves.second)]
    for error in errors:
        hit = np.abs(error) > 1
        assert hit.mean() == pytest.approx(0.1, rel=0.05)
        assert error[hit].mean() == pytest.approx(4 * mean, abs=0.2)
        assert error[~hit].std() == pytest.approx(0.1, rel=0.02)
    assert abs(np.corrcoef(errors[0].ravel(), errors[1].ravel())[0, 1]) < 0.02


def test_autocorrelation_is_that_of_statsmodels():
    tools = pytest.importorskip("statsmodels.tsa.stattools")
    residual = np.random.default_rng(0).normal(size=300).cumsum()
    np.testing.assert_allclose(physics.autocorrelation(residual), tools.acf(residual, nlags=10)[1:], 1e-9)


def test_estimate():
    estimate = sweeps.Estimate.of([1.0, 2.0, 3.0, 4.0])
    assert estimate.mean == 2.5
    assert estimate.error == pytest.approx(np.sqrt(5 / 3) / 2)
    assert str(estimate) == "2.5±0.6"
    assert str(sweeps.Estimate(12345.6, 78.0)) == "12,346±78"
    assert str(sweeps.Estimate(100.392, 0.0961)) == "100.4±0.1"
    assert str(sweeps.Estimate(1.0, 0.0)) == "1"
    assert estimate.beyond_chance
    assert not sweeps.Estimate(1.0, 0.6).beyond_chance
    one = sweeps.Estimate.of([2.5])
    assert math.isnan(one.error)
    assert str(one) == "2.5"
    assert not one.beyond_chance


@pytest.mark.slow
def test_fit_seeds_takes_the_rate_of_the_lowest_validation_loss():
    """And trains each seed as `fit` would, on its own rows."""
    x, y = data.noisy_line(60, 0.1, seed=0)
    rows = np.arange(60).reshape(2, 30)
    starts = [{"slope": jnp.float32(seed), "intercept": jnp.float32(0)} for seed in range(2)]

    def line(params, x):
        return params["slope"] * x + params["intercept"]

    shared = {"loss": mse, "epochs": 10, "batch_size": 20}
    found = sweeps.fit_seeds(line, starts, (x, y), (rows[:, :20], rows[:, 20:]), rates=(1e-4, 0.2), **shared)
    assert found.rate == pytest.approx(0.2)
    assert found.validation.shape == (2, 2)
    assert (found.validation[1] < found.validation[0]).all()
    for seed in range(2):
        learned, held_out = ((x[part], y[part]) for part in np.split(rows[seed], [20]))
        optimizer = optax.adam(optax.cosine_decay_schedule(0.2, 10))
        alone = train.fit(line, starts[seed], learned, validation=held_out, optimizer=optimizer, seed=seed, **shared)
        for name, value in alone.params.items():
            assert float(found.params[name][seed]) == pytest.approx(float(value), rel=1e-3)


def test_value_knows_the_truth():
    """The closed form against the linear equations, and both truths against whole walks."""
    from experiments import data, value

    walk = data.Walk(states=4, discount=0.8, fee=0.5, chance=0.2)
    step = 0.5 * (np.eye(4, k=1) + np.eye(4, k=-1))
    reward = np.array([0, 0, 0, 0.5]) - 0.1
    found = value.values(walk)
    np.testing.assert_allclose(found, np.linalg.solve(np.eye(4) - 0.8 * step, reward), rtol=1e-12)
    drawn, levels = data.returns(walk, 20_000, 0), value.midpoints(50)
    assert np.abs(drawn.mean(1) - found).max() < 0.02
    exact = value.exact_quantiles(walk, levels)
    observed = np.quantile(drawn, levels, axis=1, method="inverted_cdf").T
    assert np.abs(exact - observed).mean() < 0.01
    assert np.abs(value.exact_quantiles(walk, value.midpoints(2000)).mean(1) - found).max() < 0.005
