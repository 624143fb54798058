"""Parts of the demo: runs, seeds and refused inputs."""

import json
import math
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from pyro_iresnet.demo import checkerboard, density, eight_schools
from pyro_iresnet.demo.cli import app


@pytest.fixture(autouse=True)
def _single_precision(_fresh_state):
    torch.set_default_dtype(torch.float32)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def metrics(folder):
    results = json.loads((folder / "metrics.json").read_text())["results"]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in results]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("demo")
    return folder, run("--steps", 20, "--output", folder, "--seed", 3)


def test_runs_every_part(short):
    folder, result = short
    assert result.exit_code == 0, result.output
    for name in ("digits.png", "checkerboard.png", "eight_schools.png", "metrics.json"):
        assert (folder / name).stat().st_size > 1000
        assert f"wrote {folder / name}" in result.output
    rows = metrics(folder)
    models = [(row["data"], row["model"]) for row in rows]
    assert models == [
        ("digits", "normal distribution"),
        ("digits", "i-ResNet"),
        ("checkerboard", "entropy of the data"),
        ("checkerboard", "i-ResNet"),
        ("eight schools", "AutoNormal"),
        ("eight schools", "AutoMultivariateNormal"),
        ("eight schools", "AutoIResNet"),
    ]
    assert 95 < rows[0]["held_out_nats"] < 101
    numbers = [v for row in rows for v in row.values() if isinstance(v, float)]
    assert all(math.isfinite(v) for v in numbers)
    # The flow starts at the normal distribution.
    assert abs(rows[1]["held_out_nats"] - rows[0]["held_out_nats"]) < 1.5
    assert "ArviZ summary" in result.output
    assert "theta[7]" in result.output


@pytest.mark.slow
def test_follows_seed(short, tmp_path):
    folder, _ = short
    assert run("--steps", 20, "--output", tmp_path, "--seed", 3).exit_code == 0
    assert metrics(folder) == metrics(tmp_path)


def test_names_missing_extra(tmp_path):
    hide = "import sys; sys.modules['typer'] = None; import runpy; "
    code = hide + "runpy.run_module('pyro_iresnet.demo', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs the package typer" in result.stderr
    assert "pip install 'pyro-iresnet[demo]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_refuses_file_as_output(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("x")
    result = run("--steps", 1, "--output", taken)
    assert result.exit_code == 2
    assert "--output to be a folder" in result.output


def test_digits():
    train, test = density.digits()
    assert train.shape == (1500, 64)
    assert test.shape == (297, 64)
    assert int(train.to_numpy().max()) == 16


def test_squares_of_checkerboard():
    points = checkerboard.checkerboard(20_000)
    squares = torch.floor(points / 2)
    assert ((squares.sum(1) % 2) == 0).all()
    _, counts = torch.unique(squares, dim=0, return_counts=True)
    assert len(counts) == 8
    assert (counts - 2500).abs().max() < 250


def test_exact_posterior():
    log_evidence, draws = eight_schools.exact_posterior(20_000)
    n = 400_000
    mu, tau = 5 * torch.randn(n).double(), 5 * torch.randn(n).abs().double()
    tau = tau / torch.randn(n).abs()
    scale = (eight_schools.ERRORS.double()[:, None] ** 2 + tau**2).sqrt()
    likelihood = torch.distributions.Normal(mu, scale)
    log_weights = likelihood.log_prob(eight_schools.EFFECTS.double()[:, None]).sum(0)
    assert abs(torch.logsumexp(log_weights, 0).item() - math.log(n) - log_evidence) < 0.01
    weights = log_weights.softmax(0)
    assert abs((weights * tau.log()).sum() - draws["tau"].log().mean()) < 0.05
