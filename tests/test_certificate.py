"""``certificate`` and ``spectral_penalty``."""

import pyro.distributions as dist
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform
from torch import nn

from pyro_iresnet import (
    AlmostOrthogonal,
    ArgumentError,
    ContractionError,
    Gram,
    IResNet,
    IResNetTransform,
    PowerIteration,
    ResidualBlock,
    SequentialContraction,
    SumContraction,
    certificate,
    iresnet_stack,
    spectral_penalty,
    wrap,
)

from . import zoo


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
def test_a_flow_has_a_row_for_each_layer_and_each_block(name):
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


def test_the_stretch_is_that_of_the_jacobian_where_the_data_meet_the_block():
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


def test_large_events_are_searched_by_products():
    block = ResidualBlock(zoo.dense(80, (30,)))
    x = torch.randn(5, 80)
    (found,) = [r.stretch for r in certificate(block, x).rows if r.layer == "g"]
    exact = torch.linalg.matrix_norm(block.contraction.linearize(x).as_matrix(), ord=2).max()
    assert 0.98 * float(exact) <= found <= float(exact) * (1 + 1e-9)


def test_power_iteration_fails():
    found = certificate(stack(lipschitz=0.99, norm=PowerIteration(1)))
    assert not found.holds
    assert "FAILS" in str(found)


def test_a_wrong_word_is_refuted_by_the_data():
    block = ResidualBlock(wrap(zoo.Scaled(2.0, torch.eye(3)), bound=0.9))
    assert certificate(block).holds
    found = certificate(block, torch.randn(5, 3))
    assert not found.holds
    (row,) = found.rows
    assert row.stretch == pytest.approx(2.0)


def test_context_and_parts():
    parts = SequentialContraction(zoo.dense(context_dim=zoo.CONTEXT), zoo.densenet())
    found = certificate(
        ResidualBlock(parts), torch.randn(6, zoo.DIM), context=torch.randn(6, zoo.CONTEXT)
    )
    assert found.holds
    assert [r.layer for r in found.rows] == [
        *(f"parts.{k}.layers.{i}.weight" for k in range(2) for i in range(3)),
        "g",
    ]


def test_images():
    block = ResidualBlock(zoo.conv())
    assert certificate(block, torch.randn(4, 2, 6, 5)).holds


def test_a_certificate_changes_nothing():
    flow = iresnet_stack(zoo.DIM, 2, [8]).double().train()
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    certificate(flow, torch.randn(20, zoo.DIM))
    assert flow.training
    assert all(torch.equal(v, before[k]) for k, v in flow.state_dict().items())


def test_context_alone_is_refused():
    with pytest.raises(ArgumentError, match="together with data"):
        certificate(stack(), context=torch.randn(3, 2))


def test_the_penalty_is_the_sum_of_squares():
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Conv2d(2, 4, 1, bias=False))
    first, last = net[0].weight, net[2].weight[:, :, 0, 0]
    expected = sum(torch.linalg.matrix_norm(w, ord=2) ** 2 for w in (first, last))
    torch.testing.assert_close(spectral_penalty(net), expected)
    spectral_penalty(net, Gram()).backward()
    assert net[0].weight.grad.norm() > 0


def test_the_penalty_of_a_flow_is_that_of_its_free_weights():
    flow = stack()
    weights = [
        layer.weight
        for part in flow.parts
        if hasattr(part, "block")
        for layer in part.block.contraction.layers
    ]
    expected = sum(torch.linalg.matrix_norm(w, ord=2) ** 2 for w in weights)
    torch.testing.assert_close(spectral_penalty(flow), expected)
    wrapped = ResidualBlock(wrap(nn.Linear(2, 2), bound=0.5))
    weight = wrapped.contraction.module.weight
    expected = torch.linalg.matrix_norm(weight, ord=2) ** 2
    torch.testing.assert_close(spectral_penalty(wrapped), expected)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(1, 1, 3, stride=2), nn.Conv2d(2, 2, 3, groups=2), nn.Embedding(3, 2)]
)
def test_a_layer_of_unknown_norm_is_refused(layer):
    with pytest.raises(ArgumentError, match="whose norm is not known"):
        spectral_penalty(nn.Sequential(nn.Linear(2, 2), layer))
    with pytest.raises(ArgumentError, match="found none"):
        spectral_penalty(nn.Tanh())


def test_where_there_is_nothing_to_prove_a_certificate_says_so():
    for flow in (nn.Linear(2, 2), []):
        with pytest.raises(ArgumentError, match="found none"):
            certificate(flow)


def test_a_bare_contraction_and_a_conditional_transform():
    assert certificate(zoo.dense(), torch.randn(3, zoo.DIM)).holds
    conditional = IResNet(ResidualBlock(zoo.dense(context_dim=zoo.CONTEXT)))
    context = torch.randn(3, zoo.CONTEXT)
    assert certificate(conditional, torch.randn(3, zoo.DIM), context=context).holds
    (row,) = [r for r in certificate(zoo.dense(), torch.zeros(0, zoo.DIM)).rows if r.layer == "g"]
    assert row.stretch is None


@pytest.mark.parametrize("norm", zoo.NORMS)
def test_what_is_not_a_number_fails(norm):
    g = zoo.dense(norm=zoo.NORMS[norm])
    assert certificate(g).holds
    with torch.no_grad():
        g.layers[1].weight[0, 0] = torch.nan
    found = certificate(g, torch.randn(3, zoo.DIM))
    assert not found.holds
    with pytest.raises(ContractionError, match="NaN"):
        ResidualBlock(g).inverse(torch.randn(3, zoo.DIM))


def test_whence_a_bound_is():
    wrapped = wrap(zoo.dense(), bound=0.3)
    assert [(r.layer, r.strategy) for r in certificate(wrapped).rows] == [("g", "as given")]
    mixed = SumContraction(zoo.dense(lipschitz=0.4), wrap(nn.Tanh(), bound=0.5))
    rows = certificate(mixed).rows
    assert [r.layer for r in rows] == [*(f"parts.0.layers.{i}.weight" for i in range(3)), "g"]
    assert rows[-1].strategy == "from its parts"


def test_tied_weights_keep_a_row_each():
    g = zoo.dense(hidden_dims=(zoo.DIM,))
    g.layers[1].weight = g.layers[0].weight
    assert len(certificate(g).rows) == 3


def test_autocast_does_not_coarsen_a_certificate():
    block, x = ResidualBlock(zoo.dense(4, (64, 64)).float()), torch.randn(5, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert certificate(block, x).holds


def test_the_penalty_counts_every_module_and_what_makes_a_weight():
    first, last = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.testing.assert_close(
        spectral_penalty([first, last]), spectral_penalty(nn.Sequential(first, last))
    )
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    torch.testing.assert_close(spectral_penalty(orthogonal), torch.tensor(1.0))
    tall = nn.Linear(3, 8)
    norm = AlmostOrthogonal()
    torch.testing.assert_close(spectral_penalty(tall, norm), norm.norm(tall.weight) ** 2)
