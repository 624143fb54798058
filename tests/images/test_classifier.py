"""The classifier: its inverse with a certificate, and the loss of classes and density."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from pyro_iresnet import CayleyBlock, FixedPoint, IResNetTransform, ResidualBlock, certificate
from pyro_iresnet.blocks import Block
from pyro_iresnet.coordinates import DiagonalScale
from pyro_iresnet.errors import (
    ArgumentError,
    ArgumentTypeError,
    ContractionError,
    InversionError,
)
from pyro_iresnet.hosts.nflows import IResNetComposite, PatientActNorm
from pyro_iresnet.images import IResNetClassifier, classifier
from pyro_iresnet.norms import Gram

SHAPES = [(1, 8, 8), (3, 8, 12), (2, 7, 5), (1, 16, 16)]


def small(shape=(1, 8, 8), **options):
    return IResNetClassifier(shape, 10, blocks_per_scale=2, hidden_channels=12, **options)


def started(net, shape=(1, 8, 8)):
    net(torch.randn(40, *shape))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net.eval()


def test_hooks_act():
    net, seen = started(small()), []
    blocks = [m for m in net.modules() if isinstance(m, IResNetTransform)]
    for block in blocks:
        block.register_forward_hook(lambda *_: seen.append(1))
    net(torch.randn(3, 1, 8, 8))
    assert len(seen) == len(blocks)


def test_certificate_of_images():
    net, images = started(small(lipschitz=0.5)), torch.randn(10, 1, 8, 8)
    found = certificate(net.train(), images)
    wholes = [row for row in found.rows if row.layer == "g"]
    assert found.holds
    assert len(wholes) == 2
    assert all(0 < row.stretch <= 0.5 for row in wholes)
    assert net.training


@pytest.mark.parametrize("lipschitz", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_reconstruction(shape, channels, lipschitz):
    net = started(small(shape, channels=channels, lipschitz=lipschitz), shape)
    images = torch.randn(6, *shape)
    found = net.reconstruct(net.features(images))
    error = (found.images - images).flatten(1).norm(dim=1)
    assert (error <= found.error_bound).all()
    assert (found.error_bound < 1e-6).all()
    assert (error < 1e-11).all()


@pytest.mark.parametrize("log_scale", [0.0, -1.0, -3.0])
def test_bound_where_errors_grow(log_scale, monkeypatch):
    # With g(x) = -0.9 x an error of a block grows by 10 in each block before it.
    net = IResNetClassifier(
        (1, 3, 3), 2, lipschitz=0.9, blocks_per_scale=[3], hidden_channels=[], norm=Gram()
    ).eval()
    for module in net.modules():
        if isinstance(module, IResNetTransform):
            module.block.solver = FixedPoint()
            (layer,) = module.block.contraction.layers
            with torch.no_grad():
                layer.bias.zero_()
                layer.weight.zero_()
                layer.weight[range(len(layer.weight)), range(len(layer.weight)), 1, 1] = -5.0
        if isinstance(module, PatientActNorm):
            with torch.no_grad():
                module.log_scale.fill_(log_scale)
    images = torch.randn(4, 1, 3, 3)
    monkeypatch.setattr(classifier, "RTOL", 1e-2)
    found = net.reconstruct(net.features(images))
    error = (found.images - images).flatten(1).norm(dim=1)
    assert (error <= found.error_bound).all()
    assert (error > 0.2 * found.error_bound).any()


def test_reconstruction_of_rounded_features():
    # The bound is about the preimage of the features given, in the dtype given.
    net = started(small(lipschitz=0.7).float().double())
    images = torch.randn(6, 1, 8, 8)
    net.float()
    features = net.features(images.float())
    net.double()
    exact, found = net.reconstruct(features.double()), net.float().reconstruct(features)
    error = (found.images - exact.images).flatten(1).norm(dim=1)
    assert (error <= found.error_bound + exact.error_bound).all()
    assert (found.images - images).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 12)])
def test_features_of_no_image(shape):
    net = started(small(shape, channels=4), shape)
    images = torch.randn(6, *shape)
    features = net.features(images)
    moved = features + 0.5 * torch.randn_like(features)
    found = net.reconstruct(moved)
    # The exact preimage of the features has padding that is not 0.
    apart = (net.features(found.images) - moved).flatten(1).norm(dim=1)
    assert (apart > 1.0).all()
    assert (found.error_bound > 0.1).all()


def test_features_stay_apart():
    # A block brings two images nearer by 1 - L at most, and an ActNorm by its smallest scale.
    net = started(small(lipschitz=0.5))
    a, b = torch.randn(2, 20, 1, 8, 8)
    least = 1.0
    for module in net.modules():
        if isinstance(module, Block):
            least *= 1 - module.lipschitz_bound().item()
        elif isinstance(module, PatientActNorm):
            least *= module.log_scale.exp().min().item()
    before = (a - b).flatten(1).norm(dim=1)
    apart = (net.features(a) - net.features(b)).flatten(1).norm(dim=1)
    assert 0 < least < 1
    assert (apart >= least * before).all()


def test_trains_on_digits():
    digits = load_digits()
    images = torch.from_numpy(digits.images)[:, None] / 8 - 1
    labels = torch.from_numpy(digits.target)
    net = IResNetClassifier((1, 8, 8), 10, blocks_per_scale=2, hidden_channels=24)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(20):
        rows = torch.randint(1500, (128,))
        loss = functional.cross_entropy(net(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (net(images[1500:]).argmax(1) == labels[1500:]).double().mean()
        found = net.eval().reconstruct(net.features(images[1500:1520]))
    assert right > 0.7
    assert (found.images - images[1500:1520]).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 3)])
def test_density(shape):
    net = small(shape)
    started(net, shape)
    images = torch.randn(1, *shape)
    z, log_det = net.features_and_log_det(images)
    size = math.prod(shape)
    jacobian = torch.func.jacrev(net.features)(images).reshape(size, size)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    # Eight fixed probes.
    assert abs(log_det[0] - expected) < 0.15
    labels = torch.tensor([3])
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum() + log_det[0]
    wanted = functional.cross_entropy(net(images), labels) - 0.5 / size * log_prob
    torch.testing.assert_close(net.hybrid_loss(images, labels, 0.5), wanted)
    plain = functional.cross_entropy(net(images), labels)
    torch.testing.assert_close(net.hybrid_loss(images, labels, 0.0), plain)


def test_hybrid_gradient():
    net = small(norm=Gram())
    net.hybrid_loss(torch.randn(20, 1, 8, 8), torch.randint(10, (20,))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_refuses_density_of_widened_images():
    with pytest.raises(ArgumentError, match="channels=None"):
        small(channels=4).hybrid_loss(torch.randn(20, 1, 8, 8), torch.randint(10, (20,)))


class InCoordinates(IResNetClassifier):
    """A classifier with other blocks, for which the bound is not proven."""

    def make_block(self, contraction):
        return IResNetTransform.from_block(
            ResidualBlock(contraction, coordinates=DiagonalScale(5.0))
        )


class OfCayley(IResNetClassifier):
    """As above."""

    def make_block(self, contraction):
        return IResNetTransform.from_block(CayleyBlock(contraction))


class Nested(IResNetClassifier):
    """As above."""

    def make_block(self, contraction):
        return IResNetComposite([super().make_block(contraction)])


@pytest.mark.parametrize("kind", [InCoordinates, OfCayley, Nested])
def test_refuses_blocks_without_a_proof(kind):
    net = started(kind((1, 8, 8), 10, blocks_per_scale=1, hidden_channels=4))
    features = net.features(torch.randn(2, 1, 8, 8))
    with pytest.raises(ContractionError, match="Expected residual blocks without coordinates"):
        net.reconstruct(features)


@pytest.mark.parametrize("value", [math.nan, -1e3])
def test_refuses_broken_scales(value):
    net = started(small())
    features = net.features(torch.randn(2, 1, 8, 8))
    with torch.no_grad():
        net.scales[0][1].log_scale[0] = value
    with pytest.raises(InversionError, match="NaN or infinite"):
        net.reconstruct(features)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.int64])
@pytest.mark.parametrize("classes", [100, 256, 300])
def test_labels_of_narrow_dtypes(dtype, classes):
    net = IResNetClassifier((1, 4, 4), classes, blocks_per_scale=1, hidden_channels=4)
    images, labels = torch.randn(20, 1, 4, 4), torch.arange(20) * 5
    net(images)
    expected = net.hybrid_loss(images, labels, 0.0)
    torch.testing.assert_close(net.hybrid_loss(images, labels.to(dtype), 0.0), expected)


def test_refuses_state_of_other_images():
    for state, other in (((1, 16, 8), (1, 8, 16)), ((3, 8, 8), (1, 8, 8))):
        saved = small(state).state_dict()
        small(state).load_state_dict(saved)
        wide = {"channels": 3} if state[0] == 3 else {}
        with pytest.raises(RuntimeError, match="shape is"):
            small(other, **wide).load_state_dict(saved)


LABELS = [
    (None, ArgumentTypeError),
    ([1, 2], ArgumentTypeError),
    (torch.zeros(2), ArgumentTypeError),
    (torch.zeros(3, dtype=torch.int64), ArgumentError),
    (torch.tensor([1, 10]), ArgumentError),
    (torch.tensor([-100, 1]), ArgumentError),
]


@pytest.mark.parametrize(("labels", "error"), LABELS)
def test_refuses_labels(labels, error):
    net = started(small())
    with pytest.raises(error, match="Expected labels to be 2 integers from 0 to 9"):
        net.hybrid_loss(torch.randn(2, 1, 8, 8), labels)


WRONG = [
    (lambda net: net.reconstruct(torch.randn(4, 4, 4)), ArgumentError, "features of shape"),
    (lambda net: net.reconstruct(torch.randn(2, 3, 4, 4, 4)), ArgumentError, "features of shape"),
    (lambda net: net(torch.randn(3, 1, 8, 9)), ArgumentError, "images"),
    (lambda net: net(torch.randn(1, 8, 8)), ArgumentError, "batch, 1, 8, 8"),
    (lambda net: net(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)), ArgumentTypeError, "images"),
    (lambda net: net(torch.randn(3, 1, 8, 8).float()), ArgumentTypeError, "images"),
    (lambda net: net.reconstruct(torch.randn(3, 4, 4, 5)), ArgumentError, "features"),
    (lambda net: net.reconstruct(torch.full((3, 4, 4, 4), torch.nan)), InversionError, "NaN"),
    (lambda net: small(lipschitz=1.0), ArgumentError, "lipschitz"),
    (lambda net: small((3, 8, 8), channels=2), ArgumentError, "channels of at least 3"),
    (lambda net: IResNetClassifier((8, 8), 10), ArgumentError, "shape"),
    (lambda net: IResNetClassifier((1, 8, 8), 0), ArgumentError, "num_classes"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_refusals(call, error, message):
    net = started(small())
    with pytest.raises(error, match=message):
        call(net)
