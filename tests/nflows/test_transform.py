"""Protocol of transforms in nflows."""

import copy
import pickle

import pytest
import torch
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    ActNorm,
    CompositeTransform,
    InverseTransform,
    LULinear,
    RandomPermutation,
)

from pyro_iresnet import (
    ConvContraction,
    DenseContraction,
    InversionError,
    IResNetTransform,
    ResidualBlock,
    Roulette,
)
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.hosts.nflows import IResNetComposite

from .. import zoo

NAMES = list(zoo.NFLOWS_TRANSFORMS)


@pytest.mark.parametrize("name", NAMES)
def test_identity_with_inverse(name):
    transform = zoo.NFLOWS_TRANSFORMS[name]()
    inputs = torch.randn(6, zoo.DIM)
    for order in (
        [InverseTransform(transform), transform],
        [transform, InverseTransform(transform)],
    ):
        outputs, logabsdet = CompositeTransform(order)(inputs)
        torch.testing.assert_close(outputs, inputs, atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(logabsdet, torch.zeros(6), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_logdet(name):
    transform = zoo.NFLOWS_TRANSFORMS[name]()
    inputs = torch.randn(6, zoo.DIM)
    outputs, logabsdet = transform(inputs)
    sums = torch.autograd.functional.jacobian(lambda x: transform(x)[0].sum(0), inputs)
    jacobian = sums.transpose(0, 1)
    assert outputs.shape == inputs.shape
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(jacobian).logabsdet)


def stacked():
    return CompositeTransform(
        [
            ActNorm(zoo.DIM),
            IResNetTransform(zoo.DIM),
            LULinear(zoo.DIM),
            RandomPermutation(zoo.DIM),
            IResNetTransform(zoo.DIM),
        ]
    )


def trained(flow, data, steps):
    """Train by Adam on the negative log-likelihood, and return the losses."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = -flow.log_prob(data).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_trains_and_samples():
    flow = Flow(stacked(), StandardNormal([zoo.DIM]))
    data = 2 + 0.5 * torch.randn(128, zoo.DIM)
    losses = trained(flow, data, 20)
    assert losses[-1] < losses[0]
    flow.eval()
    samples = flow.sample(10)
    assert samples.shape == (10, zoo.DIM)
    samples, log_prob = flow.sample_and_log_prob(10)
    torch.testing.assert_close(flow.log_prob(samples), log_prob, atol=1e-7, rtol=1e-7)
    noise = flow.transform_to_noise(data)
    assert noise.shape == data.shape


def test_trains_inverse():
    flow = Flow(InverseTransform(stacked()), StandardNormal([zoo.DIM]))
    losses = trained(flow, 0.5 * torch.randn(64, zoo.DIM), 5)
    assert losses[-1] < losses[0]


def test_under_context():
    context = torch.randn(6, 3)
    transform = IResNetTransform(zoo.DIM, 16, context_features=3)
    inputs = torch.randn(6, zoo.DIM)
    outputs, logabsdet = transform(inputs, context)
    other, _ = transform(inputs, context + 1)
    assert not torch.allclose(outputs, other)
    back, inverse_logabsdet = transform.inverse(outputs, context)
    torch.testing.assert_close(back, inputs, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-8, rtol=1e-8)
    with pytest.raises(ArgumentError, match="context of size 3; got none"):
        transform(inputs)


def test_mixes_conditional_transforms():
    transform = CompositeTransform(
        [
            IResNetTransform(zoo.DIM, 16, context_features=4),
            LULinear(zoo.DIM),
            IResNetTransform(zoo.DIM, 16),
        ]
    )
    flow = Flow(
        transform,
        ConditionalDiagonalNormal([zoo.DIM], torch.nn.Linear(4, 2 * zoo.DIM)),
        embedding_net=torch.nn.Linear(2, 4),
    )
    context = torch.randn(6, 2)
    loss = -flow.log_prob(torch.randn(6, zoo.DIM), context).mean()
    loss.backward()
    assert all(p.grad is not None for p in flow._embedding_net.parameters())
    assert flow.sample(7, context).shape == (6, 7, zoo.DIM)
    samples, log_prob = flow.sample_and_log_prob(2, context)
    torch.testing.assert_close(
        flow.log_prob(samples[:, 0], context), log_prob[:, 0], atol=1e-7, rtol=1e-7
    )


def test_from_block():
    block = zoo.block(logdet=Roulette())
    assert IResNetTransform.from_block(block).block is block


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_and_state(duplicate):
    transform = IResNetTransform(zoo.DIM)
    inputs = torch.randn(6, zoo.DIM)
    transform(inputs)[1].sum().backward()
    twin = duplicate(transform)
    torch.testing.assert_close(twin(inputs), transform(inputs))
    fresh = IResNetTransform(zoo.DIM)
    fresh.load_state_dict(transform.state_dict())
    torch.testing.assert_close(fresh(inputs), transform(inputs))


def test_refuses_nan():
    inputs = torch.randn(6, zoo.DIM)
    inputs[4, 0] = float("nan")
    with pytest.raises(InversionError, match=r"first at \[4\]"):
        IResNetTransform(zoo.DIM).inverse(inputs)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        (torch.zeros(5, zoo.DIM + 1, dtype=torch.float64), ArgumentError),
        (torch.zeros(5, zoo.DIM, dtype=torch.float32), ArgumentTypeError),
        ([0.0] * zoo.DIM, ArgumentTypeError),
    ],
    ids=["shape", "dtype", "list"],
)
def test_errors_name_inputs(direction, inputs, error):
    with pytest.raises(error, match="Expected inputs "):
        getattr(IResNetTransform(zoo.DIM), direction)(inputs)


@pytest.mark.parametrize("direction", ["forward", "inverse", "encode", "decode"])
@pytest.mark.parametrize(
    ("event", "shape", "remedy"),
    [
        ((4,), (4,), r"inputs\[None\]\.$"),
        ((4,), (2, 3, 4), r"each row is an event, pass inputs\.flatten\(0, -2\).* ConvContraction"),
        ((2, 4, 4), (2, 4, 4), r"inputs\[None\]\.$"),
        ((2, 4, 4), (5, 3, 2, 4, 4), r"the batch: inputs\.flatten\(0, -4\)\.$"),
    ],
)
def test_takes_one_batch_dimension(direction, event, shape, remedy):
    g = ConvContraction(event, [4]) if len(event) == 3 else DenseContraction(*event)
    transform = IResNetTransform.from_block(ResidualBlock(g))
    with pytest.raises(ArgumentError, match=f"one batch dimension.*{remedy}"):
        getattr(transform, direction)(torch.randn(shape))


def test_tells_rows_from_images():
    stack = IResNetComposite([IResNetTransform(4)])
    with pytest.raises(ArgumentError, match="An image takes a block of ConvContraction"):
        stack(torch.randn(5, 2, 4, 4))


def test_encoding_takes_no_jacobian(monkeypatch):
    transform, x = IResNetTransform(20, [8]), torch.randn(4, 20)
    expected = transform(x)[0]
    monkeypatch.setattr(ResidualBlock, "evaluate", lambda *_: pytest.fail("a Jacobian"))
    assert torch.equal(transform.encode(x), expected)
