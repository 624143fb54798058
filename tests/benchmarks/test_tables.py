"""Comparison of density estimators on real tables."""

import math

import pytest

pytest.importorskip("zuko", reason="needs the extra bench")
pytest.importorskip("statsmodels", reason="needs the extra bench")

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
        assert len(row) >= 1 + len(comparison.NAMES)
        assert all(math.isfinite(float(cell.strip(" *"))) for cell in row[1:])
