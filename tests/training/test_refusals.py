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
from pyro import poutine
from pyro.infer import RenyiELBO, ReweightedWakeSleep, TraceGraph_ELBO, TraceTailAdaptive_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormalMessenger
from pyro.nn import PyroModule
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


@pytest.mark.parametrize(
    "loss",
    [
        RenyiELBO(num_particles=2),
        TraceGraph_ELBO(),
        ReweightedWakeSleep(num_particles=2),
        TraceTailAdaptive_ELBO(num_particles=2),
    ],
)
def test_refuses_losses_without_a_gradient_of_their_own(loss):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    name = type(loss).__name__
    with pytest.raises(ArgumentTypeError, match=rf"loss to be .*Trace_ELBO\(\).* got {name}"):
        GuideModule(model, AutoDiagonalNormal(model), loss=loss)


@pytest.mark.parametrize("example", [(X,), {"x": X}])
def test_passes_on_an_error_of_the_model(example):
    def model(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        raise TypeError("broken within")

    with pytest.raises(TypeError, match=r"^broken within$") as caught:
        GuideModule(model, AutoDiagonalNormal(model), example)
    assert not isinstance(caught.value, ArgumentTypeError)


@pytest.mark.parametrize("example", [(), (X, X), {"y": X}, {}])
@pytest.mark.parametrize("kind", ["function", "module"])
def test_refuses_an_example_that_does_not_fit(example, kind):
    def function(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    class Model(PyroModule):
        def forward(self, x):
            return function(x)

    model = function if kind == "function" else Model()
    with pytest.raises(ArgumentTypeError, match=r"example to hold arguments that the model takes"):
        GuideModule(model, AutoDiagonalNormal(model), example)


def test_refuses_an_example_that_the_guide_does_not_take():
    class Guide(PyroModule):
        def forward(self):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ArgumentTypeError, match=r"arguments that the guide takes"):
        GuideModule(lambda x: pyro.sample("z", dist.Normal(x, 1.0)), Guide(), (0.0,))


@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoNormalMessenger])
@pytest.mark.parametrize("example", [(torch.ones(()),), {"x": torch.ones(())}])
def test_takes_models_without_signature(kind, example):
    def model(x):
        pyro.sample("z", dist.Normal(x, 1.0))

    hidden = poutine.block(hide=["a"])(model)
    assert list(GuideModule(hidden, kind(hidden), example).parameters())
    with pytest.raises(TypeError, match="missing 1 required"):
        GuideModule(hidden, kind(hidden))


def test_refuses_a_guide_that_is_no_module():
    with pytest.raises(ArgumentTypeError, match="AutoIResNet"):
        GuideModule(lambda: None, lambda: None)


def test_refuses_a_guide_without_arguments():
    def model(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ArgumentTypeError, match=r"example .* such as \(x,\); got 0 arguments"):
        GuideModule(model, AutoIResNet(model, 1))
