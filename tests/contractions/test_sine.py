"""The sine with learned frequencies: slopes, limits, and the scales in the weights."""

import copy
from functools import partial

import pytest
import torch

from pyro_iresnet import (
    ConvContraction,
    DenseContraction,
    ResidualBlock,
    iresnet_flow,
    iresnet_stack,
)
from pyro_iresnet.activations import Sine, auto_activation
from pyro_iresnet.blocks import pack_blocks
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.logdet import Exact
from pyro_iresnet.options import BlockOptions

from .. import zoo

LIMITS = (0.2, 20.0)


def of_width(width, limits=LIMITS):
    activation = Sine(limits)
    activation.follow(width)
    with torch.no_grad():
        activation.raw_frequency.normal_(std=3.0)
    return activation


def plain_sines(g, x, context=None):
    """Compute a dense or convolutional network layer by layer, without scales in the weights."""
    shape = (-1,) + (1,) * (len(g.event_shape) - 1)
    *hidden, (_, last) = [w for w in g.normalized_weights() if w[0].endswith("weight")]
    modulations = None if context is None else g.conditioner(context)

    def affine(weight, bias, h):
        if len(g.event_shape) == 1:
            return h @ weight.T + bias
        side = weight.shape[-1] // 2
        return torch.nn.functional.conv2d(h, weight, bias, padding=side)

    for i, (_, weight) in enumerate(hidden):
        z = affine(weight.weight, g.layers[i].bias, x)
        if modulations is not None:
            z = z + modulations[i].shift.reshape(len(z), *shape)
        frequency = g.activations[i].frequency.reshape(shape)
        x = torch.sin(frequency * z) / frequency
        if modulations is not None:
            x = x * modulations[i].gate.reshape(len(z), *shape)
    return affine(last.weight, g.layers[-1].bias, x)


def moved(g):
    zoo.trained(g)
    with torch.no_grad():
        for activation in g.activations:
            activation.raw_frequency.normal_(std=2.0)
    return g


@pytest.mark.parametrize("context_dim", [None, zoo.CONTEXT])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_equals_plain_network(kind, context_dim):
    options = {"activation": Sine, "context_dim": context_dim}
    if kind == "dense":
        g, x = DenseContraction(4, [6, 7, 5], **options), torch.randn(10, 4)
    else:
        g, x = ConvContraction((2, 5, 4), [6, 3], **options), torch.randn(10, 2, 5, 4)
    moved(g)
    context = None if context_dim is None else torch.randn(10, context_dim)
    torch.testing.assert_close(g(x, context), plain_sines(g, x, context))
    frequencies = [activation.raw_frequency for activation in g.activations]
    found = torch.autograd.grad(g(x, context).square().sum(), frequencies)
    expected = torch.autograd.grad(plain_sines(g, x, context).square().sum(), frequencies)
    torch.testing.assert_close(found, expected)
    assert all(bool((grad != 0).all()) for grad in found)


def test_slope_of_every_frequency():
    activation = of_width(1000, (1e-3, 1e3))
    value, slope = activation.value_and_slope(torch.linspace(-50.0, 50.0, 1000))
    assert bool((slope.abs() <= 1).all())
    assert bool((value.abs() * activation.frequency <= 1 + 1e-12).all())


@pytest.mark.parametrize("raw", [-1e4, -90.0, 0.0, 90.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_frequencies_keep_their_limits(raw, dtype):
    activation = Sine(LIMITS).to(dtype)
    with torch.no_grad():
        activation.raw_frequency.fill_(raw)
    low, high = LIMITS
    frequency = activation.frequency.item()
    slack = 4 * torch.finfo(dtype).eps
    assert low * (1 - slack) <= frequency <= high * (1 + slack)
    assert bool(activation(torch.ones(3, dtype=dtype)).isfinite().all())


def test_spreads_over_units():
    frequency = DenseContraction(2, [50]).activations[0].frequency
    low, high = auto_activation(2)().frequencies
    assert len(frequency) == len(set(frequency.tolist())) == 50
    assert low < float(frequency.min()) < 2 * low
    assert high / 2 < float(frequency.max()) < high


@pytest.mark.parametrize(
    ("dim", "limits"),
    [(1, (0.3, 12)), (6, (0.3, 12)), (30, (0.3, 6)), (60, (0.3, 3)), (999, (0.2, 2))],
)
def test_range_follows_dimension(dim, limits):
    for activation in DenseContraction(dim, [8, 8]).activations:
        assert activation.frequencies == pytest.approx(limits)


@pytest.mark.parametrize("frequencies", [3.0, (1.0,), (1.0, 2.0, 3.0), "ab", None, (1.0, "b")])
def test_refuses_other_types(frequencies):
    with pytest.raises(ArgumentTypeError, match="frequencies"):
        Sine(frequencies)


@pytest.mark.parametrize("frequencies", [(2.0, 2.0), (2.0, 1.0), (0.0, 1.0), (1.0, float("inf"))])
def test_refuses_other_limits(frequencies):
    with pytest.raises(ArgumentError, match="frequencies"):
        Sine(frequencies)


def test_each_unit_trains():
    torch.manual_seed(0)
    flow = iresnet_flow(2, 2, hidden_features=[8, 8])
    before = {n: p.clone() for n, p in flow.named_parameters() if "frequency" in n}
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (-flow.log_prob(torch.randn(64, 2)).mean()).backward()
        optimizer.step()
    assert len(before) == 4
    for name, parameter in flow.named_parameters():
        if name in before:
            assert bool((parameter != before[name]).all())


def test_packed_rows_have_their_own_frequencies():
    torch.manual_seed(0)
    flow = iresnet_flow(3, 3, hidden_features=[8, 6, 7])
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "frequency" in name:
                parameter.normal_(std=2.0)
    flow.eval()
    x = torch.randn(20, 3)
    expected, inverse = flow.log_prob(x), flow.transform_to_noise(x)
    pack_blocks(flow)
    torch.testing.assert_close(flow.log_prob(x), expected)
    torch.testing.assert_close(flow.transform_to_noise(x), inverse)


@pytest.mark.parametrize("limits", [(0.01, 0.1), (0.3, 30.0)])
def test_inverse_at_small_and_large_frequencies(limits):
    g = moved(DenseContraction(3, [16, 16], activation=partial(Sine, limits)))
    block = ResidualBlock(g, logdet=Exact()).float()
    x = torch.randn(200, 3, dtype=torch.float32)
    y = block(x).detach()
    solution = block.solve(y)
    # Rounding of y is no error of the inverse. Solve for the rounded y.
    exact = copy.deepcopy(block).double().solve(y.double(), rtol=1e-13).value
    error = (solution.value.double() - exact).norm(dim=-1)
    assert bool((error <= solution.stats.error_bound).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("part", ["activations.1", "layers.1", "layers.2"])
def test_refuses_parts_of_another_dtype(part, dtype):
    g = DenseContraction(3, [8, 8])
    g.get_submodule(part).to(dtype)
    with pytest.raises(ArgumentTypeError, match="activations and layers of one dtype"):
        g(torch.randn(5, 3))


def scalar_sines(hidden_dims, num_blocks):
    """Make a stack whose activations have one frequency for all units of a block."""
    stack = iresnet_stack(2, num_blocks, hidden_dims, between=None)
    for i, part in enumerate(stack.parts):
        one = Sine()
        with torch.no_grad():
            one.raw_frequency.fill_(i - 1.0)
        part.block.contraction.activations[0] = one
    return stack


@pytest.mark.parametrize(("width", "num_blocks"), [(8, 3), (3, 3), (1, 2)])
def test_packs_one_frequency_for_all_units(width, num_blocks):
    stack, x = scalar_sines([width], num_blocks), torch.randn(10, 2)
    expected = stack(x)
    pack_blocks(stack)
    torch.testing.assert_close(stack(x), expected)


@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 5, 6)])
def test_units_of_images_are_channels(shape):
    activation = ConvContraction((1, 4, 4), [4], activation=Sine).activations[0]
    x = torch.randn(3, *shape)
    frequency = activation.frequency[:, None, None]
    value, slope = torch.sin(frequency * x) / frequency, torch.cos(frequency * x)
    torch.testing.assert_close(activation(x), value)
    torch.testing.assert_close(activation.value_and_slope(x), (value, slope))


@pytest.mark.parametrize("limits", [(1e-30, 1e30), (1e-20, 1.0)])
def test_finite_at_extreme_limits(limits):
    g = DenseContraction(2, [4], activation=partial(Sine, limits)).float()
    assert bool(g(torch.ones(1, 2, dtype=torch.float32)).isfinite().all())


def test_wide_range_in_half_precision():
    frequency = of_width(100, (1e-3, 100.0)).half().frequency
    assert bool(frequency.isfinite().all())


def test_follow_keeps_a_frozen_parameter_frozen():
    def frozen():
        activation = Sine()
        activation.raw_frequency.requires_grad_(False)
        return activation

    raw = DenseContraction(2, [4], activation=frozen).activations[0].raw_frequency
    assert not raw.requires_grad


def test_refuses_one_sine_for_two_layers():
    one = Sine()
    with pytest.raises(ArgumentError, match="a new Sine for each layer"):
        DenseContraction(2, [4, 6], activation=lambda: one)


def test_one_unit_starts_in_the_middle():
    (frequency,) = DenseContraction(2, [1]).activations[0].frequency.tolist()
    assert frequency == pytest.approx((0.3 * 12.0) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bound_holds_with_rounded_scales(dtype):
    for seed in range(100):
        torch.manual_seed(seed)
        g = DenseContraction(1, [1], lipschitz=0.37)
        with torch.no_grad():
            for parameter in g.parameters():
                parameter.fill_(0.0 if parameter.shape == (1,) else 99.0)
            g.activations[0].raw_frequency.normal_(std=3.0)
        g = g.to(dtype)
        first, _, last = g.materialize().layers
        slope = (last.matrix.double() @ first.matrix.double()).abs()
        assert slope <= g.lipschitz_bound().double()


def test_options_hash_lists_as_tuples():
    listed, paired = (
        BlockOptions(activation=partial(Sine, frequencies=kind([0.1, 2.0])))
        for kind in (list, tuple)
    )
    assert listed == paired == BlockOptions.from_json(listed.to_json())
    assert hash(listed) == hash(paired)


def test_refuses_other_widths():
    activation = DenseContraction(2, [4]).activations[0]
    with pytest.raises(ArgumentError, match=r"x with event shape \(4,\); got \(5, 1\)"):
        activation(torch.zeros(5, 1))
