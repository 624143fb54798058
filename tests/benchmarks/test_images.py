"""The scripts of the report's tables on images, reduced: the small digits, few seconds."""

import json
import math

import numpy as np
import pytest
import torch
import typer
import typer.testing

pytest.importorskip("normflows", reason="needs the extra bench")
pytest.importorskip("zuko", reason="needs the extra bench")

from benchmarks.models.images import Batches, shifted
from benchmarks.peers.image_flows import BUDGET, makers, size_of
from benchmarks.run import image_step, images
from benchmarks.targets.images import load
from pyro_iresnet.errors import ArgumentError

from . import reduced


def run(folder, *options):
    command = [options[0], "--out", str(folder), "--no-progress", *options[1:]]
    result = typer.testing.CliRunner().invoke(images.app, command)
    assert result.exit_code == 0, result.output
    return json.loads((folder / "figures.json").read_text())


@pytest.mark.slow
def test_density(tmp_path):
    options = ["density", "--minutes", "0.1", "--series", "50", "--exact", "10"]
    found = run(tmp_path, *options)
    # Two estimates for the same images, with other noise of pixels.
    for name in ("series", "exact"):
        assert abs(found[name][0] - found[f"{name}_drawn"][0]) < 0.02
    assert 0.1 <= found["minutes"] < 0.2
    assert (tmp_path / "samples.png").stat().st_size > 5_000
    # A second sitting goes on, and adds nothing to a run that has had its time.
    again = run(tmp_path, *options)
    assert again["steps"] == found["steps"]
    assert again["bits"] == found["bits"]


@pytest.mark.slow
@pytest.mark.parametrize("lipschitz", [0.9, 0.5])
def test_classifier(tmp_path, lipschitz):
    found = run(tmp_path, "classify", "--minutes", "0.1", "--lipschitz", str(lipschitz))
    # Guesses err in 90 percent.
    assert found["error"] < 40
    assert all(bound <= lipschitz * (1 + 1e-6) for bound in found["proven"])
    assert len(found["proven"]) == 3
    assert found["largest_norm"] <= found["error_bound"] < 1e-4


def page(log, *folders):
    command = ["page", *map(str, folders), "--log", str(log)]
    result = typer.testing.CliRunner().invoke(images.app, command)
    assert result.exit_code == 0, result.output
    return result


def test_page(tmp_path):
    common = {"data": "digits", "minutes": 1.02, "parameters": 1000, "steps": 2000, "machine": "m"}
    common |= {"rate": 3e-3, "activation": "ELU", "held_out": 0, "device": "cpu", "threads": 1}
    common["commit"] = "commit 123"
    runs = [
        {"task": "density", "flow": "Glow", "bits": [1.5, 0.01]},
        {"task": "density", "flow": "i-ResNet", "bits": [1.25, 0.01], "exact": [1.26, 0.02]}
        | {"exact_drawn": [1.27, 0.03]},
        {
            **{"task": "classify", "lipschitz": 0.9, "error": 0.5, "proven": [0.9, 0.8]},
            **{"largest_entry": 1e-9, "largest_norm": 2e-9, "error_bound": 3e-8},
        },
        {
            **{"task": "classify", "lipschitz": 0, "error": 0.4, "proven": []},
            **{"largest_entry": 1e30, "largest_norm": math.nan, "error_bound": math.inf},
        },
    ]
    for i, run_ in enumerate(runs):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "figures.json").write_text(json.dumps({**common, **run_}))
    result = page(tmp_path / "log", *(tmp_path / str(i) for i in range(4)))
    assert "## digits: density, 1 minutes of one thread a row, m" in result.output
    assert "Trained at commit 123, on m." in result.output
    rows = [[c.strip() for c in row] for row in reduced.cells(result.output)]
    flows = [row for row in rows if row[0] in ("Glow", "i-ResNet")]
    assert flows == [
        ["i-ResNet", "1.250 +- 0.010", "", "1.260 +- 0.020 (1.270)", "0.003", "1,000", "2,000"],
        ["Glow", "1.500 +- 0.010", "", "", "0.003", "1,000", "2,000"],
    ]
    nets = [row[:8] for row in rows if row[0] in ("none", "0.9")]
    assert nets == [
        ["none", "0.40", "none", "1.0e+30", "nan", "inf", "ELU", "0.003"],
        ["0.9", "0.50", "0.9000", "1.0e-09", "2.0e-09", "3.0e-08", "ELU", "0.003"],
    ]
    assert "(images_digits_samples_1_minutes_one_thread_m.png)" in result.output
    assert "(images_digits_rebuilt_1_minutes_one_thread_m.png)" in result.output


GLOW = {"task": "density", "flow": "Glow", "data": "digits", "held_out": 0, "rate": 1e-3}
GLOW |= {"bits": [1.5, 0.1], "parameters": 1, "steps": 2, "machine": "m", "commit": "c"}
GLOW |= {"minutes": 15.02, "device": "cpu", "threads": 1}


def finished(folder, **figures):
    folder.mkdir()
    (folder / "figures.json").write_text(json.dumps({**GLOW, **figures}))
    return folder


def test_page_compares_runs_of_one_time(tmp_path):
    others = {"threads": 2}, {"device": "cuda"}, {"minutes": 80.0}, {"machine": "n, 2 cores"}
    same = {"minutes": 15.4, "flow": "NICE"}
    folders = [finished(tmp_path / str(i), **o) for i, o in enumerate([{}, same, *others])]
    tables = page(tmp_path / "log", *folders).output.split("## ")[1:]
    assert [t.splitlines()[0] for t in tables] == [
        "digits: density, 15 minutes of 2 threads a row, m",
        "digits: density, 15 minutes of a CUDA device a row, m",
        "digits: density, 15 minutes of one thread a row, m",
        "digits: density, 15 minutes of one thread a row, n",
        "digits: density, 80 minutes of one thread a row, m",
    ]
    assert [t.count("| Glow") for t in tables] == [1, 1, 1, 1, 1]
    assert [t.count("| NICE") for t in tables] == [0, 0, 1, 0, 0]
    assert "png" not in "".join(tables)


def test_page_keeps_its_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.harness.report.RESULTS", tmp_path)
    log = tmp_path / "log"
    first = finished(tmp_path / "a", flow="i-ResNet")
    (first / "samples.png").write_bytes(b"a picture")
    page(log, first, finished(tmp_path / "b"), "--write")
    written = (tmp_path / "images.md").read_text()
    assert (tmp_path / "images_digits_samples_15_minutes_one_thread_m.png").exists()
    # Without folders the page is the same.
    page(log, "--write")
    assert (tmp_path / "images.md").read_text() == written
    # A new run of a line takes the place of the old one.
    page(log, finished(tmp_path / "c", bits=[1.25, 0.1]), "--write")
    assert [json.loads(line)["bits"][0] for line in log.read_text().splitlines()] == [1.5, 1.25]


@pytest.mark.slow
def test_network_without_bounds(tmp_path):
    found = run(tmp_path, "classify", "--minutes", "0.1", "--lipschitz", "0", "--activation", "ELU")
    assert found["proven"] == []
    assert found["activation"] == "ELU"
    assert found["error_bound"] == math.inf


@pytest.mark.parametrize(("task", "argument"), [("density", "flow"), ("classify", "activation")])
def test_unknown_name(tmp_path, task, argument):
    command = [task, "--out", str(tmp_path), f"--{argument}", "Glov"]
    result = typer.testing.CliRunner().invoke(images.app, command)
    assert result.exit_code == 2
    assert f"{argument} is one of" in result.output
    assert "Glov" in result.output


def test_checkpoint_goes_on_under_its_own_settings(tmp_path):
    settings = {"rate": 1e-3, "seed": 2}
    first = images.begun(tmp_path, settings)
    assert first["commit"]
    assert images.begun(tmp_path, settings) == first
    with pytest.raises(typer.BadParameter, match=r"rate=0.001, now 0.01\. Take another folder"):
        images.begun(tmp_path, settings | {"rate": 1e-2})
    (tmp_path / "settings.json").rename(tmp_path / "last.ckpt")
    with pytest.raises(typer.BadParameter, match="without settings"):
        images.begun(tmp_path, settings)


@pytest.mark.parametrize("name", ["MADE", "MAF"])
def test_masks_join_pixels(name):
    # Masks of fewer units than pixels may join the units to the first pixels alone.
    torch.manual_seed(0)
    flow = makers()[name]((1, 28, 28), 256, 1e-4)
    pixels = torch.randint(256, (64, 1, 28, 28))
    flow.log_prob(pixels)
    x = (pixels[:1] + 0.5).to(torch.get_default_dtype())
    jacobian = torch.func.jacrev(lambda x: flow.transform(x)[0])(x).reshape(784, 784)
    influence = (jacobian - jacobian.diagonal().diag()) != 0
    assert influence.any(0).sum() > 0.8 * 784


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", makers())
def test_size_of_flows(name, shape):
    assert abs(size_of(makers()[name](shape, 256, 1e-4)) / BUDGET - 1) < 0.1


def test_page_refuses_held_out_images(tmp_path):
    command = ["page", str(finished(tmp_path / "a", held_out=100))]
    result = typer.testing.CliRunner().invoke(images.app, command)
    assert result.exit_code == 2
    assert "held out" in result.output


@pytest.mark.parametrize("name", makers())
def test_peers(name):
    flow = makers()[name]((1, 8, 8), 17, 1e-3)
    pixels = torch.randint(17, (20, 1, 8, 8))
    flow.log_prob(pixels).mean().backward()
    assert abs(size_of(flow) / BUDGET - 1) < 0.1
    flow.eval()
    with torch.no_grad():
        codes = flow.encode(pixels)
        assert (flow.decode(codes) == pixels).double().mean() > 0.98
    assert codes.shape == (20, 64)


def test_shifts():
    x = torch.arange(2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    moved = shifted(x, 2, mirrored=False)
    assert moved.shape == x.shape
    torch.manual_seed(0)
    rows, columns = torch.randint(5, (2, 2))
    torch.manual_seed(0)
    wide = torch.nn.functional.pad(x, 4 * (2,))
    expected = [
        wide[i, :, r : r + 5, c : c + 5] for i, (r, c) in enumerate(zip(rows, columns, strict=True))
    ]
    assert (shifted(x, 2, mirrored=False) == torch.stack(expected)).all()
    mirrored = torch.stack([shifted(x, 0, mirrored=True) for _ in range(20)])
    assert {bool((m[0] == x[0]).all()) for m in mirrored} == {True, False}
    assert all((m[0] == x[0]).all() or (m[0] == x[0].flip(-1)).all() for m in mirrored)


def test_batches():
    x, y = torch.arange(10), torch.arange(10)
    a, b = next(iter(Batches(x, y, size=4)))
    assert (a == b).all()
    assert len(a) == 4
    assert (next(iter(Batches(x, size=4, change=lambda v: v + 100))) >= 100).all()


def test_files(tmp_path):
    x, y = np.zeros((3, 8, 6), np.uint8), np.arange(3, dtype=np.uint8)
    path = tmp_path / "small.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x[..., None].repeat(3, -1), y_test=y)
    found = load(path)
    assert found.shape == (1, 8, 6)
    assert found.x_test.shape == (3, 3, 8, 6)
    np.savez(path, x_train=x, y_train=y)
    with pytest.raises(ArgumentError, match="x_test, y_test is missing"):
        load(path)
    np.savez(path, x_train=x / 255, y_train=y, x_test=x, y_test=y)
    small = found.held_out(1)
    assert (small.y_train.tolist(), small.y_test.tolist()) == ([0, 1], [2])
    assert (len(small.x_train), len(small.x_test)) == (2, 1)
    with pytest.raises(ArgumentError, match="dtype uint8"):
        load(path)


@pytest.mark.slow
def test_reduced_step():
    result = reduced.run(image_step.main, "--fast")
    assert result.exit_code == 0, result.output
    rows = [row for row in reduced.cells(result.output) if row[1].strip()[:1].isdigit()]
    goals, timed = [row for row in rows if "<=" in row[-1]], [r for r in rows if "<=" not in r[-1]]
    assert (len(goals), len(timed)) == (3, 6)
    assert all(float(cell) > 0 for row in timed for cell in row[1:])
    # The faster of the two plain blocks is the measure.
    assert min(float(row[2]) for row in timed[:2]) == 1
