"""Modes, parameters and seeds around a diagnosis."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoNormalizingFlow,
)
from torch import nn

from pyro_iresnet import PowerSeries, iresnet_stack
from pyro_iresnet.diagnostics import guide_to_inference_data, psis

from .models import MEAN, SCALE, Y, model, wide


class Noisy(nn.Module):
    """Guide with dropout, which draws in train mode only."""

    def __init__(self):
        super().__init__()
        self.loc, self.noise = nn.Parameter(torch.tensor(MEAN)), nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, y=Y):
        pyro.module("guide", self)
        pyro.sample("z", dist.Normal(self.noise(self.loc), SCALE))


@pytest.mark.parametrize("training", [True, False])
def test_restores_mode(training):
    guide = Noisy()
    guide.train(training)
    guide.frozen.eval()
    before = {k: v.clone() for k, v in guide.state_dict().items()}
    assert psis(guide, model).k_hat == -math.inf
    assert guide.training == guide.noise.training == training
    assert not guide.frozen.training
    for k, v in guide.state_dict().items():
        assert torch.equal(v, before[k])
    assert guide.loc.grad is None

    class Broken(nn.Module):
        def forward(self):
            raise RuntimeError("broken")

    broken = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        psis(broken, model)
    assert broken.training


def test_eval_mode_of_logdet():
    make = partial(iresnet_stack, num_blocks=2, hidden_dims=[8], logdet=PowerSeries(20))
    guide = AutoNormalizingFlow(model, make)
    guide(Y)
    store = {k: v.clone() for k, v in pyro.get_param_store().items()}
    modes = {k: m.training for k, m in guide.named_modules()}
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(psis(guide, model, Y, num_samples=200))
    assert torch.equal(results[0].log_weights, results[1].log_weights)
    assert modes == {k: m.training for k, m in guide.named_modules()}
    assert store.keys() == pyro.get_param_store().keys()
    for k, v in pyro.get_param_store().items():
        assert torch.equal(v, store[k])


@pytest.mark.usefixtures("quiet")
def test_follows_seed():
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        result = psis(wide, model, num_samples=300)
        data = guide_to_inference_data(wide, model, num_samples=30, resample=True)
        found.append((result, result.resample(50)["z"], data))
    assert torch.equal(found[0][0].draws["z"], found[1][0].draws["z"])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2].posterior.equals(found[1][2].posterior)
    assert found[0][2].posterior_predictive.equals(found[1][2].posterior_predictive)
    assert not torch.equal(found[0][0].draws["z"], found[2][0].draws["z"])


class Amortised(torch.nn.Module):
    """Model and guide as methods. The guide is right in eval mode only."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)

    def model(self, x):
        with pyro.plate("rows", 5):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("rows", 5):
            pyro.sample("z", dist.Normal(self.dropout(torch.ones(())) * x / 2, 0.5**0.5))


@pytest.mark.parametrize(
    "behind",
    [
        lambda v: v.guide,
        lambda v: lambda x: v.guide(x),
        lambda v: partial(v.guide),
        lambda v: poutine.block(v.guide, hide=[]),
    ],
    ids=["method", "closure", "partial", "poutine"],
)
def test_eval_mode_behind_callable(behind):
    amortised = Amortised()
    x = torch.tensor([0.5, 1.0, 1.5, 4.0, 4.2])
    assert psis(behind(amortised), amortised.model, x).k_hat == -math.inf
    assert amortised.dropout.training
