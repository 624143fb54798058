"""Comparison of density estimators on real tables."""

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


def test_mixture_of_few_rows():
    z = np.random.default_rng(0).normal(size=(60, 8))
    fit = comparison._mixture(z[:45], z[45:])
    for count in range(1, 6):
        bare = GaussianMixture(count, random_state=0).fit(z[:45])
        assert fit.score(z[45:]) >= bare.score(z[45:])
    # Five components without damping have a peak for almost every row.
    assert fit.score(z[45:]) > bare.score(z[45:]) + 20
