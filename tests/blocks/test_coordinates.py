"""Blocks in learned coordinates."""

import copy
from functools import partial

import pytest
import torch
from nflows.transforms import CompositeTransform, InverseTransform
from torch.func import functional_call

from pyro_iresnet import (
    Anderson,
    ConvContraction,
    DenseContraction,
    Exact,
    FixedPoint,
    InversionError,
    IResNetTransform,
    ResidualBlock,
    cached,
    certificate,
    iresnet,
    iresnet_stack,
)
from pyro_iresnet.contractions import Contraction
from pyro_iresnet.coordinates import Asinh, DiagonalScale, TriangularScale
from pyro_iresnet.coordinates.base import build
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.norms import Gram
from pyro_iresnet.options import BlockOptions

from .. import zoo
from ..truth import jacobians

NAMES = sorted(zoo.COORDINATES)


def in_coordinates(contraction, name, **options):
    block = ResidualBlock(contraction, logdet=Exact(), **zoo.COORDINATES[name], **options)
    return zoo.bent(block)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("contraction", ["two_hidden", "conv_zeros", "scalar"])
def test_logdet_and_inverse(contraction, name):
    block = in_coordinates(zoo.CONTRACTIONS[contraction](), name)
    x = 3 * torch.randn(10, *zoo.event_shape(contraction))
    y, logdet = block.forward_and_log_det(x)
    expected = torch.linalg.slogdet(jacobians(block, x))
    assert bool((expected.sign > 0).all())
    torch.testing.assert_close(logdet, expected.logabsdet)
    torch.testing.assert_close(block(x), y)
    back, inverse_logdet = block.inverse_and_log_det(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_logdet, -logdet)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["anderson", "fixed_point", "newton"])
def test_error_bound(solver, dtype, scale, name):
    block = in_coordinates(zoo.dense(), name, solver=zoo.SOLVERS[solver]).to(dtype)
    x = scale * torch.randn(200, zoo.DIM, dtype=dtype)
    with torch.no_grad():
        y = block(x)
    # Rounding of y is no error of the inverse. Solve for the rounded y.
    exact = copy.deepcopy(block).double().solve(y.double(), rtol=1e-14).value
    solution = block.solve(y)
    error = (solution.value.double() - exact).norm(dim=-1)
    assert bool((error <= solution.stats.error_bound).all())
    assert bool((solution.stats.error_bound <= solution.stats.tolerance).all())
    asked = (1e-6 if dtype == torch.float32 else 1e-10) * y.norm(dim=-1)
    if dtype == torch.float64:
        assert bool((solution.stats.error_bound <= 1.01 * asked).all())


@pytest.mark.parametrize("name", NAMES)
def test_reaches_tolerance(name):
    block = in_coordinates(zoo.dense(), name)
    y = 2 * torch.randn(50, zoo.DIM)
    for atol in (1e-2, 1e-6):
        stats = block.solve(y, atol=atol, rtol=0.0).stats
        # Rounding adds a little to the tolerance.
        assert bool((stats.tolerance <= 1.05 * atol).all())
        assert bool((stats.error_bound <= stats.tolerance).all())
        # The solver stops soon after the asked tolerance.
        assert float(stats.error_bound.max()) > 1e-4 * atol


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    block = in_coordinates(zoo.dense(3, (6,), lipschitz=0.8), name)
    names, values = zip(*block.named_parameters(), strict=True)
    y = torch.randn(3, 3, requires_grad=True)

    def forward(v, *parameters):
        state = {f"block.{n}": p for n, p in zip(names, parameters, strict=True)}
        return functional_call(_BothWays(block), state, (v,))

    assert torch.autograd.gradcheck(forward, (y, *values), fast_mode=True)


class _BothWays(torch.nn.Module):
    """Both directions and both log-determinants in one call."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, v):
        return *self.block.forward_and_log_det(v), *self.block.inverse_and_log_det(v)


@pytest.mark.parametrize("name", NAMES)
def test_under_context(name):
    block = in_coordinates(zoo.CONDITIONAL["conditional_dense"](), name)
    x, context = torch.randn(6, zoo.DIM), torch.randn(6, zoo.CONTEXT)
    y, logdet = block.forward_and_log_det(x, context)
    expected = torch.linalg.slogdet(jacobians(block, x, context)).logabsdet
    torch.testing.assert_close(logdet, expected)
    torch.testing.assert_close(block.inverse(y, context), x)
    assert not torch.allclose(block.inverse(y, context.flip(0)), x)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_stretch_bounds_inverse(name):
    coordinates = in_coordinates(zoo.dense(), name).coordinates
    z = 2 * torch.randn(30, zoo.DIM)
    for radius in (1e-3, 1.0, 3.0):
        far = torch.randn(100, 30, zoo.DIM)
        moved = z + radius * far / far.norm(dim=-1, keepdim=True)
        apart = (coordinates.inverse(moved) - coordinates.inverse(z)).norm(dim=-1)
        bound = radius * coordinates.stretch(z, torch.full((30,), radius))
        assert bool((apart <= bound * (1 + 1e-12)).all())
        # Near points have a useful bound.
        assert radius > 0.1 or float((apart.amax(0) / bound).max()) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_certificate_names_coordinates(name):
    block = in_coordinates(zoo.dense(), name)
    x = torch.randn(20, zoo.DIM)
    found = certificate(block, x)
    assert found.holds
    assert found.rows[-1].stretch <= 0.97
    words = found.rows[-1].coordinates
    assert words in str(found)
    strategies = zoo.COORDINATES[name]["coordinates"]
    strategies = strategies if isinstance(strategies, tuple) else (strategies,)
    assert all(type(strategy).__name__ in words for strategy in strategies)


@pytest.mark.parametrize("name", NAMES)
def test_state_and_copies(name):
    block, fresh = (in_coordinates(zoo.dense(), name) for _ in range(2))
    x = torch.randn(6, zoo.DIM)
    assert not torch.allclose(block(x), fresh(x))
    fresh.load_state_dict(block.state_dict())
    assert torch.equal(block(x), fresh(x))
    block.forward_and_log_det(x)[1].sum().backward()
    assert torch.equal(copy.deepcopy(block)(x), block(x))
    with cached(block):
        torch.testing.assert_close(block(x), fresh(x))
    assert all(p.grad is not None for n, p in block.named_parameters() if "coordinates" in n)


def test_notices_changed_scale():
    transform = iresnet(3, coordinates=DiagonalScale())
    x = torch.randn(4, 3)
    y = transform(x)
    with torch.no_grad():
        transform.block.coordinates.log_scale.add_(1.0)
    assert not torch.allclose(transform(x), y)


def test_identity_adds_nothing():
    torch.manual_seed(0)
    plain = ResidualBlock(DenseContraction(3))
    torch.manual_seed(0)
    other = ResidualBlock(DenseContraction(3), coordinates=None)
    assert plain.state_dict().keys() == other.state_dict().keys()
    x = torch.randn(5, 3)
    assert torch.equal(plain(x), other(x))


@pytest.mark.parametrize("scale", [DiagonalScale, TriangularScale])
def test_spread_of_start(scale):
    block = ResidualBlock(DenseContraction(400, [4]), coordinates=scale(spread=0.3))
    assert float(block.coordinates.log_scale.std()) == pytest.approx(0.3, rel=0.15)
    still = ResidualBlock(DenseContraction(4, [4]), coordinates=scale(spread=0.0))
    x = torch.randn(5, 4)
    torch.testing.assert_close(still(x), x + still.contraction(x))


def test_fits_shear():
    """Fit a shear of 10. The largest singular value is far above 2, the eigenvalues are 1."""
    shear = torch.tensor([[0.0, 0.9 * 10], [0.0, 0.0]])
    g = DenseContraction(2, [], lipschitz=0.95, norm=Gram())
    block = ResidualBlock(g, coordinates=DiagonalScale(), logdet=Exact())
    with torch.no_grad():
        g.layers[0].weight.copy_(0.1 * shear)
        g.layers[0].bias.zero_()
        block.coordinates.log_scale.copy_(torch.tensor([10.0, 1.0]).log())
    x = torch.randn(5, 2)
    y, logdet = block.forward_and_log_det(x)
    torch.testing.assert_close(y, x + x @ shear.T)
    torch.testing.assert_close(logdet, torch.zeros(5))
    torch.testing.assert_close(block.inverse(y), x)


def test_large_numbers():
    block = ResidualBlock(DenseContraction(3, lipschitz=0.5).float(), coordinates=Asinh())
    block = block.float()
    x = 1e15 * torch.randn(20, 3, dtype=torch.float32)
    y, logdet = block.forward_and_log_det(x)
    assert bool(y.isfinite().all())
    assert bool(logdet.isfinite().all())
    error = (block.inverse(y) - x).norm(dim=-1) / x.norm(dim=-1)
    assert float(error.max()) < 1e-3


def test_builders_pass_options():
    coordinates = (Asinh(2.0), TriangularScale(0.1))
    makers = [
        partial(iresnet, 3),
        partial(iresnet_stack, 3, 2),
        partial(IResNetTransform, 3),
    ]
    for make in makers:
        blocks = [
            m for m in make(coordinates=coordinates).modules() if isinstance(m, ResidualBlock)
        ]
        assert blocks
        assert all(b.coordinates.strategy == coordinates for b in blocks)


def test_blocks_take_turns():
    charted, plain = BlockOptions(coordinates=Asinh()), BlockOptions(coordinates=None)
    stack = iresnet_stack(3, 4, [8], options=[charted, plain, plain], lipschitz=0.9)
    blocks = [m for m in stack.modules() if isinstance(m, ResidualBlock)]
    strategies = [b.coordinates and b.coordinates.strategy for b in blocks]
    assert strategies == [Asinh(), None, None, Asinh()]
    assert all(b.options.lipschitz == 0.9 and b.options.hidden_dims == (8,) for b in blocks)
    with pytest.raises(ArgumentError, match=r"options .* got none"):
        iresnet_stack(3, 2, options=())


def test_nflows_identity():
    transform = IResNetTransform(3, coordinates=(Asinh(), DiagonalScale()))
    both = CompositeTransform([InverseTransform(transform), transform])
    x = torch.randn(5, 3)
    y, logdet = both(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(logdet, torch.zeros(5), atol=1e-7, rtol=0)


def test_refuses_wrong_arguments():
    g = DenseContraction(3)
    with pytest.raises(ArgumentTypeError, match=r"coordinates .*DiagonalScale\(\).* Call it"):
        ResidualBlock(g, coordinates=DiagonalScale)
    with pytest.raises(ArgumentTypeError, match=r"coordinates\[1\] .*DiagonalScale\(\)"):
        ResidualBlock(g, coordinates=(Asinh(), 3))
    with pytest.raises(ArgumentTypeError, match="Expected coordinates"):
        ResidualBlock(g, coordinates="asinh")
    with pytest.raises(ArgumentError, match="spread"):
        DiagonalScale(spread=-1.0)
    for coordinates in (DiagonalScale(), Asinh()):
        with pytest.raises(ArgumentError, match=r"known size .*\(-1,\)"):
            ResidualBlock(zoo.CONTRACTIONS["wrapped"](), coordinates=coordinates)
    with pytest.raises(ArgumentError, match="scale"):
        Asinh(scale=0.0)
    block = ResidualBlock(g, coordinates=DiagonalScale())
    with pytest.raises(ArgumentError, match="x0"):
        block.inverse(torch.zeros(2, 3), x0=torch.zeros(2, 4))
    with pytest.raises(InversionError, match="NaN"):
        block.inverse(torch.full((2, 3), torch.nan))


def test_scales_image_channels():
    g = ConvContraction((4, 8, 8), [4])
    block = ResidualBlock(g, coordinates=(Asinh(), DiagonalScale()))
    shapes = {n: tuple(p.shape) for n, p in block.named_parameters() if "coordinates" in n}
    assert set(shapes.values()) == {(4,)}
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(block.inverse(block(x)), x)


@pytest.mark.parametrize("dim", [3, 20])
def test_error_bound_when_ill_conditioned(dim):
    block = ResidualBlock(DenseContraction(dim), coordinates=TriangularScale())
    with torch.no_grad():
        block.coordinates.below.normal_(std=2.0)
    block = block.float()
    y = block.coordinates.inverse(torch.randn(100, dim)).detach().float()
    # Weights of both precisions differ by rounding.
    exact = copy.deepcopy(block).double().solve(y.double(), rtol=1e-14).value
    solution = block.solve(y)
    error = (solution.value.double() - exact).norm(dim=-1)
    stats = solution.stats
    assert bool((error <= 2 * stats.error_bound).all())
    assert bool((stats.error_bound <= stats.tolerance).all())


def test_ignores_autocast():
    block = in_coordinates(zoo.dense(), "asinh_triangular").float()
    y = torch.randn(20, zoo.DIM, dtype=torch.float32)
    plain = block.solve(y).value
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(block.solve(y).value, plain)
        torch.testing.assert_close(block.inverse(y), plain, atol=1e-5, rtol=1e-5)


def test_refuses_overflow():
    block = ResidualBlock(DenseContraction(2), coordinates=DiagonalScale()).float()
    with torch.no_grad():
        block.coordinates.log_scale.copy_(torch.tensor([0.0, 89.0]))
    with pytest.raises(InversionError, match="NaN or infinity"):
        block.inverse(torch.ones(1, 2, dtype=torch.float32))
    triangular = ResidualBlock(DenseContraction(2), coordinates=TriangularScale())
    with torch.no_grad():
        triangular.coordinates.below.fill_(torch.nan)
    with pytest.raises(InversionError, match="NaN or infinity"):
        triangular.inverse(torch.ones(1, 2))


def test_slope_far_out():
    coordinates = Asinh().build((1,)).float()
    for x in (1e8, 1e9, 2e9, 1e22, -1e30):
        point = torch.tensor([x], dtype=torch.float32, requires_grad=True)
        (slope,) = torch.autograd.grad(coordinates(point).sum(), point)
        torch.testing.assert_close(slope * point.abs(), torch.ones(1, dtype=torch.float32))
        torch.testing.assert_close(
            coordinates.inverse(coordinates(point)), point, rtol=1e-4, atol=0
        )


def test_refuses_wrong_tolerances():
    block = ResidualBlock(DenseContraction(3), coordinates=DiagonalScale())
    y = torch.zeros(2, 3)
    for name, value in (("rtol", -1.0), ("atol", -1.0), ("atol", torch.inf), ("max_steps", 0)):
        with pytest.raises(ArgumentError, match=f"Expected {name}"):
            block.solve(y, **{name: value})
    for name in ("atol", "rtol"):
        with pytest.raises(ArgumentTypeError, match=f"Expected {name}"):
            block.solve(y, **{name: "a"})
    limited = block.solve(5 + y, max_steps=1, throw=False)
    assert int(limited.stats.steps.max()) <= 1


class Shrinking(Contraction):
    """Linear map ``-0.6 z``, which carries the solution far from the start."""

    event_shape, context_dim, lipschitz = (2,), None, 0.6

    def forward(self, x, context=None):
        return -self.lipschitz * x

    def lipschitz_bound(self):
        return torch.tensor(self.lipschitz)


@pytest.mark.parametrize("solver", [FixedPoint(rtol=1e-6), Anderson(rtol=1e-6)])
def test_limit_of_steps_where_asinh_stretches(solver):
    """Solve with each limit of steps; samples that need another solve are not done."""
    block = ResidualBlock(Shrinking(), solver=solver, coordinates=Asinh())
    y = torch.tensor([[500.0, 300.0], [1.0, 2.0]])
    asked = 1e-6 * y.norm(dim=1)
    exact = (block.coordinates(y) / 0.4).sinh()
    whole = block.solve(y)
    for most in range(1, int(whole.stats.steps.max()) + 1):
        found = block.solve(y, max_steps=most, throw=False)
        done = found.converged
        error = (found.value - exact).norm(dim=1)
        assert bool((error <= found.stats.error_bound)[done].all())
        assert bool((found.stats.error_bound <= found.stats.tolerance)[done].all())
        # Rounding adds its share.
        assert bool((found.stats.tolerance <= 1.02 * asked)[done].all())
    assert bool(whole.converged.all())
    assert bool((whole.stats.tolerance <= 1.02 * asked).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", zoo.COORDINATES)
def test_half_precision(name, dtype):
    block = ResidualBlock(zoo.dense(lipschitz=0.3), **zoo.COORDINATES[name]).to(dtype)
    x = torch.randn(4, zoo.DIM).to(dtype)
    precise = copy.deepcopy(block).double()
    for method in ("forward_and_log_det", "inverse_and_log_det"):
        pairs = zip(getattr(block, method)(x), getattr(precise, method)(x.double()), strict=True)
        for found, expected in pairs:
            assert found.dtype == dtype
            near = 32 * torch.finfo(dtype).eps * (1 + float(expected.detach().abs().max()))
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=near)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_asinh_at_largest_half(dtype):
    coordinates = build(Asinh(1.0), (1,)).to(dtype)
    x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=dtype) * torch.finfo(dtype).max
    torch.testing.assert_close(
        coordinates(x).double(), x.double().asinh(), rtol=2 * torch.finfo(dtype).eps, atol=0
    )
