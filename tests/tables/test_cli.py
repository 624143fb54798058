"""The command line, end to end."""

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("lightning", reason="needs the extra train")

from typer.testing import CliRunner

from pyro_iresnet.cli import app


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    n = 100_000
    table = pd.DataFrame({"size": np.exp(rng.normal(size=n)), "visits": rng.poisson(2, n)})
    table.to_csv(folder / "table.csv", index=False)
    table[["visits", "size"]].head(500).to_parquet(folder / "new.parquet")
    result = run("fit", folder / "table.csv", "-o", folder / "m.pt", "--steps", 20, "--quiet")
    assert result.exit_code == 0, result.output
    assert not result.output
    return folder


def test_score(folder):
    for ending in ("csv", "parquet"):
        out = folder / f"scores.{ending}"
        result = run("score", folder / "m.pt", folder / "new.parquet", "-o", out, "--anomaly", 0.05)
        assert result.exit_code == 0, result.output
        scores = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
        assert list(scores.columns) == ["log_density", "anomaly"]
        assert len(scores) == 500
        assert 0.02 < scores["anomaly"].mean() < 0.1
        assert "500 rows" in result.output


def test_sample(folder):
    drawn = []
    for seed in (0, 0, 1):
        out = folder / "draws.csv"
        result = run("sample", folder / "m.pt", "-n", 50, "-o", out, "--seed", seed)
        assert result.exit_code == 0, result.output
        drawn.append(pd.read_csv(out))
    assert list(drawn[0].columns) == ["size", "visits"]
    assert (drawn[0]["size"] > 0).all()
    assert drawn[0]["visits"].dtype == np.int64
    assert drawn[0].equals(drawn[1])
    assert not drawn[0].equals(drawn[2])


def test_inspect(folder):
    result = run("inspect", folder / "m.pt")
    assert result.exit_code == 0, result.output
    for words in ("size", "Real(low=0.0", "Integer(low=0", "20 steps", "0.97"):
        assert words in result.output


def test_context(folder):
    n = 60
    pd.DataFrame({"y": np.arange(n) ** 0.5}).to_csv(folder / "y.csv", index=False)
    pd.DataFrame({"c": np.arange(n) % 3}).to_csv(folder / "c.csv", index=False)
    words = ("--context", folder / "c.csv", "-q")
    assert run("fit", folder / "y.csv", "-o", folder / "c.pt", "--steps", 2, *words).exit_code == 0
    out = folder / "out.csv"
    assert run("score", folder / "c.pt", folder / "y.csv", "-o", out, *words).exit_code == 0
    assert run("sample", folder / "c.pt", "-n", 2, "-o", out, *words).exit_code == 0
    assert len(pd.read_csv(out)) == 2 * n
    for words in (("score", folder / "c.pt", folder / "y.csv"), ("sample", folder / "c.pt")):
        result = run(*words, "-o", out)
        assert result.exit_code == 2
        assert "Expected --context FILE" in result.output
    result = run("sample", folder / "m.pt", "-o", out, "--context", folder / "c.csv")
    assert result.exit_code == 2
    assert "Expected no --context" in result.output


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("real", "Real(low=None, high=None)"),
        ("real:0:", "Real(low=0.0, high=None)"),
        ("integer:0:40", "Integer(low=0, high=40)"),
        ("count", "Integer(low=0, high=None)"),
        ("heavy-tailed", "HeavyTailed()"),
        ("category", "Category("),
    ],
)
def test_declares_columns(folder, kind, told, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    table = folder / "few.csv"
    pd.DataFrame({"a": np.arange(40) % 9}).to_csv(table, index=False)
    words = ("-o", folder / "few.pt", "--steps", 1, "--columns", f"a={kind}", "-q")
    result = run("fit", table, *words)
    if kind == "real:0:":
        assert result.exit_code == 2
        assert "'a'" in result.output
        return
    assert result.exit_code == 0, result.output
    assert told in run("inspect", folder / "few.pt").output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("fit", "none.csv", "-o", "m.pt"), "there is none at none.csv"),
        (("fit", "{t}", "-o", "m.pt", "--columns", "size=blue"), "NAME=KIND"),
        (("fit", "{t}", "-o", "m.pt", "--columns", "size=integer:a:b"), "NAME=KIND"),
        (("fit", "{t}", "-o", "m.pt", "--columns", "real"), "NAME=KIND"),
        (("fit", "{t}", "-o", "m.pt", "--columns", "integer:0:5"), "NAME=KIND"),
        (("fit", "{t}", "-o", "{f}/no/folder/m.pt", "--steps", "1"), "no/folder"),
        (("score", "{t}", "{t}", "-o", "s.csv"), "another kind of file"),
        (("score", "{m}", "{t}", "-o", "s.txt"), ".csv or .parquet"),
        (
            ("score", "{m}", "{f}/new.parquet", "-o", "{f}/s.csv", "--anomaly", "2"),
            "Expected --anomaly in",
        ),
        (("sample", "{m}", "-o", "s.txt"), ".csv or .parquet"),
    ],
)
def test_refuses(folder, words, told):
    named = {"t": folder / "table.csv", "m": folder / "m.pt", "f": folder}
    result = run(*(word.format(**named) for word in words))
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output
