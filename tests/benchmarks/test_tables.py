"""Comparison of density estimators on real tables."""

import json
import math
import re

import numpy as np
import pytest

pytest.importorskip("zuko", reason="needs the extra bench")
pytest.importorskip("statsmodels", reason="needs the extra bench")

from sklearn.mixture import GaussianMixture

from benchmarks.run import tables as comparison
from benchmarks.targets.tables import tables

from .reduced import cells, run


@pytest.mark.parametrize("name", tables())
def test_tables_are_complete(name):
    frame = tables()[name]()
    assert len(frame) >= 20
    assert not frame.isna().any(axis=None)


def test_reduced_run():
    result = run(comparison.main, "--fast")
    assert result.exit_code == 0, result.output
    rows = cells(result.output)
    found = [row for row in rows if row[0].strip() in comparison.FEW]
    assert len(found) == 3 * len(comparison.FEW)
    for row in found:
        assert all(math.isfinite(float(cell.strip(" *"))) for cell in row[1:6])
    # One split: the three figures of the last column are one.
    for row in found[: len(comparison.FEW)]:
        nats = [float(cell.strip(" *")) for cell in row[1:6]]
        less = [float(figure) for figure in re.findall(r"-?\d+\.\d+", row[6])]
        assert less == pytest.approx(3 * [nats[0] - min(nats[1:])], abs=0.011)


def test_shows_finished_tables_alone(tmp_path):
    log = tmp_path / "log"
    names = [f"iris / {contender} / 2 / 7" for contender in comparison.NAMES]
    score = {"nats": 1.0, "worst": 2.0, "seconds": 3.0}
    lines = [[name, score, "commit 1: A"] for name in [*names, "linnerud / NSF / 2 / 7"]]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run(comparison.main, "--finished", "--log", str(log), "--steps", "7", "--splits", "1")
    assert result.exit_code == 0, result.output
    assert "at commit 1: A." in result.output
    assert "linnerud" in result.output.split("not run: ")[1].split(")")[0]
    assert {row[0].strip() for row in cells(result.output)} & set(tables()) == {"iris"}


def test_mixture_of_few_rows():
    z = np.random.default_rng(0).normal(size=(60, 8))
    fit = comparison._mixture(z[:45], z[45:])
    for count in range(1, 6):
        bare = GaussianMixture(count, random_state=0).fit(z[:45])
        assert fit.score(z[45:]) >= bare.score(z[45:])
    # Five components without damping have a peak for almost every row.
    assert fit.score(z[45:]) > bare.score(z[45:]) + 20
