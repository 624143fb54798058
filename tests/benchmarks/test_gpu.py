"""Script of the timings on a GPU: refusals in words, and a reduced run on the processor."""

import pytest
import torch

from benchmarks.harness import report
from benchmarks.run import gpu

from .reduced import cells, run


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
@pytest.mark.parametrize("options", [(), ("--fast",), ("--write",)])
def test_says_no_device(options):
    result = run(gpu.main, *options)
    assert result.exit_code == 1
    assert "No CUDA device was found" in result.output


def test_no_full_run_on_processor():
    result = run(gpu.main, "--device", "cpu", "--write")
    assert result.exit_code == 1
    assert "--fast" in result.output


@pytest.mark.slow
def test_reduced_run(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    result = run(gpu.main, "--device", "cpu", "--fast", "--write")
    assert result.exit_code == 0, result.output
    rows = cells(result.output)
    times = [float(row[1]) for row in rows if row[1].strip()[0].isdigit()]
    assert len(times) == 3 + 3 + 2
    assert min(times) > 0
    assert not list(tmp_path.iterdir())


def test_median_leaves_warmup_out(monkeypatch):
    """Time calls of 9, 9, 1, 2 and 3 seconds, of which the first two warm up."""
    ticks, now = [9.0, 9.0, 1.0, 2.0, 3.0], [0.0]

    def step():
        now[0] += ticks.pop(0)

    monkeypatch.setattr(gpu.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(gpu, "MOST", 100.0)
    assert gpu.median_ms(step, "cpu", rounds=3, warmup=2) == 2000.0
    assert not ticks


def test_long_steps_end_early(monkeypatch):
    now = [0.0]

    def step():
        now[0] += 5.0

    monkeypatch.setattr(gpu.time, "perf_counter", lambda: now[0])
    assert gpu.median_ms(step, "cpu", rounds=20, warmup=5) == 5000.0
    assert now[0] == 10.0
