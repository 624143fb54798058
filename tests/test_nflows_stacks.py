"""Among nflows' own transforms, before and behind a residual block."""

import pickle

import pytest
import torch
from nflows import transforms as nf
from nflows.distributions import ConditionalDiagonalNormal, StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from torch.utils.data import DataLoader, TensorDataset

from pyro_iresnet import (
    ArgumentError,
    ArgumentTypeError,
    ConvContraction,
    IResNetTransform,
    ResidualBlock,
)
from pyro_iresnet.flows import PatientActNorm, conditional_iresnet_flow, iresnet_flow

DIM = 4


def net(n_in, n_out):
    return ResidualNet(n_in, n_out, hidden_features=8)


MASK = torch.tensor([1.0, 0.0, 1.0, 0.0])
# Whatever maps all of the space into itself, by name; what lives on a part of it stands below.
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
    "LeakyReLU": lambda: nf.LeakyReLU(),
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
def test_it_stacks(name, first):
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
    # Some of nflows' splines invert no better.
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
    # These two have no tails, so they live on the unit box.
    "MaskedPiecewiseLinearAutoregressive": lambda: nf.CompositeTransform(
        [nf.Sigmoid(), nf.MaskedPiecewiseLinearAutoregressiveTransform(8, DIM, 16)]
    ),
    "MaskedPiecewiseCubicAutoregressive": lambda: nf.CompositeTransform(
        [nf.Sigmoid(), nf.MaskedPiecewiseCubicAutoregressiveTransform(8, DIM, 16)]
    ),
}


@pytest.mark.parametrize("name", SQUASHED)
def test_it_stands_before_what_leaves_the_real_line(name):
    transform = nf.CompositeTransform([IResNetTransform(DIM, 16), SQUASHED[name]()])
    inputs = torch.randn(16, DIM)
    outputs, logabsdet = transform(inputs)
    back, inverse_logabsdet = transform.inverse(outputs)
    torch.testing.assert_close(back, inputs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-4, rtol=1e-4)


def test_it_stands_behind_a_logit():
    transform = nf.CompositeTransform([nf.Logit(), IResNetTransform(DIM, 16)])
    inputs = torch.rand(16, DIM).clamp(0.05, 0.95)
    outputs, logabsdet = transform(inputs)
    back, inverse_logabsdet = transform.inverse(outputs)
    torch.testing.assert_close(back, inputs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet, atol=1e-5, rtol=1e-5)


def test_it_stands_beside_a_gate_that_takes_the_context():
    # nflows' own log-determinant of it holds for one feature only.
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


def test_images_squeezed_convolved_and_split():
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


def test_one_sample_under_many_contexts():
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


def test_a_conditional_base_and_an_embedding():
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


# ---------------------------------------------------------------------------- builders


def test_a_ready_made_flow_standardises_and_fits():
    torch.manual_seed(0)
    flow = iresnet_flow(2, 4, hidden_features=32)
    data = torch.tensor([100.0, -3.0]) + torch.randn(512, 2) * torch.tensor([20.0, 0.01])
    with torch.no_grad():
        noise = flow.transform_to_noise(data)
    torch.testing.assert_close(noise.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(noise.std(0), torch.ones(2), atol=1e-6, rtol=0)
    trained(flow, data, steps=20, rate=5e-3)
    expected = torch.distributions.Normal(data.mean(0), data.std(0)).log_prob(data).sum(1).mean()
    assert flow.log_prob(data).mean() > expected - 0.1
    assert flow.sample(3).shape == (3, 2)


def test_a_ready_made_conditional_flow_follows_its_context():
    torch.manual_seed(0)
    flow = conditional_iresnet_flow(
        2, 3, 3, hidden_features=32, embedding_net=torch.nn.Linear(1, 3)
    )
    context = torch.randn(512, 1)
    data = torch.cat([2 * context, -context], dim=1) + 0.3 * torch.randn(512, 2)
    losses = trained(flow, data, context, steps=150, rate=5e-3)
    # Of a normal distribution that knows no context: 3.6 nats; of the truth: 0.43.
    assert losses[-1] < 1.5
    samples = flow.sample(200, torch.tensor([[1.0], [-1.0]]))
    means = samples.mean(1)
    assert means[0, 0] > 1
    assert means[1, 0] < -1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: iresnet_flow(0), "features"),
        (lambda: iresnet_flow(2, 0), "num_blocks"),
        (lambda: iresnet_flow(2, lipschitz=1.0), "lipschitz"),
        (lambda: conditional_iresnet_flow(2, 0), "context_features"),
    ],
)
def test_values_out_of_range_are_named(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: iresnet_flow(2, between=3), "between"),
        (lambda: conditional_iresnet_flow(2, 3, embedding_net=5), "embedding_net"),
        (lambda: iresnet_flow("2"), "features"),
    ],
)
def test_wrong_types_are_named(make, words):
    with pytest.raises(ArgumentTypeError, match=words):
        make()


def test_without_anything_between():
    flow = iresnet_flow(3, 2, between=None)
    assert len(flow._transform._transforms) == 2


# ---------------------------------------------------------------------------- processes, dtypes


class Scored(torch.utils.data.Dataset):
    """Rows with their log-density under a flow, computed in the worker."""

    def __init__(self, flow, rows):
        self.flow, self.rows = flow, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        with torch.no_grad():
            return self.rows[i], self.flow.log_prob(self.rows[i : i + 1])[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_in_the_workers_of_a_loader():
    flow = iresnet_flow(3, 2, hidden_features=8)
    rows = torch.randn(12, 3)
    flow.log_prob(rows)
    flow.eval()
    loader = DataLoader(Scored(flow, rows), batch_size=4, num_workers=2)
    found = torch.cat([log_prob for _, log_prob in loader])
    torch.testing.assert_close(found, flow.log_prob(rows).detach())
    for (batch,) in DataLoader(TensorDataset(rows), batch_size=4, num_workers=1):
        assert flow.log_prob(batch).shape == (4,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flow_of_either_dtype_pickles(dtype):
    torch.set_default_dtype(torch.float32)
    flow = iresnet_flow(3, 2, hidden_features=8).to(dtype)
    rows = torch.randn(64, 3, dtype=dtype)
    trained(flow, rows)
    twin = pickle.loads(pickle.dumps(flow))
    assert torch.equal(twin.log_prob(rows), flow.log_prob(rows))
    assert flow.log_prob(rows).dtype == dtype
    noise, _ = flow._transform(rows)
    back, _ = flow._transform.inverse(noise)
    torch.testing.assert_close(back, rows, atol=1e-3 if dtype == torch.float32 else 1e-7, rtol=0)


def test_a_ready_made_flow_waits_for_enough_rows():
    rows = 5 + 3 * torch.randn(200, 2)
    flow = iresnet_flow(2, 2, hidden_features=8)
    flow.log_prob(rows[:2])
    norms = [m for m in flow.modules() if isinstance(m, PatientActNorm)]
    assert len(norms) == 3
    assert not any(m.initialized or m.log_scale.any() or m.shift.any() for m in norms)
    flow.log_prob(rows)
    assert all(m.initialized for m in norms)
    out, _ = norms[0](rows)
    assert torch.allclose(out.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(out.std(0), torch.ones(2), atol=1e-4)
    before = {k: v.clone() for k, v in flow.state_dict().items()}
    flow.log_prob(10 * rows)
    assert all(bool((v == before[k]).all()) for k, v in flow.state_dict().items())


def test_what_was_trained_before_enough_rows_came_is_kept():
    norm = PatientActNorm(2)
    norm(torch.randn(8, 2))
    with torch.no_grad():
        norm.log_scale.fill_(0.5)
    norm(5 + 3 * torch.randn(100, 2))
    assert norm.initialized
    assert bool((norm.log_scale == 0.5).all())
    assert not norm.shift.any()


def test_constant_columns_and_images_have_a_start():
    norm = PatientActNorm(3)
    x = torch.cat([torch.full((50, 1), 7.0), 4 * torch.randn(50, 2)], 1)
    out, logabsdet = norm(x)
    assert out.isfinite().all()
    assert logabsdet.isfinite().all()
    assert norm.log_scale[0] == 0
    assert torch.allclose(norm.inverse(out)[0], x, atol=1e-4)
    images = PatientActNorm(3)
    pictures = torch.randn(4, 3, 5, 5) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 1
    out, _ = images(pictures)
    assert torch.allclose(out.std((0, 2, 3)), torch.ones(3), atol=1e-2)
