"""Soak: the slope of memory, bounds that break, training that goes on, and damaged files."""

import io
import math
import os
import random
import signal
import time

import pytest
import torch

from benchmarks.harness import soak_files, soak_inversions, soak_training
from benchmarks.harness.certified import check_inverse, together
from benchmarks.harness.soak_files import FATES, KINDS, Kind
from benchmarks.harness.trend import trend
from benchmarks.run import soak
from pyro_iresnet import DenseContraction, ResidualBlock, wrap
from pyro_iresnet._settings import SUFFIX


def reading(step, process=1, memory=1000.0, **other):
    counts = dict.fromkeys(("lost", "broken", "reported", "untold", "tensors", "objects"), 0)
    figures = dict.fromkeys(("loss", "excess", "ratio", "trip"), 0.0)
    return {"step": step, "process": process, "memory": memory, **counts, **figures, **other}


def test_slope_with_levels():
    """Fit two series of slope 2 whose levels differ."""
    found = trend([([1, 2, 3, 4], [2, 4, 6, 8]), ([5, 6, 7], [110, 112, 114])])
    assert found.slope == pytest.approx(2)
    assert found.margin == pytest.approx(0, abs=1e-9)
    assert found.readings == 7


def test_interval_of_slope():
    """Count how often the interval holds the slope, for noise with and without memory."""
    torch.manual_seed(0)
    place = torch.arange(60.0)
    for memory in (0.0, 0.6):
        held = 0
        for _ in range(300):
            noise = torch.randn(60)
            for i in range(1, 60):
                noise[i] += memory * noise[i - 1]
            found = trend([(place.tolist(), (0.3 * place + noise).tolist())])
            held += abs(found.slope - 0.3) <= found.margin
        assert 0.88 * 300 <= held <= 0.99 * 300


@pytest.mark.parametrize("series", [[], [([], [])], [([1], [2])], [([1, 1], [2, 3])]])
def test_no_slope(series):
    found = trend(series)
    assert math.isnan(found.slope)
    assert found.margin == math.inf


def test_slope_leaves_start_out():
    late = [reading(1000 * i, memory=5000.0 + i) for i in range(4, 12)]
    start = [reading(1000 * i, memory=100.0 * i) for i in range(1, 4)]
    assert len(start) == soak.WARMUP
    assert soak.memory_of([*start, *late]).slope == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_bounds(dtype):
    torch.manual_seed(0)
    block = ResidualBlock(DenseContraction(3, [8])).to(dtype)
    found = check_inverse(block, torch.randn(50, 3, dtype=dtype))
    assert (found.samples, found.reported, found.untold, found.broken) == (50, 0, 0, 0)
    assert 0 < found.ratio < 1


def test_detects_broken_bound():
    """Invert a map in float32 that double precision makes another map."""

    class OfDtype(torch.nn.Module):
        def forward(self, x):
            return (0.5 if x.dtype == torch.float32 else 0.4) * x

    block = ResidualBlock(wrap(OfDtype(), lipschitz=0.9))
    found = check_inverse(block, torch.randn(20, 2))
    assert found.broken == 20
    assert found.ratio > 1


def test_counts_reported():
    block = ResidualBlock(DenseContraction(2, [8]))
    y = torch.tensor([[1.0, 2.0], [math.nan, 0.0]])
    assert (check_inverse(block, y).reported, check_inverse(block, y).broken) == (1, 0)


def test_every_cell():
    cells = soak_inversions.cells()
    assert len(cells) == len({c.name for c in cells}) == 2 * 3 * 4 * 2 * 3 * 2
    chosen = [c for c in cells if (c.solver, c.dim, c.weights) == soak.FEW][::3]
    chosen.append(cells[1])
    assert chosen[-1].weights == "trained"
    found = together(soak_inversions.invert(c, 5, 0) for c in chosen)
    assert found.samples == 5 * len(chosen)
    assert found.broken == 0


@pytest.mark.parametrize("name", soak_training.FLOWS)
def test_training_goes_on(name, tmp_path):
    """Stop and go on; read the figures of a training without a stop."""
    whole = soak_training.train(name, 6, 3, None)
    place = str(tmp_path / "state.pt")
    soak_training.train(name, 3, 3, place)
    parts = soak_training.train(name, 6, 3, place)
    assert [r["step"] for r in parts] == [3, 6]
    for key in ("loss", "excess", "trip", "ratio", "lost", "broken"):
        assert [r[key] for r in parts] == pytest.approx([r[key] for r in whole], rel=1e-5)
    assert all(r["broken"] == r["lost"] == 0 for r in parts)


def saved(kind, change=lambda state: None):
    module = soak_files.sound(kind)
    if not kind.pickled:
        state = module.state_dict()
        change(state)
        module = state
    file = io.BytesIO()
    torch.save(module, file)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_sound_file(kind):
    assert soak_files.fate(saved(kind), kind) == soak_files.SAME


@pytest.mark.parametrize("flow", soak_files.FLOWS)
def test_fate_of_changes(flow):
    kind = Kind(flow, pickled=False)
    name = next(n for n in soak_files.sound(kind).state_dict() if n.endswith("0.weight"))

    def shift(state):
        state[name] = state[name] + 0.1

    def poison(state):
        state[name] = state[name] * math.nan

    def drop(state):
        del state[name]

    assert soak_files.fate(saved(kind, shift), kind) == soak_files.OTHER
    assert soak_files.fate(saved(kind, drop), kind) == soak_files.REFUSED
    assert soak_files.fate(saved(kind, poison), kind) in (soak_files.SHOWN, soak_files.RAISED)


class Wrong(torch.nn.Module):
    """Transform of nflows that leaves its log-determinant out."""

    def __init__(self):
        super().__init__()
        self.block = ResidualBlock(DenseContraction(3, [4]))

    def forward(self, x):
        return self.block(x), x.new_zeros(len(x))

    def inverse(self, y):
        return self.block.inverse(y), y.new_zeros(len(y))


def test_detects_silent_number():
    kind = Kind("nflows", pickled=True)
    flow = soak_files.sound(kind)
    flow._transform = Wrong()
    file = io.BytesIO()
    torch.save(flow, file)
    assert soak_files.fate(file.getvalue(), kind) == soak_files.SILENT


@pytest.mark.parametrize("name", [*soak_files.CORRUPTIONS, *soak_files.ONLY_STATES])
def test_no_silent_damage(name):
    fates = soak_files.judged(name, 4, seed=0)
    assert set(fates) == set(FATES)
    assert sum(fates.values()) == 4
    assert fates[soak_files.SILENT] == fates[soak_files.DIED] == 0


@pytest.mark.parametrize("name", ["a missing key", "two keys swapped"])
def test_pickled_modules_lose_no_record(name):
    kind = next(k for k in KINDS if k.pickled)
    module = soak_files.sound(kind)
    for seed in range(40):
        data = soak_files.CORRUPTIONS[name](module, random.Random(seed), pickled=True)
        damaged = torch.load(io.BytesIO(data), weights_only=False)
        records = [k for k in damaged.state_dict() if k.endswith(SUFFIX)]
        assert records == [k for k in module.state_dict() if k.endswith(SUFFIX)]
        assert not any(k.endswith(SUFFIX) for k, _ in damaged.named_buffers())


@pytest.mark.parametrize("name", [*soak_files.CORRUPTIONS, *soak_files.ONLY_STATES])
def test_damage_is_reproducible(name):
    corrupt = (soak_files.CORRUPTIONS | soak_files.ONLY_STATES)[name]
    kind = Kind("Pyro", pickled=False)
    module = soak_files.sound(kind)
    seeds = [0, 0, *range(1, 6)]
    files = [corrupt(module, random.Random(seed), pickled=False) for seed in seeds]
    assert files[0] == files[1]
    assert len(set(files)) > 1


def test_death_is_counted(monkeypatch):
    monkeypatch.setattr(soak_files, "fate", lambda data, kind: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(soak_files, "SECONDS", 30)
    assert soak_files.judged("cut short", 1, seed=0)[soak_files.DIED] == 1


def test_endless_work_is_counted(monkeypatch):
    monkeypatch.setattr(soak_files, "fate", lambda data, kind: time.sleep(60))
    monkeypatch.setattr(soak_files, "SECONDS", 0.5)
    assert soak_files.judged("cut short", 1, seed=0)[soak_files.DIED] == 1


def test_goes_on_from_folder(tmp_path):
    cells = soak_inversions.cells()[:2]
    small = soak.Soak(3, 10, 10, tmp_path, cells)
    found = small.inverted()
    assert small.inverted() == found
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2
    assert small.damaged() == small.damaged()


def test_page_counts_failures():
    cell = soak_inversions.cells()[0]
    figures = {"samples": 7, "reported": 1, "untold": 0, "broken": 2, "ratio": 3.0, "error": 0.1}
    inversions = {cell: {**figures, "memory": 1.0, "process": 1}}
    files = {"cut short": dict.fromkeys(FATES, 1)}
    training = {"a flow": [reading(1000 * i, lost=1) for i in range(1, 9)]}
    cells = [
        row.split("|")[2].strip() for row in soak.goals(training, inversions, files).split("\n")
    ]
    assert cells[2:] == ["8", "0", "2", "1", "1"]
    row = soak.of_inversions(inversions).splitlines()[2]
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["7", "1", "0", "2"]
    assert "a flow | 8,000 | 1 " in soak.of_training(training)
    assert soak.of_files(files).splitlines()[-1].count(" 1 ") == len(FATES)
