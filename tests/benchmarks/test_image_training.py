"""Trainings of images by the minute: several sittings are one training."""

import shutil

import pytest
import torch
from torch import nn

pytest.importorskip("lightning", reason="needs the extra train")

from benchmarks.models.images import Batches, ClassModule, Minutes, PlainClassifier, train
from pyro_iresnet.images import IResNetClassifier
from pyro_iresnet.images import classifier as classifier_module


@pytest.fixture
def ticks(monkeypatch):
    """Let each batch take a second."""
    count = iter(range(10**6))
    monkeypatch.setattr(Minutes, "_now", lambda self: next(count))


def sittings(folder, *limits):
    """Train a linear classifier in sittings of a number of batches; return its parameters."""
    for limit in limits:
        torch.manual_seed(0)
        x, labels = torch.rand(50, 1, 4, 4), torch.randint(3, (50,))
        module = ClassModule(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), learning_rate=0.1)
        batches = Batches(x, labels, size=8, change=lambda x: x + 0.1 * torch.rand_like(x))
        _, steps = train(module, batches, minutes=limit / 60, folder=folder, progress=False)
        assert steps == limit
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_sittings_are_one_training(tmp_path, ticks):
    once = sittings(tmp_path / "once", 12)
    torch.testing.assert_close(sittings(tmp_path / "twice", 5, 12), once, rtol=0, atol=0)
    # A third sitting adds nothing.
    torch.testing.assert_close(sittings(tmp_path / "twice", 12), once, rtol=0, atol=0)


def test_moved_folder_goes_on(tmp_path, ticks):
    sittings(tmp_path / "before", 5)
    shutil.move(tmp_path / "before", tmp_path / "behind")
    moved = sittings(tmp_path / "behind", 12)
    assert [f.name for f in (tmp_path / "behind").iterdir()] == ["last.ckpt"]
    torch.testing.assert_close(moved, sittings(tmp_path / "once", 12), rtol=0, atol=0)


def test_network_without_bounds_takes_no_norm(monkeypatch):
    calls = []
    together = classifier_module.together

    def counted(contractions):
        calls.append(contractions)
        return together(contractions)

    monkeypatch.setattr(classifier_module, "together", counted)
    x = torch.randn(4, 1, 8, 8)
    for kind, count in ((PlainClassifier, 0), (IResNetClassifier, 1)):
        kind((1, 8, 8), 3, blocks_per_scale=1)(x)
        assert len(calls) == count
