"""The audit of versions: an answer that says nothing is no success."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import typer.testing

ROOT = Path(__file__).parent.parent.parent
MUTE = {"dependencies": [{"name": "jinja2", "skip_reason": "Dependency not found on PyPI"}]}
ADVISORY = {"id": "PYSEC-1", "fix_versions": ["3.0"]}
OLD = {"dependencies": [{"name": "jinja2", "version": "2.4.1", "vulns": [ADVISORY]}]}
CLEAN = {"dependencies": [{"name": "torch", "version": "2.13.0", "vulns": []}]}
BAD = {"dependencies": [{"name": "torch", "version": "2.13.0", "vulns": [ADVISORY]}]}
HALF = {"dependencies": [*CLEAN["dependencies"], *MUTE["dependencies"]]}


def load():
    spec = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(monkeypatch, old, pinned, *arguments):
    """Run the audit with answers of a service in place of pip-audit's."""

    def answer(command, **options):
        is_pinned = str(ROOT / "constraints.txt") in command
        text = pinned if is_pinned else old
        out = text if isinstance(text, str) else json.dumps(text)
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(subprocess, "run", answer)
    app = typer.Typer()
    app.command()(load().main)
    return typer.testing.CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("old", "pinned", "status", "words"),
    [
        (OLD, CLEAN, 0, "pypi: 1 versions audited, 0 not known there, 0 advisories."),
        (OLD, BAD, 1, "torch 2.13.0: PYSEC-1, mended in 3.0"),
        (OLD, HALF, 2, "1 versions audited, 1 not known there"),
        (MUTE, CLEAN, 2, "NOT AUDITED"),
        ("", CLEAN, 2, "NOT AUDITED"),
        (OLD, "a traceback", 2, "NOT AUDITED"),
    ],
)
def test_status_of_audit(monkeypatch, old, pinned, status, words):
    result = run(monkeypatch, old, pinned)
    assert result.exit_code == status
    assert words in result.output


@pytest.mark.parametrize(("pinned", "status"), [(CLEAN, 0), (BAD, 1)])
def test_passes_only_without_service(monkeypatch, pinned, status):
    mute = run(monkeypatch, MUTE, pinned, "--if-reachable")
    assert (mute.exit_code, "NOT AUDITED" in mute.output) == (0, True)
    assert run(monkeypatch, OLD, pinned, "--if-reachable").exit_code == status
