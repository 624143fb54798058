"""Parts of the demo: runs, seeds and refused inputs."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pyro_iresnet.demo import data, density, eight_schools
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
    folders = [tmp_path_factory.mktemp("demo") for _ in range(2)]
    outputs = [run("--steps", 20, "--output", folder, "--seed", 3) for folder in folders]
    return folders, outputs


def test_runs_every_part(short):
    (folder, _), (result, _) = short
    assert result.exit_code == 0, result.output
    for name in ("density_samples.png", "checkerboard.png", "eight_schools.png", "metrics.json"):
        assert (folder / name).stat().st_size > 1000
        assert f"wrote {folder / name}" in result.output
    rows = metrics(folder)
    models = [(row["data"], row["model"]) for row in rows]
    assert models == [
        ("digits", "Gaussian"),
        ("digits", "RealNVP"),
        ("digits", "i-ResNet"),
        ("checkerboard", "entropy of the data"),
        ("checkerboard", "i-ResNet"),
        ("eight schools", "AutoNormal"),
        ("eight schools", "AutoMultivariateNormal"),
        ("eight schools", "AutoIResNet"),
    ]
    assert 20 < rows[0]["held_out_nats"] < 23
    numbers = [v for row in rows for v in row.values() if isinstance(v, float)]
    assert all(math.isfinite(v) for v in numbers)
    sizes = [row["parameters"] for row in rows[1:3]]
    assert abs(sizes[0] / sizes[1] - 1) < 0.05
    assert "ArviZ summary" in result.output
    assert "theta[7]" in result.output


def test_follows_seed(short):
    folders, _ = short
    assert metrics(folders[0]) == metrics(folders[1])


def table_file(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def numbers(rows=40, columns=3, header=True):
    values = torch.randn(rows, columns).tolist()
    lines = [",".join(f"c{i}" for i in range(columns))] if header else []
    return "\n".join(lines + [",".join(map(str, row)) for row in values]) + "\n"


@pytest.mark.parametrize("header", [True, False])
def test_reads_table(tmp_path, header):
    table = data.load_table(table_file(tmp_path, numbers(header=header)))
    assert len(table.train) + len(table.test) == 40
    assert table.names == (("c0", "c1", "c2") if header else ("column 0", "column 1", "column 2"))
    z = table.encode(table.train)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(table.decode(z), table.train, atol=1e-5, rtol=1e-5)
    slopes = torch.func.vmap(torch.func.jacrev(table.encode))(table.train)
    torch.testing.assert_close(table.log_slope(z), torch.linalg.slogdet(slopes).logabsdet.float())


def test_reads_array(tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, torch.randn(40, 2).numpy())
    assert data.load_table(path).features == 2


def test_models_user_table(tmp_path):
    path = table_file(tmp_path, numbers(60, 2))
    result = run("--data", path, "--steps", 3, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert metrics(tmp_path / "out")[2]["data"] == "table"


def test_names_missing_extra(tmp_path):
    hide = "import sys; sys.modules['typer'] = None; import runpy; "
    code = hide + "runpy.run_module('pyro_iresnet.demo', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs the package typer" in result.stderr
    assert "pip install 'pyro-iresnet[demo]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_single_column(tmp_path):
    table = data.load_table(table_file(tmp_path, numbers(60, 1)))
    rows, files = density.run(table, 3, tmp_path)
    assert [row["model"] for row in rows] == ["Gaussian", "i-ResNet"]
    assert files[0].exists()


ROWS = "1,2\n3,5\n" * 10
REFUSED = {
    "nan": ("a,b\n" + "1,2\n" * 11 + "3,\n" + "4,5\n" * 3, r"in 1 of 15 rows.*: 12\. Drop or fill"),
    "nan_first": (",1\n" + "1,2\n" * 14, r"in 1 of 15 rows.*: 1\. Drop or fill"),
    "constant": ("a,flat\n" + "".join(f"{i},7\n" for i in range(20)), r"constant.*: flat\. Drop"),
    "text": ("a,b\n" + "".join(f"{i},x{i}\n" for i in range(20)), r"hold text: b\. Drop or encode"),
    "markup": ("a,[/b] x\n" + "".join(f"{i},x{i}\n" for i in range(20)), r"hold text: \[/b\] x\."),
    "mixed_first": ("x,1.0\n" + ROWS, r"all names or all numbers; got both, 'x'"),
    "longer_rows": ("a,b\n" + "1,2,3\n" * 20, "Expected a table of numbers"),
    "index": (",a\n" + "".join(f"{i},{i * i}\n" for i in range(20)), "index that pandas writes"),
    "huge": ("a,b\n" + "".join(f"{i},{i}e300\n" for i in range(20)), "Change their unit"),
    "short": ("a,b\n1,2\n3,4\n", "at least 12 rows"),
    "header_only": ("a,b\n", "got 0 rows and 2 columns"),
    "empty": ("", "Expected a table of numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_unusable_table(tmp_path, name):
    text, words = REFUSED[name]
    path = table_file(tmp_path, text)
    with pytest.raises(ValueError, match=words):
        data.load_table(path)
    result = run("--data", path, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "Error:" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_numeric_header(tmp_path):
    text = "0,1\n" + "".join(f"{i}.5,{-i}\n" for i in range(20))
    table = data.load_table(table_file(tmp_path, text, "UPPER.CSV"))
    assert table.names == ("0", "1")
    assert len(table.train) + len(table.test) == 20


def test_keeps_seconds_of_timestamps(tmp_path):
    text = "t\n" + "".join(f"{1_700_000_000 + i}\n" for i in range(60))
    table = data.load_table(table_file(tmp_path, text))
    z = table.encode(table.train)
    assert z.dtype == torch.float32
    assert len(z.unique()) == len(table.train)
    torch.testing.assert_close(table.decode(z), table.train, atol=1e-3, rtol=0)


def test_odd_column_names(tmp_path):
    header = "US$ a_{b$,p$%$\n"
    text = header + "".join(f"{a},{b}\n" for a, b in torch.randn(60, 2).tolist())
    table = data.load_table(table_file(tmp_path, text))
    assert density.run(table, 2, tmp_path)[1][0].exists()


def test_refuses_file_as_output(tmp_path):
    taken = table_file(tmp_path, "x", "taken")
    result = run("--steps", 1, "--output", taken)
    assert result.exit_code == 2
    assert "--output to be a folder" in result.output


def test_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match=r"a \.csv or \.npy file"):
        data.load_table(table_file(tmp_path, "1", "table.txt"))
    with pytest.raises(ValueError, match="there is none"):
        data.load_table(tmp_path / "absent.csv")
    for content in ("text", ""):
        with pytest.raises(ValueError, match=r"as numpy\.save writes it"):
            data.load_table(table_file(tmp_path, content, "text.npy"))
    np.save(tmp_path / "cube.npy", np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"2-D array.*\(2, 3, 4\)"):
        data.load_table(tmp_path / "cube.npy")


def test_digits():
    table = data.digits()
    assert table.train.shape == (1500, 64)
    assert table.test.shape == (297, 64)
    z = table.encode(table.train)
    assert torch.equal(table.decode(z), table.train)
    slopes = torch.func.vmap(torch.func.jacrev(lambda x: 0.5 * torch.logit(0.05 + 0.9 * x / 17)))(
        (torch.sigmoid(2 * z[:3]) - 0.05) / 0.9 * 17
    )
    torch.testing.assert_close(
        table.log_slope(z[:3]), torch.linalg.slogdet(slopes).logabsdet, atol=1e-3, rtol=1e-4
    )


def test_squares_of_checkerboard():
    points = data.checkerboard(20_000)
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
