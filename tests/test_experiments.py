"""Every experiment, run small: what it writes, and that what its docstring claims holds."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

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


def test_robust_line_breaks_convex_losses_first(tmp_path):
    code, result = run(tmp_path, "robust_line", "--rows", "200", "--steps", "4", "--repeats", "2")
    assert code == 0
    assert all(result["claims"].values())
    assert result["errors"]["mse"][-1] > 1 > 0.5 > result["errors"]["tukey"][-1]
    assert_complete(tmp_path / "robust_line", result)


@pytest.mark.slow
def test_solvers_agree_with_their_peers(tmp_path):
    words = ("--rows", "200", "400", "--columns", "3", "--compared", "2000", "--fits", "5", "--repeats", "1")
    code, result = run(tmp_path, "solvers", *words)
    assert code == 0
    assert {"least squares", "huber", "poisson", "quantile", "5 bootstrap fits"} <= set(result["compared"])
    assert max(abs(result["compared"][name]["excess"]) for name in ("least squares", "huber", "quantile")) < 1e-7
    assert_complete(tmp_path / "solvers", result)
