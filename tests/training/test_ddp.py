"""Two processes take the step that one takes on the joined batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra train")

SCRIPT = Path(__file__).parent / "ddp_script.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
pytestmark = pytest.mark.slow


def run(out, *before, dies="no"):
    words = [sys.executable, "-W", "ignore", *before, SCRIPT, out, dies]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def test_gradient(tmp_path):
    for before in ([], TORCHRUN):
        done = run(tmp_path, *before)
        assert done.returncode == 0, done.stderr
    alone, first, second = (torch.load(tmp_path / f"{n}.pt") for n in ("1_0", "2_0", "2_1"))
    assert first.pop("draw") != second.pop("draw")
    del alone["draw"]
    assert alone.keys() == first.keys() == second.keys()
    for name, gradient in alone.items():
        scale = gradient.abs().max().clamp(min=1e-3)
        assert (first[name] - gradient).abs().max() < 1e-10 * scale, name
        assert torch.equal(first[name], second[name])


def test_killed_process(tmp_path):
    done = run(tmp_path, *TORCHRUN, dies="yes")
    assert done.returncode != 0
    assert "exitcode  : 7" in done.stderr
    assert "rank      : 1" in done.stderr
