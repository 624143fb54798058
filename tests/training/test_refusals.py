"""Lightning modules refuse what they cannot train."""

import copy

import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra train")

import pyro
import pyro.distributions as dist
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, LULinear, MaskedAffineAutoregressiveTransform
from pyro.infer.autoguide import AutoDiagonalNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_iresnet import (
    AutoIResNet,
    IResNetTransform,
    conditional_iresnet_flow,
    iresnet_flow,
)
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.training import FlowModule, GuideModule

from .common import densities, points, trainer


def test_guide_refuses_loose_parameters():
    def model():
        scale = pyro.param("scale", torch.tensor(1.0))
        pyro.sample("z", dist.Normal(0.0, scale.exp()))

    with pytest.raises(ArgumentTypeError, match=r"pyro.param\('scale'\)"):
        GuideModule(model, AutoDiagonalNormal(model))


def unconditional():
    parts = [LULinear(2), IResNetTransform(2)]
    return {
        "nflows": iresnet_flow(2, 2, hidden_features=8),
        "nflows' own": Flow(CompositeTransform(parts), StandardNormal([2])),
        "Pyro": densities()["Pyro"][0],
    }


@pytest.mark.parametrize("name", unconditional())
@pytest.mark.parametrize("labels", [torch.zeros(64, dtype=torch.long), torch.zeros(64, 1)])
def test_refuses_labels_without_use(tmp_path, name, labels):
    module = FlowModule(unconditional()[name])
    start = copy.deepcopy(module.state_dict())
    rows = DataLoader(TensorDataset(points(), labels), batch_size=32)
    with pytest.raises(ArgumentError, match=r"x or \(x,\) for this flow, .* got 2 tensors"):
        trainer(tmp_path, max_steps=1).fit(module, rows)
    with pytest.raises(ArgumentError, match=r"x or \(x,\) for this flow, .* got 2 tensors"):
        trainer(tmp_path).predict(module, rows)
    assert all(torch.equal(value, start[name]) for name, value in module.state_dict().items())


def mixed():
    maf = MaskedAffineAutoregressiveTransform(2, 8, context_features=1)
    blocks = [IResNetTransform(2), maf]
    filled = nn.Sequential(NoNaN(), nn.Linear(1, 2))
    words = nn.Sequential(nn.Embedding(3, 2), nn.Flatten())
    return {
        "part": (Flow(CompositeTransform(blocks), StandardNormal([2])), torch.zeros(64, 1)),
        "fills NaN": (conditional_iresnet_flow(2, 2, 2, embedding_net=filled), torch.zeros(64, 1)),
        "integers": (
            conditional_iresnet_flow(2, 2, 2, embedding_net=words),
            torch.zeros(64, 1, dtype=torch.long),
        ),
        "no nflows": (Shifted(), torch.zeros(64, 1)),
    }


class NoNaN(nn.Module):
    def forward(self, x):
        return x.nan_to_num()


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def log_prob(self, x, context):
        return -(x - self.shift - context.nan_to_num()).square().sum(-1)


@pytest.mark.parametrize("name", mixed())
def test_takes_labels_that_a_part_uses(tmp_path, name):
    flow, labels = mixed()[name]
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(FlowModule(flow), DataLoader(TensorDataset(points(), labels), batch_size=32))
    assert fit.global_step == 2


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ({"x": X}, "dict"),
        ((X, X, X), "tuple of 3"),
        ((), "tuple of 0"),
        ((X, "label"), "tuple of Tensor, str"),
        ((X, None), "tuple of Tensor, NoneType"),
        ("x", "str"),
    ],
)
@pytest.mark.parametrize("name", densities())
def test_refuses_other_batches(name, batch, got):
    with pytest.raises(ArgumentTypeError, match=rf"batch to be x, \(x,\) or .*; got .*{got}"):
        FlowModule(densities()[name][0]).log_prob(batch)


@pytest.mark.parametrize("flow", [nn.Linear(2, 2), dist.Normal(0.0, 1.0), "flow"])
def test_refuses_other_things(flow):
    with pytest.raises(ArgumentTypeError, match="flow"):
        FlowModule(flow)


def test_refuses_a_guide_that_is_no_module():
    with pytest.raises(ArgumentTypeError, match="AutoIResNet"):
        GuideModule(lambda: None, lambda: None)


def test_refuses_a_guide_without_arguments():
    def model(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ArgumentTypeError, match=r"example .* such as \(x,\); got 0 arguments"):
        GuideModule(model, AutoIResNet(model, 1))
