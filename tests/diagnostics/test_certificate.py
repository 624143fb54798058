"""``certificate`` and ``spectral_penalty``."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform
from torch import nn

from pyro_iresnet import (
    ContractionError,
    IResNet,
    IResNetTransform,
    ResidualBlock,
    certificate,
    iresnet_stack,
    wrap,
)
from pyro_iresnet.contractions import SequentialContraction, SumContraction
from pyro_iresnet.diagnostics import spectral_penalty
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.norms import Gram, PowerIteration

from .. import zoo


def stack(**options):
    made = zoo.spread(iresnet_stack(zoo.DIM, 2, [8, 8], **options).double())
    return made.eval()


FLOWS = {
    "stack": stack,
    "distribution": lambda: dist.TransformedDistribution(
        dist.Normal(torch.zeros(zoo.DIM), torch.ones(zoo.DIM)).to_event(1), [stack().inv]
    ),
    "nflows": lambda: Flow(
        CompositeTransform([IResNetTransform.from_block(zoo.block()) for _ in range(2)]),
        StandardNormal([zoo.DIM]),
    ).eval(),
}


@pytest.mark.parametrize("name", FLOWS)
def test_rows_of_flow(name):
    found = certificate(FLOWS[name](), torch.randn(40, zoo.DIM))
    assert [r.layer for r in found.rows] == 2 * [*(f"layers.{i}.weight" for i in range(3)), "g"]
    assert [r.block for r in found.rows] == [0] * 4 + [1] * 4
    assert found.holds
    for r in found.rows:
        if r.layer == "g":
            assert 0 < r.stretch <= r.bound <= r.promised + 1e-9
        else:
            assert 0 < r.norm <= r.bound * (1 + 1e-9)
    lines = str(found).splitlines()
    assert len(lines) == 9
    assert "Gram(squarings=6)" in lines[1]


def test_stretch_is_jacobian_norm():
    flow, x = stack(), torch.randn(30, zoo.DIM)
    at = x
    expected = []
    for part in flow.parts:
        if hasattr(part, "block"):
            z = part.block.coordinates(at)
            jacobian = part.block.contraction.linearize(z).as_matrix().detach()
            expected.append(float(torch.linalg.matrix_norm(jacobian, ord=2).max()))
        at = part(at)
    found = [r.stretch for r in certificate(flow, x).rows if r.layer == "g"]
    assert found == pytest.approx(expected)


def test_stretch_of_large_events():
    block = ResidualBlock(zoo.dense(80, (30,)))
    x = torch.randn(5, 80)
    (found,) = [r.stretch for r in certificate(block, x).rows if r.layer == "g"]
    exact = torch.linalg.matrix_norm(block.contraction.linearize(x).as_matrix(), ord=2).max()
    assert 0.98 * float(exact) <= found <= float(exact) * (1 + 1e-9)


def test_fails_power_iteration():
    found = certificate(stack(lipschitz=0.99, norm=PowerIteration(1)))
    assert not found.holds
    assert "FAILS" in str(found)


def test_refutes_false_bound():
    block = ResidualBlock(wrap(zoo.Scaled(2.0, torch.eye(3)), lipschitz=0.9))
    assert certificate(block).holds
    found = certificate(block, torch.randn(5, 3))
    assert not found.holds
    (row,) = found.rows
    assert row.stretch == pytest.approx(2.0)


def test_rows_under_context():
    parts = SequentialContraction(zoo.dense(context_dim=zoo.CONTEXT), zoo.dense())
    found = certificate(
        ResidualBlock(parts), torch.randn(6, zoo.DIM), context=torch.randn(6, zoo.CONTEXT)
    )
    assert found.holds
    assert [r.layer for r in found.rows] == [
        *(f"parts.{k}.layers.{i}.weight" for k in range(2) for i in range(3)),
        "g",
    ]


def test_holds_for_images():
    block = ResidualBlock(zoo.conv())
    assert certificate(block, torch.randn(4, 2, 6, 5)).holds


def test_changes_nothing():
    flow = iresnet_stack(zoo.DIM, 2, [8]).double().train()
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    certificate(flow, torch.randn(20, zoo.DIM))
    assert flow.training
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())


@pytest.mark.parametrize("data", [[[1.0, 2.0]], np.zeros((5, 2))])
def test_refuses_other_data(data):
    with pytest.raises(ArgumentTypeError, match=r"data to be a torch.Tensor.*as_tensor\(data\)"):
        certificate(stack(), data)


def test_refuses_data_without_numbers():
    with pytest.raises(ArgumentError, match="Expected data without NaN"):
        certificate(stack(), torch.full((3, zoo.DIM), torch.nan))


def test_refuses_context_alone():
    with pytest.raises(ArgumentError, match="together with data"):
        certificate(stack(), context=torch.randn(3, 2))


def test_penalty_sums_squares():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Conv2d(2, 4, 1, bias=False))
    first, last = net[0].weight, net[2].weight[:, :, 0, 0]
    expected = sum(torch.linalg.matrix_norm(w, ord=2) ** 2 for w in (first, last))
    torch.testing.assert_close(spectral_penalty(net), expected)
    spectral_penalty(net, Gram()).backward()
    assert net[0].weight.grad.norm() > 0


def test_penalty_of_shared_layer():
    layer = nn.Linear(3, 3)
    once = spectral_penalty(layer)
    for flow in (nn.Sequential(layer, layer), [nn.Sequential(layer), nn.Sequential(layer)]):
        torch.testing.assert_close(spectral_penalty(flow), once)


def test_penalty_of_free_weights():
    flow = stack()
    weights = [
        layer.weight
        for part in flow.parts
        if hasattr(part, "block")
        for layer in part.block.contraction.layers
    ]
    expected = sum(torch.linalg.matrix_norm(w, ord=2) ** 2 for w in weights)
    torch.testing.assert_close(spectral_penalty(flow), expected)
    wrapped = ResidualBlock(wrap(nn.Linear(2, 2), lipschitz=0.5))
    weight = wrapped.contraction.module.weight
    expected = torch.linalg.matrix_norm(weight, ord=2) ** 2
    torch.testing.assert_close(spectral_penalty(wrapped), expected)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(1, 1, 3, stride=2), nn.Conv2d(2, 2, 3, groups=2), nn.Embedding(3, 2)]
)
def test_refuses_unknown_layer(layer):
    with pytest.raises(ArgumentError, match="whose norm is not known"):
        spectral_penalty(nn.Sequential(nn.Linear(2, 2), layer))
    with pytest.raises(ArgumentError, match="found none"):
        spectral_penalty(nn.Tanh())


def test_refuses_flow_without_blocks():
    for flow in (nn.Linear(2, 2), []):
        with pytest.raises(ArgumentError, match="found none"):
            certificate(flow)


def test_holds_for_bare_contraction():
    assert certificate(zoo.dense(), torch.randn(3, zoo.DIM)).holds
    conditional = IResNet(ResidualBlock(zoo.dense(context_dim=zoo.CONTEXT)))
    context = torch.randn(3, zoo.CONTEXT)
    assert certificate(conditional, torch.randn(3, zoo.DIM), context=context).holds
    (row,) = [r for r in certificate(zoo.dense(), torch.zeros(0, zoo.DIM)).rows if r.layer == "g"]
    assert row.stretch is None


@pytest.mark.parametrize("norm", zoo.NORMS)
def test_fails_nan(norm):
    g = zoo.dense(norm=zoo.NORMS[norm])
    assert certificate(g).holds
    with torch.no_grad():
        g.layers[1].weight[0, 0] = torch.nan
    found = certificate(g, torch.randn(3, zoo.DIM))
    assert not found.holds
    with pytest.raises(ContractionError, match="NaN"):
        ResidualBlock(g).inverse(torch.randn(3, zoo.DIM))


def test_source_of_bound():
    wrapped = wrap(zoo.dense(), lipschitz=0.3)
    assert [(r.layer, r.strategy) for r in certificate(wrapped).rows] == [("g", "as given")]
    mixed = SumContraction(zoo.dense(lipschitz=0.4), wrap(nn.Tanh(), lipschitz=0.5))
    rows = certificate(mixed).rows
    assert [r.layer for r in rows] == [*(f"parts.0.layers.{i}.weight" for i in range(3)), "g"]
    assert rows[-1].strategy == "from its parts"


def test_rows_of_tied_weights():
    g = zoo.dense(hidden_dims=(zoo.DIM,))
    g.layers[1].weight = g.layers[0].weight
    assert len(certificate(g).rows) == 3


def test_holds_under_autocast():
    block, x = ResidualBlock(zoo.dense(4, (64, 64)).float()), torch.randn(5, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert certificate(block, x).holds


def test_penalty_counts_every_module():
    first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.testing.assert_close(
        spectral_penalty([first, last]), spectral_penalty(nn.Sequential(first, last))
    )
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    torch.testing.assert_close(spectral_penalty(orthogonal), torch.tensor(1.0))
    tall = nn.Linear(3, 8)
    norm = Gram()
    torch.testing.assert_close(spectral_penalty(tall, norm), norm(tall.weight) ** 2)
