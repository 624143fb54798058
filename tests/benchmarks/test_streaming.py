"""Training on a large table, measured."""

import math

import pytest
import typer.testing

from benchmarks.run import streaming


@pytest.mark.slow
def test_reduced_run():
    app = typer.Typer()
    app.command()(streaming.main)
    result = typer.testing.CliRunner().invoke(app, ["--fast"])
    assert result.exit_code == 0, result.output
    rows = [line.split("|")[1:-1] for line in result.output.splitlines() if line.startswith("|")]
    figures = [row[1].strip() for row in rows if row[0].strip()]
    figures = [cell for cell in figures if not set(cell) <= set("-")]
    assert len(figures) == 10
    for cell in figures:
        assert all(math.isfinite(float(part.replace(",", ""))) for part in cell.split(", "))
