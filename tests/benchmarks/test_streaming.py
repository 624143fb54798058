"""Training on a large table, measured."""

import math

import pytest

from benchmarks.run import streaming

from .reduced import cells, run


@pytest.mark.slow
def test_reduced_run():
    result = run(streaming.main, "--fast")
    assert result.exit_code == 0, result.output
    rows = cells(result.output)
    figures = [row[1].strip() for row in rows if row[0].strip()]
    figures = [cell for cell in figures if not set(cell) <= set("-")]
    assert len(figures) == 10
    for cell in figures:
        assert all(math.isfinite(float(part.replace(",", ""))) for part in cell.split(", "))
