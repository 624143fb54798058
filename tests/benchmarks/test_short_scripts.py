"""Reduced runs of the scripts that take seconds."""

import math

import pytest

pytest.importorskip("normflows", reason="needs the extra bench")

from benchmarks.run import crossover, logdet_error

from . import reduced


def number(cell):
    """Return the number at the head of a cell; None for a text."""
    try:
        return float(cell.split()[0].replace(",", ""))
    except (IndexError, ValueError):
        return None


@pytest.mark.slow
def test_crossover():
    result = reduced.run(crossover.main, "--fast")
    assert result.exit_code == 0, result.output
    rows = [list(map(number, row)) for row in reduced.cells(result.output)]
    found = [row for row in rows if row[0] is not None]
    assert len(found) >= 8
    for _, _, exact, other, ratio in found:
        assert ratio == pytest.approx(exact / other, abs=0.02)


@pytest.mark.slow
def test_error_of_logdet():
    result = reduced.run(logdet_error.main, "--fast")
    assert result.exit_code == 0, result.output
    rows = {row[0].strip(): row[1:] for row in reduced.cells(result.output)}
    found = [number(cell) for row in rows.values() for cell in row]
    assert sum(value is not None for value in found) >= 30
    assert all(math.isfinite(value) for value in found if value is not None)
    # The first table's ratio is that of two deviations of the second.
    ours = rows["this project, Adaptive(0.1), MeanJacobian()"]
    published = rows["published, unbiased value"]
    ratio = number(rows["deviation over the published, at no more products"][0])
    assert ratio == pytest.approx(number(ours[1]) / number(published[1]), abs=0.002)
    assert number(ours[0]) <= number(published[0])
