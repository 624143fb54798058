"""What hangs on the call of a layer: hooks that set weights act, all else is refused."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from pyro_iresnet import (
    ConvContraction,
    DenseContraction,
    IResNet,
    IResNetTransform,
    ResidualBlock,
    iresnet,
    iresnet_stack,
    wrap,
)
from pyro_iresnet.activations import LipSwish, Sine, Tanh
from pyro_iresnet.contractions import Contraction
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError

CONTRACTIONS = {
    "dense": (lambda: DenseContraction(3, [8]), (5, 3)),
    "conv": (lambda: ConvContraction((1, 4, 4), [8]), (5, 1, 4, 4)),
}
over_contractions = pytest.mark.parametrize(
    ("make", "shape"), CONTRACTIONS.values(), ids=CONTRACTIONS
)


def prune_layer(layer):
    prune.random_unstructured(layer, "weight", 0.5)


def prune_twice(layer):
    prune.random_unstructured(layer, "weight", 0.3)
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.random_unstructured(layer, "bias", 0.3)


def weight_norm(layer):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer, "weight")


def spectral_norm(layer):
    nn.utils.spectral_norm(layer, "weight")


def new_weight_norm(layer):
    parametrizations.weight_norm(layer, "weight")


class Bent(nn.Module):
    def forward(self, weight):
        return weight.tanh()


def own_parametrization(layer):
    parametrize.register_parametrization(layer, "weight", Bent())


WEIGHTS = [prune_layer, prune_twice, weight_norm, spectral_norm]
PARAMETRIZED = [new_weight_norm, own_parametrization]


@pytest.mark.parametrize("change", WEIGHTS + PARAMETRIZED)
@over_contractions
def test_weight_hooks_act(make, shape, change):
    torch.manual_seed(0)
    g, x = make(), torch.randn(shape)
    for layer in g.layers:
        change(layer)
    g.eval()
    # The reference is a network whose stored weights are the weights that the hooks set.
    plain = make().eval()
    for layer, other in zip(g.layers, plain.layers, strict=True):
        if layer._forward_pre_hooks:
            layer(torch.zeros(1, *layer.weight.shape[1:]))
        other.weight.data.copy_(layer.weight.detach())
        other.bias.data.copy_(layer.bias.detach())
    torch.testing.assert_close(g(x), plain(x))
    block, other = ResidualBlock(g).eval(), ResidualBlock(plain).eval()
    torch.testing.assert_close(block.forward_and_log_det(x), other.forward_and_log_det(x))
    torch.testing.assert_close(block.inverse(x), other.inverse(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", WEIGHTS + PARAMETRIZED)
@over_contractions
def test_weight_hooks_train(make, shape, change):
    torch.manual_seed(0)
    g, x = make(), torch.randn(shape)
    for layer in g.layers:
        change(layer)
    transform = IResNet(ResidualBlock(g))
    base = dist.Normal(torch.zeros(shape[1:]), torch.ones(shape[1:])).to_event(len(shape) - 1)
    flow = dist.TransformedDistribution(base, [transform.inv])
    optimizer = torch.optim.Adam(transform.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = -flow.log_prob(x.clone()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in g.layers.parameters())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("outer", [iresnet, iresnet_stack, IResNetTransform])
def test_pruned_weights_load(outer):
    first, second = outer(2), outer(2)
    for flow in (first, second):
        for module in flow.modules():
            if isinstance(module, nn.Linear):
                prune_layer(module)
    second.load_state_dict(first.state_dict())
    x = torch.randn(50, 2)
    torch.testing.assert_close(second.eval()(x), first.eval()(x))


def add_forward_hook(module):
    module.register_forward_hook(lambda m, i, o: 0 * o)


def add_pre_hook(module):
    module.register_forward_pre_hook(lambda m, i: (0 * i[0],))


def add_backward_hook(module):
    module.register_full_backward_hook(lambda m, i, o: None)


def add_backward_pre_hook(module):
    module.register_full_backward_pre_hook(lambda m, o: None)


HOOKS = [add_forward_hook, add_pre_hook, add_backward_hook, add_backward_pre_hook]


@pytest.mark.parametrize("add", HOOKS)
@over_contractions
def test_refuses_hook_on_layer(make, shape, add):
    block, x = ResidualBlock(make()), torch.randn(shape)
    add(block.contraction.layers[1])
    calls = (block, block.forward_and_log_det, block.inverse, block.contraction)
    for call in (*calls, lambda _: block.lipschitz_bound()):
        with pytest.raises(ArgumentError, match=r"layers\[1\] without hooks.*add_\w+hook"):
            call(x)


@pytest.mark.parametrize("add", HOOKS[:2])
@pytest.mark.parametrize("where", ["activations[0]", "contraction", "block"])
def test_refuses_hook_above_layers(where, add):
    transform = iresnet(2, [8])
    block = transform.block
    modules = {
        "activations[0]": block.contraction.activations[0],
        "contraction": block.contraction,
        "block": block,
    }
    add(modules[where])
    for call in (transform, transform.inv, IResNetTransform.from_block(block)):
        with pytest.raises(ArgumentError, match="without hooks"):
            call(torch.randn(4, 2))


def test_refuses_hook_on_own_contraction():
    block = ResidualBlock(wrap(nn.Tanh(), lipschitz=0.99))
    add_forward_hook(block.contraction)
    with pytest.raises(ArgumentError, match="contraction without hooks"):
        block(torch.randn(4, 2))


def test_hook_inside_wrap_acts():
    block = ResidualBlock(wrap(nn.Tanh(), lipschitz=0.99))
    x = torch.randn(4, 2)
    add_forward_hook(block.contraction.module)
    torch.testing.assert_close(block(x), x)


class Adapter(nn.Linear):
    def forward(self, h):
        return super().forward(h) + 1.0


class Foreign(nn.Module):
    def __init__(self, like):
        super().__init__()
        self.base_layer = like

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, h):
        return self.base_layer(h) + 1.0


def patched(old):
    old.forward = lambda h: 0 * h
    return old


@pytest.mark.parametrize("swap", [lambda old: Adapter(2, 8), Foreign, patched])
def test_refuses_layer_with_own_forward(swap):
    transform = iresnet(2, [8])
    layers = transform.block.contraction.layers
    layers[0] = swap(layers[0])
    with pytest.raises(ArgumentError, match=r"layers\[0\] to compute as nn\.Linear"):
        transform(torch.randn(4, 2))


def test_refuses_missing_bias():
    transform = iresnet(2, [8])
    transform.block.contraction.layers[0] = nn.Linear(2, 8, bias=False)
    with pytest.raises(ArgumentError, match=r"layers\[0\] to have a bias"):
        transform(torch.randn(4, 2))


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"groups": 2}])
def test_refuses_other_convolution(options):
    g = ConvContraction((2, 4, 4), [8])
    g.layers[0] = nn.Conv2d(2, 8, 3, **options)
    with pytest.raises(ArgumentError, match=r"layers\[0\] with stride 1"):
        g(torch.randn(5, 2, 4, 4))


def test_refuses_contraction_with_own_forward():
    with pytest.raises(ArgumentTypeError, match="Halved to leave forward"):

        class Halved(DenseContraction):
            def forward(self, x, context=None):
                return 0.5 * super().forward(x, context)

    class Own(Contraction):
        """A contraction by automatic differentiation is called by its forward."""

        def forward(self, x, context=None):
            return 0.5 * x

        def lipschitz_bound(self):
            return torch.tensor(0.5)


@pytest.mark.parametrize("kind", [LipSwish, Sine, Tanh])
@pytest.mark.parametrize("method", ["forward", "value_and_slope"])
def test_refuses_half_an_activation(kind, method):
    with pytest.raises(ArgumentTypeError, match="Half to define"):
        type("Half", (kind,), {method: lambda self, x: x})


NETWORKS = {
    "batch norm": nn.BatchNorm1d(2),
    "batch norm of images": nn.BatchNorm2d(2),
    "synchronised": nn.SyncBatchNorm(2),
    "in eval mode": nn.BatchNorm1d(2).eval(),
    "tracked": nn.InstanceNorm1d(2, track_running_stats=True),
    "dropout": nn.Dropout(0.1),
    "alpha dropout": nn.AlphaDropout(0.1),
    "random slopes": nn.RReLU(),
}


@pytest.mark.parametrize("part", NETWORKS.values(), ids=NETWORKS)
def test_refuses_impure_network(part):
    with pytest.raises(ArgumentError, match=rf"module\.1.*{type(part).__name__}"):
        wrap(nn.Sequential(nn.Linear(2, 2), part), lipschitz=0.9)
    with pytest.raises(ArgumentError, match="Expected module to compute"):
        wrap(part, lipschitz=0.9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_refuses_moving_norm(norm, training):
    module = nn.Sequential(norm(nn.Linear(2, 2)), nn.Tanh()).train(training)
    with pytest.raises(ArgumentError, match=r"Expected module\.0.*spectral_norm"):
        wrap(module, lipschitz=0.9)


@pytest.mark.parametrize("part", [nn.Dropout(0.0), nn.InstanceNorm1d(2), nn.LayerNorm(2)])
def test_wraps_pure_network(part):
    module, x = nn.Sequential(nn.Linear(2, 2), part).double(), torch.randn(5, 2)
    torch.testing.assert_close(wrap(module, lipschitz=0.9)(x), module(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 4, 2),
        nn.Conv2d(2, 4, (3, 4)),
    ],
)
def test_refuses_convolutions_that_no_bound_is_for(layer):
    g = ConvContraction((2, 5, 5), [4])
    g.layers[0] = layer
    with pytest.raises(ArgumentError, match="odd sides, and padded by zeros or in a circle"):
        g(torch.randn(2, 2, 5, 5))
