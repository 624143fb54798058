"""Timer of a guide's step: every checkout in a process of its own."""

from pathlib import Path

import pytest
import typer.testing

pytest.importorskip("normflows", reason="needs the extra bench")

from benchmarks.run import guide_step

pytestmark = pytest.mark.slow


def test_ratios_to_checkout():
    """Time this checkout against itself."""
    app = typer.Typer()
    app.command()(guide_step.main)
    result = typer.testing.CliRunner().invoke(app, ["--fast", "--against", str(guide_step.HERE)])
    assert result.exit_code == 0, result.output
    rows = [line.split("|")[1:-1] for line in result.output.splitlines() if line.startswith("|")]
    ratios = [row for row in rows if "over the other checkout" in row[0]]
    assert len(ratios) == 2
    assert all(float(cell) > 0 for row in ratios for cell in row[1:])


def test_refuses_other_package(tmp_path: Path):
    """A folder without a package is no checkout."""
    with pytest.raises(RuntimeError, match="ended early"), guide_step.Timer(tmp_path, 1):
        pass
