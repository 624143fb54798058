"""Growth with size: slopes, their comparison with the products, and the memory that is told."""

from functools import partial

import pytest
import torch

from benchmarks.run import scaling


def test_slope_of_power():
    assert scaling.slope((10, 40), (3 * 10**2.5, 3 * 40**2.5)) == pytest.approx(2.5)


@pytest.mark.parametrize("work", scaling.WORKS)
@pytest.mark.parametrize("axis", ["batch", "blocks"])
def test_products_double(work, axis, monkeypatch):
    """Double the batch, or the blocks, of a flow whose weights cost little."""
    small = partial(scaling.Size, dim=64, batch=256, blocks=1, width=64)
    monkeypatch.setattr(scaling, "Size", small)
    monkeypatch.setattr(scaling, "AXES", {axis: (axis, (256, 512) if axis == "batch" else (1, 2))})
    rows, _ = scaling.along(axis, work, 1, None)
    assert float(rows[1][4]) == pytest.approx(1.0, abs=0.2)


def test_tells_fast_growth(monkeypatch):
    """Give times that grow faster than the products, and times that do not."""
    for growth, told in ((2.0, 1), (1.0, 0)):
        times = {"1": 1.0, "4": 4.0**growth, "16": 16.0}
        monkeypatch.setattr(scaling, "interleaved", lambda *_, times=times, **__: times)
        monkeypatch.setattr(scaling, "AXES", {"blocks": ("blocks", (1, 4, 16))})
        monkeypatch.setitem(scaling.WORKS, "training", of_products)
        assert len(scaling.along("blocks", "training", 1, None)[1]) == told


def of_products(size):
    a = torch.ones(8, 8)
    return lambda: [a @ a for _ in range(size.blocks)]


def test_tells_large_memory(monkeypatch):
    monkeypatch.setattr(scaling, "peak_memory", lambda _, work, dim, batch: 10.0 * batch)
    table, told = scaling.memory((1024,), (64, 512))
    assert len(told) == len(scaling.WORKS)
    assert all("batch 512: 5,120 MiB" in line for line in told)
    assert table.count("640") == len(scaling.WORKS)
