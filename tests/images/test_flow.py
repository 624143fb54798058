"""Image flows: constants of the density, scales, samples, and the twin of Pyro."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import SqueezeTransform
from sklearn.datasets import load_digits

from pyro_iresnet import ConvContraction, Exact
from pyro_iresnet.blocks import Block, Evaluation
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.hosts.nflows import PatientActNorm
from pyro_iresnet.images import (
    ImageFlow,
    ImageStack,
    ImageTransform,
    PixelLogit,
    dequantize,
    iresnet_image_flow,
    iresnet_image_stack,
    iresnet_image_transform,
)
from pyro_iresnet.images.transform import hidden_of
from pyro_iresnet.norms import Gram
from pyro_iresnet.options import BlockOptions

SHAPES = [(1, 8, 8), (3, 8, 12), (2, 7, 5), (1, 16, 16), (3, 1, 1), (1, 4, 10)]


def pixels_of(shape, count=20, levels=256):
    return torch.randint(levels, (count, *shape), dtype=torch.uint8)


def small(shape=(1, 8, 8), blocks=2, **options):
    return iresnet_image_flow(shape, blocks, hidden_channels=8, **options)


@pytest.mark.parametrize(("channels", "width"), [(1, 64), (8, 72), (48, 432), (49, 64), (192, 64)])
def test_default_width(channels, width):
    assert hidden_of((channels, 4, 4)) == (width, width)


def test_outputs_alone(monkeypatch):
    """Noise and samples take no log-determinant, in both hosts."""
    flow = small(logdet=Exact())
    flow.log_prob(pixels_of((1, 8, 8)))
    x = 256 * torch.rand(5, 1, 8, 8)
    stack = ImageStack(flow.eval().transform)
    noise, log_det = flow.transform(x)
    taken = Exact.__call__
    monkeypatch.setattr(Exact, "__call__", None)
    assert torch.equal(flow.transform.encode(x), noise)
    assert flow.sample(3).shape == (3, 1, 8, 8)
    drawn = stack.inv(noise)
    torch.testing.assert_close(drawn, x, atol=1e-7, rtol=0)
    monkeypatch.setattr(Exact, "__call__", taken)
    found = stack.inv.log_abs_det_jacobian(noise, drawn)
    torch.testing.assert_close(found, -log_det, atol=1e-8, rtol=0)


def norms_of(module):
    found = [m for m in module.modules() if isinstance(m, PatientActNorm)]
    assert found
    return found


def test_one_image_does_not_start():
    flow = small((1, 16, 16))
    for count in (1, 15):
        flow.log_prob(pixels_of((1, 16, 16), count))
        assert not any(norm.has_started() for norm in norms_of(flow))
    flow.log_prob(pixels_of((1, 16, 16), 16))
    # All from one batch, those of small images too.
    assert all(norm.has_started() for norm in norms_of(flow))


def test_looks_do_not_start():
    flow, pixels = small(), pixels_of((1, 8, 8))
    flow.encode(pixels)
    flow.transform_to_noise(pixels)
    flow.interpolate(pixels, pixels.flip(0), 3)
    flow.sample_and_log_prob(20)
    assert not any(norm.has_started() for norm in norms_of(flow))
    assert all(norm.training for norm in norms_of(flow))


def test_sample_does_not_start():
    stack = iresnet_image_stack((1, 8, 8), 2, hidden_channels=8)
    noise = torch.randn(20, 64)
    images = stack.inv(noise)
    stack.inv.log_abs_det_jacobian(noise, images)
    assert all((norm.log_scale == 0).all() for norm in norms_of(stack))


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip(shape):
    flow = small(shape)
    flow.bits_per_dim(pixels_of(shape))
    x = 256 * torch.rand(5, *shape)
    with torch.no_grad():
        noise, log_det = flow.eval().transform(x)
        back, log_det_back = flow.transform.inverse(noise)
        torch.testing.assert_close(flow.transform.decode(noise), back)
    assert noise.shape == (5, math.prod(shape))
    torch.testing.assert_close(back, x, atol=1e-7, rtol=0)
    torch.testing.assert_close(log_det_back, -log_det, atol=1e-8, rtol=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 5, 3), (1, 16, 16)])
def test_log_det_against_the_jacobian(shape):
    transform = iresnet_image_transform(shape, 2, hidden_channels=6, levels=4, logdet=Exact())
    transform(4 * torch.rand(20, *shape))
    x = 4 * torch.rand(1, *shape)
    size = math.prod(shape)
    jacobian = torch.func.jacrev(lambda v: transform.eval()(v)[0])(x).reshape(size, size)
    torch.testing.assert_close(transform(x)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


def test_number_of_scales():
    shapes = {
        (1, 28, 28): [(4, 14, 14), (8, 7, 7)],
        (3, 32, 32): [(12, 16, 16), (24, 8, 8), (48, 4, 4)],
        (1, 8, 8): [(4, 4, 4)],
        (2, 7, 5): [(2, 7, 5)],
    }
    for shape, expected in shapes.items():
        assert list(small(shape).transform.shapes) == expected
    assert small((1, 16, 16), [1]).transform.shapes == ((4, 8, 8),)


class Still(Block):
    """A block that is the identity."""

    def evaluate(self, x, context=None):
        zero = x.new_zeros(len(x))
        return Evaluation(x, x, lambda: zero, lambda w: w, lambda w: w)

    def evaluate_inverse(self, y, context=None, *, x0=None):
        return self.evaluate(y)


def test_bits_of_a_normal_model():
    # Without blocks the model says: the logits of pixels are normal, each channel with the mean
    # and the deviation of the first batch.
    flow = small((1, 8, 8), 1, block=Still, margin=0.1, levels=17, coordinates=None)
    first = pixels_of((1, 8, 8), 500, 17)
    flow.bits_per_dim(first)
    pixels = pixels_of((1, 8, 8), 50, 17)
    torch.manual_seed(5)
    found = flow.bits_per_dim(pixels)
    torch.manual_seed(5)
    x = dequantize(pixels, 17)
    p = 0.1 + 0.8 * x / 17
    y = p.log() - (1 - p).log()
    # The channels behind the squeeze are the four places in each square of 2 x 2 pixels.
    norm = next(m for m in flow.modules() if hasattr(m, "log_scale"))
    scale, shift = norm.log_scale.exp().reshape(2, 2), norm.shift.reshape(2, 2)
    others = [m for m in flow.modules() if hasattr(m, "log_scale")][1:]
    z = y * scale.repeat(4, 4) + shift.repeat(4, 4)
    slope = (0.8 / 17 / (p * (1 - p))).log() + norm.log_scale.reshape(2, 2).repeat(4, 4)
    for other in others:
        z = z * other.log_scale.exp().reshape(2, 2).repeat(4, 4)
        z = z + other.shift.reshape(2, 2).repeat(4, 4)
        slope = slope + other.log_scale.reshape(2, 2).repeat(4, 4)
    log_prob = (dist.Normal(0.0, 1.0).log_prob(z) + slope).sum((1, 2, 3))
    torch.testing.assert_close(found, -log_prob / (64 * math.log(2)))
    # Each channel was standardised.
    assert abs(z.mean()) < 0.1
    assert abs(z.std() - 1) < 0.1


def test_uniform_pixels_cost_their_bits():
    # No model of uniform pixels costs less than log2 of the number of levels.
    flow = small((1, 8, 8), 1, levels=4)
    bits = flow.bits_per_dim(pixels_of((1, 8, 8), 400, 4)).mean()
    assert 2.0 < bits < 2.6


def test_density_over_pixels_sums_to_one():
    # Two pixels of three levels: the mean of exp(log_prob) over noise is the probability.
    flow = small((2, 1, 1), 2, levels=3, margin=1e-6, logdet=Exact())
    flow.bits_per_dim(pixels_of((2, 1, 1), 100, 3))
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(3)).reshape(9, 2, 1, 1)
    with torch.no_grad():
        each = flow.eval().log_prob(grid.repeat(4000, 1, 1, 1)).exp().reshape(4000, 9)
    totals = each.sum(1)
    assert abs(totals.mean() - 1) < 4 * totals.std() / math.sqrt(4000)


def test_trains_on_digits():
    pixels = torch.from_numpy(load_digits().images)[:, None]
    flow = iresnet_image_flow((1, 8, 8), 2, hidden_channels=24, levels=17)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = flow.bits_per_dim(pixels[torch.randint(1500, (128,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert flow.eval().sample(4).unique().max() <= 16


def test_samples():
    flow = small()
    flow.bits_per_dim(pixels_of((1, 8, 8)))
    flow.eval()
    whole = flow.sample(5)
    assert whole.shape == (5, 1, 8, 8)
    assert ((whole == whole.floor()) & (whole >= 0) & (whole < 256)).all()
    torch.manual_seed(0)
    parts = flow.sample(5, batch_size=2)
    torch.manual_seed(0)
    assert (parts == torch.cat([flow.sample(n) for n in (2, 2, 1)])).all()
    cold = flow.sample(3, temperature=0.0)
    assert (cold == cold[0]).all()
    assert isinstance(flow, Flow)


def test_codes_and_interpolation():
    flow = small()
    pixels = pixels_of((1, 8, 8))
    flow.bits_per_dim(pixels)
    with torch.no_grad():
        flow.eval()
        assert (flow.decode(flow.encode(pixels)) == pixels).all()
        between = flow.interpolate(pixels[:3], pixels[3:6], 5)
        assert between.shape == (3, 5, 1, 8, 8)
        assert (between[:, 0] == pixels[:3]).all()
        assert (between[:, -1] == pixels[3:6]).all()
        assert (flow.interpolate(pixels[:1], pixels[:1], 3) == pixels[0]).all()


@pytest.mark.parametrize("block", ["residual", "cayley"])
def test_blocks(block):
    flow = small(block=block, norm=Gram())
    flow.bits_per_dim(pixels_of((1, 8, 8))).mean().backward()
    assert all(p.grad is not None for p in flow.parameters())
    records = [BlockOptions(lipschitz=0.5), BlockOptions(lipschitz=0.9)]
    mixed = iresnet_image_flow((1, 8, 8), 2, options=records)
    found = [m.lipschitz for m in mixed.modules() if isinstance(m, ConvContraction)]
    assert found == [0.5, 0.9]


def test_state_and_copies():
    flow, other = small(), small()
    pixels = pixels_of((1, 8, 8))
    flow.bits_per_dim(pixels)
    other.load_state_dict(flow.state_dict())
    copied = copy.deepcopy(flow)
    for each in (other, copied):
        with torch.no_grad():
            codes = each.eval().encode(pixels)
        torch.testing.assert_close(codes, flow.eval().encode(pixels).detach())


def test_deterministic_in_eval_mode():
    transform = iresnet_image_transform((1, 8, 8), 2, hidden_channels=8)
    x = 256 * torch.rand(20, 1, 8, 8)
    transform(x)
    first = transform.eval()(x)
    assert all((a == b).all() for a, b in zip(first, transform(x), strict=True))


def test_dtype_of_parameters():
    flow = small().float()
    assert flow.log_prob(pixels_of((1, 8, 8))).dtype is torch.float32
    assert flow.eval().sample(2).dtype is torch.float32


def test_pyro():
    stack = iresnet_image_stack((1, 8, 8), 2, hidden_channels=8, levels=17)
    x = dequantize(pixels_of((1, 8, 8), 20, 17), 17)
    stack(x)
    stack.eval()
    noise = dist.Normal(torch.zeros(64), torch.ones(64)).to_event(1)
    density = dist.TransformedDistribution(noise, [stack.inv])
    assert density.event_shape == (1, 8, 8)
    z, log_det = stack.transform(x)
    torch.testing.assert_close(density.log_prob(x), noise.log_prob(z) + log_det)
    grid = x.reshape(4, 5, 1, 8, 8)
    assert density.log_prob(grid).shape == (4, 5)
    torch.testing.assert_close(stack.inv(stack(grid)), grid, atol=1e-5, rtol=0)
    with torch.no_grad():
        assert density.sample((3,)).shape == (3, 1, 8, 8)
    assert stack.with_cache(0).transform is stack.transform
    assert stack.forward_shape((7, 1, 8, 8)) == (7, 64)
    assert stack.inverse_shape((7, 64)) == (7, 1, 8, 8)
    with pytest.raises(ArgumentTypeError, match="transform"):
        ImageStack(torch.nn.Identity())


@pytest.mark.parametrize(
    "scales",
    [
        [(SqueezeTransform(), (4, 4, 4), 2)],
        [(SqueezeTransform(), (4, 4, 4), 2), (SqueezeTransform(), (8, 2, 2), 4)],
        [(SqueezeTransform(), (4, 4, 4), 5)],
    ],
)
def test_refuses_lost_channels(scales):
    with pytest.raises(ArgumentError, match="Expected all 64 numbers"):
        ImageTransform((1, 8, 8), PixelLogit(), scales)


def test_flow_without_parameters():
    transform = ImageTransform((1, 8, 8), PixelLogit(), [(SqueezeTransform(), (4, 4, 4), 4)])
    flow = ImageFlow(transform)
    assert flow.log_prob(pixels_of((1, 8, 8))).isfinite().all()
    assert flow.sample(3).shape == (3, 1, 8, 8)


# In float32 a logit of 20 is one of the number at the end of the support.
@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float64, 1.0), (torch.float32, 1.0), (torch.float32, 30.0)]
)
def test_pyro_support(dtype, scale):
    torch.set_default_dtype(dtype)
    stack = iresnet_image_stack((1, 4, 4), 1, hidden_channels=4, levels=3, margin=0.1)
    stack(3 * torch.rand(20, 1, 4, 4))
    stack.eval()
    noise = dist.Normal(torch.zeros(16), scale * torch.ones(16)).to_event(1)
    density = dist.TransformedDistribution(noise, [stack.inv])
    with torch.no_grad():
        x = density.sample((500,))
        assert ((x < 0) | (x > 3)).any()
        assert density.support.check(x).all()
        # Every sample of the density has a density, remembered or not.
        assert density.log_prob(x.clone()).isfinite().all()
        # The support is closed, and so are the numbers that torch maps into it.
        for end in (stack.transform.logit.low, stack.transform.logit.high):
            at_end = torch.full((1, 1, 4, 4), end)
            assert density.support.check(at_end).all()
            assert density.log_prob(at_end).isfinite().all()
        far = torch.distributions.biject_to(density.support)(torch.full((1, 1, 4, 4), 40.0))
        assert density.log_prob(far).isfinite().all()
    assert not density.support.check(torch.full((1, 4, 4), -5.0))


def test_draws_are_known():
    stack = iresnet_image_stack((1, 8, 8), 1, hidden_channels=4)
    x = 256 * torch.rand(20, 1, 8, 8)
    evaluation = stack.evaluate(x)
    assert evaluation.drawn_by == "Roulette"
    first, second, third = (evaluation.log_det() for _ in range(3))
    assert not torch.equal(second, third)
    assert first.shape == (20,)
    stack.eval()
    evaluation = stack.evaluate(x)
    assert evaluation.drawn_by == ""
    assert torch.equal(evaluation.log_det(), evaluation.log_det())


def test_one_pass_for_a_density(monkeypatch):
    stack = iresnet_image_stack((1, 8, 8), 1, hidden_channels=4)
    noise = dist.Normal(torch.zeros(64), torch.ones(64)).to_event(1)
    density, x = dist.TransformedDistribution(noise, [stack.inv]), 256 * torch.rand(20, 1, 8, 8)
    stack(x)
    passes, forward = [], stack.transform.forward

    def counted(inputs, context=None):
        passes.append(inputs)
        return forward(inputs, context)

    monkeypatch.setattr(stack.transform, "forward", counted)
    density.log_prob(x.clone())
    assert len(passes) == 1


def test_pair_starts_nothing():
    stack = iresnet_image_stack((1, 8, 8), 1, hidden_channels=4)
    x = 256 * torch.rand(20, 1, 8, 8)
    stack.log_abs_det_jacobian(x, torch.randn(20, 64))
    norms = [m for m in stack.modules() if isinstance(m, PatientActNorm)]
    assert norms
    assert not any(norm.has_started() for norm in norms)
    assert stack.training


def test_refuses_another_shape_in_a_file():
    saved = iresnet_image_flow((1, 8, 16), 1, hidden_channels=4).state_dict()
    other = iresnet_image_flow((1, 16, 8), 1, hidden_channels=4)
    with pytest.raises(RuntimeError, match="shape"):
        other.load_state_dict(saved)
    assert len(saved) == len({tensor.data_ptr() for tensor in saved.values()})


def test_methods_of_nflows():
    flow = small()
    pixels = pixels_of((1, 8, 8))
    flow.bits_per_dim(pixels)
    flow.eval()
    drawn, log_prob = flow.sample_and_log_prob(3)
    assert (drawn == drawn.floor()).all()
    assert log_prob.shape == (3,)
    torch.testing.assert_close(flow.transform_to_noise(pixels), flow.encode(pixels))
    for call in (flow.sample_and_log_prob, flow.sample):
        with pytest.raises(ArgumentError, match="no context"):
            call(2, torch.zeros(2, 3))
    for call in (flow.log_prob, flow.transform_to_noise):
        with pytest.raises(ArgumentError, match="no context"):
            call(pixels, torch.zeros(20, 3))


def test_vmap():
    transform = iresnet_image_transform((1, 4, 4), 1, hidden_channels=4, logdet=Exact()).eval()
    x = 256 * torch.rand(5, 1, 4, 4)
    mapped = torch.func.vmap(lambda one: transform(one[None])[0][0])(x)
    torch.testing.assert_close(mapped, transform(x)[0])


WRONG = [
    (lambda flow: flow.log_prob(torch.zeros(3, 1, 8, 9)), "inputs"),
    (lambda flow: flow.log_prob(torch.zeros(1, 8, 8)), "batch, 1, 8, 8"),
    (lambda flow: flow.log_prob(torch.rand(3, 1, 8, 8)), "integers from 0 to 255"),
    (lambda flow: flow.transform.inverse(torch.zeros(3, 63)), "inputs"),
    (lambda flow: flow.sample(0), "num_samples"),
    (lambda flow: flow.sample(1, temperature=-1.0), "temperature"),
    (lambda flow: flow.interpolate(*2 * [torch.zeros(2, 1, 8, 8)], steps=1), "steps"),
    (lambda flow: flow.interpolate(*2 * [torch.zeros(2, 1, 8, 8)], steps=0), "at least 2; got 0"),
    (lambda flow: flow.interpolate(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8)), "second"),
    (lambda flow: flow.interpolate(torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)), "first"),
    (lambda flow: flow.log_prob(torch.zeros(3, 8, 8, 1)), r"inputs.permute\(0, 3, 1, 2\)"),
    (lambda flow: flow.log_prob(torch.full((3, 1, 8, 8), 0.5)), "Expected inputs to be integers"),
    (lambda flow: iresnet_image_flow((1, 8, 8), [2, 2]), "at most 1 scale.*8 x 8"),
    (lambda flow: iresnet_image_flow((1, 28, 28), [2, 2, 2]), "at most 2 scale"),
    (lambda flow: iresnet_image_flow((8, 8)), "shape"),
    (lambda flow: iresnet_image_flow((1, 8, 8), 0), "blocks_per_scale"),
    (lambda flow: iresnet_image_flow((1, 8, 8), []), "blocks_per_scale"),
    (lambda flow: iresnet_image_flow((1, 8, 8), levels=1), "levels"),
    (lambda flow: iresnet_image_flow((1, 8, 8), lipschitz=1.0), "lipschitz"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_refusals(call, message):
    flow = small()
    with pytest.raises(ArgumentError, match=message):
        call(flow)


def test_refuses_unknown_options():
    for builder in (iresnet_image_flow, iresnet_image_stack, iresnet_image_transform):
        with pytest.raises(ArgumentTypeError, match=r"transform.*hidden_channels.*lipschitz"):
            builder((1, 8, 8), lipshitz=0.5)


def test_broken_flow_draws_no_pixels():
    flow = small().eval()
    with torch.no_grad():
        norms_of(flow)[0].shift.fill_(torch.nan)
    with pytest.raises(ArgumentError, match="got NaN"):
        flow.sample(3)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (lambda pixels: pixels / 255.0, r"\[0, 1\]"),
        (lambda pixels: pixels.double(), "integers alone"),
    ],
)
def test_other_pixels_are_told(images, words):
    stack = iresnet_image_stack((1, 8, 8), 1, hidden_channels=4)
    flow = Flow(stack.transform, StandardNormal([64]))
    for call in (stack, flow.log_prob):
        with pytest.warns(UserWarning, match=rf"{words}.*dequantize\(pixels, 256\)"):
            call(images(pixels_of((1, 8, 8))))


@pytest.mark.filterwarnings("error")
def test_pixels_with_noise_are_not():
    stack = iresnet_image_stack((1, 8, 8), 1, hidden_channels=4)
    stack(dequantize(pixels_of((1, 8, 8))))
    small().log_prob(pixels_of((1, 8, 8)))


def test_channels_last_are_told():
    with pytest.warns(UserWarning, match=r"32 channels of 32 x 3 .* shape=\(3, 32, 32\)"):
        iresnet_image_transform((32, 32, 3), 1, hidden_channels=4)
