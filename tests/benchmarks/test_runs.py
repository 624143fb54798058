"""Finished runs: kept with their commit and machine."""

import json

from benchmarks.harness import measure
from benchmarks.harness.runs import Runs


def test_keeps_origins(tmp_path, monkeypatch):
    log = tmp_path / "log"
    log.write_text(
        json.dumps(["old", 1.0]) + "\n" + json.dumps(["kept", 2.0, "commit 1: A"]) + "\n"
    )
    monkeypatch.setattr(measure, "origin", lambda: "commit 2: B")
    made = Runs(log)
    assert made.origin() == ""
    assert made.get("new", lambda: 3.0) == 3.0
    assert made.origin() == "commit 2: B"
    again = Runs(log)
    assert [again.get(name, float) for name in ("old", "kept", "new")] == [1.0, 2.0, 3.0]
    assert again.origin() == "commit 1: A; commit 2: B"


def test_missing_runs(tmp_path):
    runs = Runs(tmp_path / "log", missing=-1.0)
    assert runs.get("none", lambda: 1 / 0) == -1.0
    assert runs.origin() == ""
    assert not list(tmp_path.iterdir())
