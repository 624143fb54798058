"""Pages of results: command, date, commit and machine stand above the tables."""

import subprocess
from datetime import date

import pytest

from benchmarks.harness import measure, report


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one commit that holds the file of :func:`measure.commit`."""
    code = tmp_path / "benchmarks" / "measure.py"
    code.parent.mkdir()
    code.write_text("")
    (tmp_path / "benchmarks" / "results").mkdir()
    monkeypatch.setattr(measure, "__file__", str(code))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    return tmp_path


def test_page_says_where_its_figures_come_from(results, capsys):
    report.publish(
        "svi",
        "Guides",
        "table",
        "--seeds 3",
        fast=False,
        write=True,
        origin="commit abc1234: a card",
    )
    page = (results / "svi.md").read_text()
    command = "`python -m benchmarks.run.svi --seeds 3 --write`"
    origin = f"{command} on {date.today()} at commit abc1234: a card."
    assert page == f"# Guides\n\n{origin}\n\ntable\n"
    assert page in capsys.readouterr().out


@pytest.mark.parametrize(("fast", "write"), [(True, True), (True, False), (False, False)])
def test_writes_full_runs_alone(results, fast, write):
    report.publish("svi", "Guides", "table", fast=fast, write=write, origin="commit 1: a card")
    assert not list(results.iterdir())


def test_commit_and_its_changes(repository):
    head = subprocess.check_output(
        ["git", "-C", str(repository), "rev-parse", "--short", "HEAD"], text=True
    ).strip()
    assert measure.commit() == f"commit {head}"
    (repository / "benchmarks" / "results" / "svi.md").write_text("a page")
    assert measure.commit() == f"commit {head}"
    (repository / "benchmarks" / "measure.py").write_text("changed")
    assert measure.commit() == f"commit {head} with changes"


def test_commit_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "__file__", str(tmp_path / "measure.py"))
    assert measure.commit() == "an unknown commit"
