"""Stacks of a residual block with the transforms of nflows."""

import pytest
import torch
from nflows import transforms as nf
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet

from pyro_iresnet import ConvContraction, IResNetTransform, ResidualBlock

DIM = 4


def net(n_in, n_out):
    return ResidualNet(n_in, n_out, hidden_features=8)


MASK = torch.tensor([1.0, 0.0, 1.0, 0.0])
# Transforms of the whole space, by name. SQUASHED has the transforms of a part.
PLAIN = {
    "AdditiveCoupling": lambda: nf.AdditiveCouplingTransform(MASK, net),
    "AffineCoupling": lambda: nf.AffineCouplingTransform(MASK, net),
    "PiecewiseLinearCoupling": lambda: nf.PiecewiseLinearCouplingTransform(
        MASK, net, tails="linear", tail_bound=5.0
    ),
    "PiecewiseQuadraticCoupling": lambda: nf.PiecewiseQuadraticCouplingTransform(
        MASK, net, tails="linear", tail_bound=5.0
    ),
    "PiecewiseCubicCoupling": lambda: nf.PiecewiseCubicCouplingTransform(
        MASK, net, tails="linear", tail_bound=5.0
    ),
    "PiecewiseRationalQuadraticCoupling": lambda: nf.PiecewiseRationalQuadraticCouplingTransform(
        MASK, net, tails="linear", tail_bound=5.0
    ),
    "MaskedAffineAutoregressive": lambda: nf.MaskedAffineAutoregressiveTransform(DIM, 16),
    "MaskedPiecewiseQuadraticAutoregressive": (
        lambda: nf.MaskedPiecewiseQuadraticAutoregressiveTransform(
            DIM, 16, tails="linear", tail_bound=5.0
        )
    ),
    "MaskedPiecewiseRationalQuadraticAutoregressive": (
        lambda: nf.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            DIM, 16, tails="linear", tail_bound=5.0
        )
    ),
    "PiecewiseLinearCDF": lambda: nf.PiecewiseLinearCDF([DIM], tails="linear"),
    "PiecewiseCubicCDF": lambda: nf.PiecewiseCubicCDF([DIM], tails="linear"),
    "PiecewiseQuadraticCDF": lambda: nf.PiecewiseQuadraticCDF([DIM], tails="linear"),
    "PiecewiseRationalQuadraticCDF": lambda: nf.PiecewiseRationalQuadraticCDF(
        [DIM], tails="linear"
    ),
    "ActNorm": lambda: nf.ActNorm(DIM),
    "BatchNorm": lambda: nf.BatchNorm(DIM),
    "LULinear": lambda: nf.LULinear(DIM),
    "QRLinear": lambda: nf.QRLinear(DIM, num_householder=3),
    "SVDLinear": lambda: nf.SVDLinear(DIM, num_householder=2),
    "HouseholderSequence": lambda: nf.HouseholderSequence(DIM, 3),
    "Permutation": lambda: nf.Permutation(torch.tensor([2, 0, 3, 1])),
    "RandomPermutation": lambda: nf.RandomPermutation(DIM),
    "ReversePermutation": lambda: nf.ReversePermutation(DIM),
    # The log-determinant jumps where a row crosses the kink, which no gradient sees.
    "LeakyReLU": lambda: nf.LeakyReLU(0.8),
    "LogTanh": lambda: nf.LogTanh(),
    "PointwiseAffine": lambda: nf.PointwiseAffineTransform(torch.tensor(1.0), torch.tensor(2.0)),
    "Identity": lambda: nf.IdentityTransform(),
    "Inverse": lambda: nf.InverseTransform(IResNetTransform(DIM)),
    "Composite": lambda: nf.CompositeTransform([nf.LULinear(DIM), IResNetTransform(DIM)]),
}


def trained(flow, data, *context, steps=3, rate=2e-3):
    optimizer = torch.optim.Adam(flow.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = -flow.log_prob(data, *context).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    flow.eval()
    return losses


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("name", PLAIN)
def test_stacks_with_transform(name, first):
    other, block = PLAIN[name](), IResNetTransform(DIM, 16)
    order = [other, block] if first else [block, other]
    flow = Flow(nf.CompositeTransform(order), StandardNormal([DIM]))
    data = 0.5 + 0.7 * torch.randn(64, DIM)
    losses = trained(flow, data)
    assert min(losses[1:]) < losses[0]
    assert any(p.grad.abs().sum() > 0 for p in block.parameters() if p.grad is not None)
    with torch.no_grad():
        noise, logabsdet = flow._transform(data)
        back, inverse_logabsdet = flow._transform.inverse(noise)
    # Some splines of nflows invert no better.
    torch.testing.assert_close(back, data, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(noise, flow.transform_to_noise(data))
    samples, log_prob = flow.sample_and_log_prob(5)
    torch.testing.assert_close(flow.log_prob(samples), log_prob, atol=1e-4, rtol=1e-4)


SQUASHED = {
    "Sigmoid": lambda: nf.Sigmoid(),
    "Tanh": lambda: nf.Tanh(),
    "CompositeCDF": lambda: nf.CompositeCDFTransform(
        nf.Sigmoid(), nf.PiecewiseRationalQuadraticCDF([DIM])
    ),
    # Splines without tails live on the unit box.
    "MaskedPiecewiseLinearAutoregressive": lambda: nf.CompositeTransform(
        [nf.Sigmoid(), nf.MaskedPiecewiseLinearAutoregressiveTransform(8, DIM, 16)]
    ),
    "MaskedPiecewiseCubicAutoregressive": lambda: nf.CompositeTransform(
        [nf.Sigmoid(), nf.MaskedPiecewiseCubicAutoregressiveTransform(8, DIM, 16)]
    ),
}


@pytest.mark.parametrize("name", SQUASHED)
def test_before_squashing(name):
    transform = nf.CompositeTransform([IResNetTransform(DIM, 16), SQUASHED[name]()])
    inputs = torch.randn(16, DIM)
    outputs, logabsdet = transform(inputs)
    back, inverse_logabsdet = transform.inverse(outputs)
    torch.testing.assert_close(back, inputs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-4, rtol=1e-4)


def test_behind_logit():
    transform = nf.CompositeTransform([nf.Logit(), IResNetTransform(DIM, 16)])
    inputs = torch.rand(16, DIM).clamp(0.05, 0.95)
    outputs, logabsdet = transform(inputs)
    back, inverse_logabsdet = transform.inverse(outputs)
    torch.testing.assert_close(back, inputs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-5, rtol=1e-5)


def test_beside_context_gate():
    # The gate of nflows has a right log-determinant for one feature only.
    block = IResNetTransform(1, 16, context_features=1)
    transform = nf.CompositeTransform([block, nf.GatedLinearUnit()])
    inputs, context = torch.randn(16, 1), torch.randn(16, 1)
    outputs, logabsdet = transform(inputs, context)
    back, inverse_logabsdet = transform.inverse(outputs, context)
    torch.testing.assert_close(back, inputs, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-8, rtol=1e-8)


def images(channels):
    def of(size):
        return ResidualBlock(ConvContraction((channels, size, size), [8]))

    return of


def test_multiscale_images():
    transform = nf.MultiscaleCompositeTransform(num_transforms=2)
    first = nf.CompositeTransform(
        [
            nf.SqueezeTransform(),
            nf.ActNorm(4),
            IResNetTransform.from_block(images(4)(4)),
            nf.OneByOneConvolution(4),
        ]
    )
    shape = transform.add_transform(first, [4, 4, 4])
    last = IResNetTransform.from_block(images(shape[0])(4))
    transform.add_transform(last, shape)
    inputs = torch.randn(6, 1, 8, 8)
    transform(inputs)
    transform.eval()
    outputs, logabsdet = transform(inputs)
    assert outputs.shape == (6, 64)
    assert logabsdet.shape == (6,)
    back, inverse_logabsdet = transform.inverse(outputs)
    torch.testing.assert_close(back, inputs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-6, rtol=1e-6)
    flow = Flow(transform, StandardNormal([64]))
    assert flow.log_prob(inputs).shape == (6,)
    assert flow.sample(2).shape == (2, 1, 8, 8)


# ---------------------------------------------------------------------------- context


def test_many_contexts():
    transform = IResNetTransform(DIM, 16, context_features=3)
    inputs, context = torch.randn(1, DIM).expand(7, DIM), torch.randn(7, 3)
    outputs, logabsdet = transform(inputs, context)
    for i in range(7):
        alone, logdet = transform(inputs[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(alone[0], outputs[i])
        torch.testing.assert_close(logdet[0], logabsdet[i])
    assert outputs.std(0).min() > 0
    back, inverse_logabsdet = transform.inverse(outputs, context)
    torch.testing.assert_close(back, inputs, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-8, rtol=1e-8)


def test_conditional_base():
    flow = Flow(
        nf.CompositeTransform([nf.ActNorm(DIM), IResNetTransform(DIM, 16, context_features=5)]),
        ConditionalDiagonalNormal([DIM], torch.nn.Linear(5, 2 * DIM)),
        embedding_net=torch.nn.Linear(2, 5),
    )
    context = torch.randn(64, 2)
    data = context @ torch.randn(2, DIM) + 0.3 * torch.randn(64, DIM)
    losses = trained(flow, data, context, steps=30, rate=5e-3)
    assert losses[-1] < losses[0]
    samples, log_prob = flow.sample_and_log_prob(3, context)
    assert samples.shape == (64, 3, DIM)
    torch.testing.assert_close(
        flow.log_prob(samples[:, 1], context), log_prob[:, 1], atol=1e-6, rtol=1e-6
    )
    noise = flow.transform_to_noise(data, context)
    assert noise.shape == data.shape
