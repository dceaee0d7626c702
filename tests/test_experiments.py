"""Every experiment, run small: what it writes, and that what its docstring claims holds."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.__main__ import main, names

REPOSITORY = Path(__file__).parent.parent


def run(folder, name, *words):
    code = main([name, *words, "--out", str(folder / name)])
    result = json.loads((folder / name / "result.json").read_text())
    return code, result


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
    assert_complete(tmp_path / "linear", result, "metrics.jsonl")
    assert "least squares" in capsys.readouterr().out


def test_mlp_beats_the_mean(tmp_path, capsys):
    code, result = run(tmp_path, "mlp", "--epochs", "60")
    assert code == 0
    assert result["rmse"] < 0.85 * result["baselines"]["mean"]["rmse"]
    assert result["rmse"] < 1.2 * result["baselines"]["least_squares"]["rmse"]
    assert {"rmse", "mae"} == set(result["baselines"]["least_squares"])
    assert_complete(tmp_path / "mlp", result, "metrics.jsonl")
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
    "no frames": (["coordinates", "--frames", "0"], "--frames"),
    "too many lost": (["coordinates", "--occluded", "0.9"], "--occluded"),
    "no code": (["autoencoder", "--code", "0"], "--code"),
    "no rate": (["autoencoder", "--rates", "0"], "--rates"),
    "no transitions": (["value", "--transitions", "0"], "--transitions"),
    "no epochs": (["value", "--epochs", "0"], "--epochs"),
    "unknown setting of value": (["value", "--epoch", "1"], "--epochs"),
    "batch too large": (["mlp", "--batch-size", "100000"], "batch_size"),
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
    words = ("--losses", "mse,barron", "--exponents", "8", "--rounds", "2", "--no-torch")
    _, result = run(tmp_path, "kernels", *words)
    assert {entry["loss"] for entry in result["ratios"]} == {"mse", "barron"}
    assert_complete(tmp_path / "kernels", result)


def test_accuracy_keeps_its_bars_and_shows_the_others(tmp_path, capsys):
    _, result = run(tmp_path, "accuracy", "--losses", "log_cosh,smape")
    assert result["claims"] == {"log_cosh keeps the bars": True, "smape keeps the bars": True}
    worst = result["worst"]
    assert worst["log_cosh"]["optax slope"] > 0.1, "all digits lost"
    if importlib.util.find_spec("torchmetrics"):
        assert worst["log_cosh"]["torchmetrics value"] == float("inf")
        assert worst["smape"]["torchmetrics value"] < 1e-6
    printed = capsys.readouterr().out
    assert all(head in printed for head in ("jaxloss", "optax", "torch", "metrics", "sklearn"))
    assert_complete(tmp_path / "accuracy", result)


def test_speed_runs_small(tmp_path):
    """Its claims are about a quiet machine and are not asserted here, only that every part runs."""
    _, result = run(tmp_path, "speed", "--repeats", "1", "--no-compiled", "--mlp-steps", "40")
    assert result["mlp_over_bound"] > 0
    assert result["seconds_per_loop"]["linear: jaxloss"] > 0
    assert_complete(tmp_path / "speed", result)


@pytest.mark.slow
def test_noise_compares_distributions(tmp_path):
    """On fewer rows and shorter training, which the claims survive."""
    words = ("--rows", "400", "--hidden", "16", "--epochs", "40", "--learning-rate", "0.01")
    code, result = run(tmp_path, "noise", *words)
    assert code == 0
    assert result["claims"]
    assert all(result["claims"].values())
    assert set(result["growing"]) == {"mse", "nll", "β-NLL", "CRPS", "quantiles"}
    assert_complete(tmp_path / "noise", result)


def test_units(tmp_path):
    code, result = run(tmp_path, "units", "--rows", "200", "--steps", "1300", "--network-steps", "200", "--hidden", "8")
    assert code == 0
    assert len(result["claims"]) == 10
    assert all(result["claims"].values())
    metres, kilometres = result["values"]["mse"]
    assert metres == pytest.approx(1e6 * kilometres, rel=1e-4)
    assert result["descent"]["standard"]["metres"] < 100
    assert_complete(tmp_path / "units", result)


@pytest.mark.slow
def test_multi_output(tmp_path):
    """On a third of the rows and half of the steps, which the claims survive."""
    code, result = run(tmp_path, "multi_output", "--rows", "350", "--steps", "250", "--hidden", "16")
    assert code == 0
    assert len(result["claims"]) == 10
    assert all(result["claims"].values())
    assert result["shares"]["raw"]["loss"] > 0.99999
    for fit in result["fits"].values():
        assert len(fit["test"]["rmse"]) == 2
    assert_complete(tmp_path / "multi_output", result)


def test_calibrate_on_few_samples(tmp_path):
    """Few samples: what they show of rates is left to the whole run, and to the slow tests of diagnose."""
    code, result = run(tmp_path, "calibrate", "--sizes", "2000", "--repeats", "50")
    assert code == 0
    assert all(result["claims"].values())
    faults = {entry["kind"]: entry[entry["fault"]] for entry in result["rates"] if entry["fault"]}
    assert set(faults.values()) == {1.0}
    assert_complete(tmp_path / "calibrate", result)


def test_outliers_spoil_squared_error_alone(tmp_path, capsys):
    """On one data set, where the claims hold as they do over ten."""
    code, result = run(tmp_path, "outliers", "--seeds", "1", "--rates", "0.1", "--epochs", "800")
    assert code == 0
    assert result["off"]["mse"][0] > 0.2
    assert max(result["off"][name][0] for name in ("huber", "tukey")) < 0.02
    found = result["each"][0]["found"]
    assert found["outliers"]
    assert found["named"] == found["typos"]
    assert len(found["typos"]) == 8
    assert_complete(tmp_path / "outliers", result)
    assert "dominated by outliers" in capsys.readouterr().out


def tiny(name):
    """The words that give an experiment its tiny settings."""
    settings = importlib.import_module(f"experiments.{name}").TINY
    for setting, value in settings.items():
        yield f"--{setting.replace('_', '-')}"
        yield from map(str, value if isinstance(value, tuple) else [value])


@pytest.mark.slow
def test_coordinates_survive_bad_labels_by_a_robust_loss(tmp_path, capsys):
    code, result = run(tmp_path, "coordinates", *tiny("coordinates"))
    assert code == 0
    means = result["means"]["tuned"]
    assert means["mse"] > 2 * means[result["best"]]
    assert result["best"] != "mse"
    other = result["each"]["other"]
    assert all(robust < squared for robust, squared in zip(other["tukey"]["pixels"], other["mse"]["pixels"]))
    assert "With 10 % bad labels" in result["answer"]
    assert result["answer"] in capsys.readouterr().out
    assert_complete(tmp_path / "coordinates", result)


@pytest.mark.slow
def test_autoencoder_no_loss_wins_every_metric(tmp_path, capsys):
    code, result = run(tmp_path, "autoencoder", *tiny("autoencoder"))
    assert code == 0
    documented = importlib.import_module("experiments.autoencoder").__doc__
    for metric, name in result["winners"].items():
        assert any(line.strip().startswith(metric) and line.endswith(name) for line in documented.splitlines())
        sizes = {loss: abs(sum(values)) for loss, values in result["scores"][metric].items()}
        assert min(sizes, key=sizes.get) == name
    assert result["answer"].startswith("No loss wins every metric")
    assert result["answer"] in capsys.readouterr().out
    assert_complete(tmp_path / "autoencoder", result)


@pytest.mark.slow
def test_value_finds_the_values_and_the_quantiles(tmp_path, capsys):
    code, result = run(tmp_path, "value", *tiny("value"))
    assert code == 0
    assert len(result["claims"]) == 6
    for found in result["each"].values():
        assert max(found["mse"]["rmsve"]) < 0.02
        assert max(found["quantile_huber, δ = 0.001"]["quantiles"]) < 0.05
        assert min(found["quantile_huber, δ = 1"]["quantiles"]) > 0.1
    assert result["answer"] in capsys.readouterr().out
    assert_complete(tmp_path / "value", result)


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
