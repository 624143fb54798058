"""Blocks in coordinates of their own: metrics and charts."""

import copy
from functools import partial

import pytest
import torch
from nflows.transforms import CompositeTransform, InverseTransform
from torch.func import functional_call, jacrev, vmap

from pyro_iresnet import (
    ArgumentError,
    ArgumentTypeError,
    Asinh,
    ConvContraction,
    DenseContraction,
    Diagonal,
    Exact,
    Gram,
    Identity,
    InversionError,
    IResNetTransform,
    ResidualBlock,
    Triangular,
    cached,
    certificate,
    iresnet,
    iresnet_stack,
)

from . import zoo

NAMES = sorted(zoo.COORDINATES)


def jacobians(block, x, context=None):
    def one(point, its_context):
        batch = None if its_context is None else its_context[None]
        return block(point[None], batch)[0]

    size = x[0].numel()
    in_dims = (0, None if context is None else 0)
    return vmap(jacrev(one), in_dims)(x, context).reshape(len(x), size, size)


def in_coordinates(contraction, name, **options):
    block = ResidualBlock(contraction, logdet=Exact(), **zoo.COORDINATES[name], **options)
    return zoo.bent(block)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("contraction", ["two_hidden", "conv_zeros", "densenet", "scalar"])
def test_forward_logdet_and_inverse(contraction, name):
    block = in_coordinates(zoo.CONTRACTIONS[contraction](), name)
    x = 3 * torch.randn(10, *zoo.event_shape(contraction))
    y, logdet = block.forward_and_logdet(x)
    expected = torch.linalg.slogdet(jacobians(block, x))
    assert bool((expected.sign > 0).all())
    torch.testing.assert_close(logdet, expected.logabsdet)
    torch.testing.assert_close(block(x), y)
    back, inverse_logdet = block.inverse_and_logdet(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_logdet, -logdet)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ["anderson", "fixed_point", "newton"])
def test_the_error_bound_holds_in_the_users_coordinates(solver, dtype, scale, name):
    block = in_coordinates(zoo.dense(), name, solver=zoo.SOLVERS[solver]).to(dtype)
    x = scale * torch.randn(200, zoo.DIM, dtype=dtype)
    with torch.no_grad():
        y = block(x)
    # What rounding does to y is no error of the inverse: the truth is asked of this very y.
    exact = copy.deepcopy(block).double().solve(y.double(), rtol=1e-14).value
    solution = block.solve(y)
    error = (solution.value.double() - exact).norm(dim=-1)
    assert bool((error <= solution.stats.error_bound).all())
    assert bool((solution.stats.error_bound <= solution.stats.tolerance).all())
    asked = (1e-6 if dtype == torch.float32 else 1e-10) * y.norm(dim=-1)
    if dtype == torch.float64:
        assert bool((solution.stats.error_bound <= 1.01 * asked).all())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_is_reached_in_the_users_coordinates(name):
    block = in_coordinates(zoo.dense(), name)
    y = 2 * torch.randn(50, zoo.DIM)
    for atol in (1e-2, 1e-6):
        stats = block.solve(y, atol=atol, rtol=0.0).stats
        # What rounding hides comes on top.
        assert bool((stats.tolerance <= 1.05 * atol).all())
        assert bool((stats.error_bound <= stats.tolerance).all())
        # Not by far more work than was asked for.
        assert float(stats.error_bound.max()) > 1e-4 * atol


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_every_direction(name):
    block = in_coordinates(zoo.dense(3, (6,), lipschitz=0.8), name)
    names, values = zip(*block.named_parameters(), strict=True)
    y = torch.randn(3, 3, requires_grad=True)

    def forward(v, *parameters):
        state = {f"block.{n}": p for n, p in zip(names, parameters, strict=True)}
        return functional_call(_BothWays(block), state, (v,))

    assert torch.autograd.gradcheck(forward, (y, *values))


class _BothWays(torch.nn.Module):
    """Both directions with their log-determinants as one call."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, v):
        return *self.block.forward_and_logdet(v), *self.block.inverse_and_logdet(v)


@pytest.mark.parametrize("name", NAMES)
def test_under_a_context(name):
    block = in_coordinates(zoo.CONDITIONAL["conditional_dense"](), name)
    x, context = torch.randn(6, zoo.DIM), torch.randn(6, zoo.CONTEXT)
    y, logdet = block.forward_and_logdet(x, context)
    expected = torch.linalg.slogdet(jacobians(block, x, context)).logabsdet
    torch.testing.assert_close(logdet, expected)
    torch.testing.assert_close(block.inverse(y, context), x)
    assert not torch.allclose(block.inverse(y, context.flip(0)), x)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_stretch_bounds_the_way_back(name):
    coordinates = in_coordinates(zoo.dense(), name).coordinates
    z = 2 * torch.randn(30, zoo.DIM)
    for radius in (1e-3, 1.0, 3.0):
        far = torch.randn(100, 30, zoo.DIM)
        moved = z + radius * far / far.norm(dim=-1, keepdim=True)
        apart = (coordinates.inverse(moved) - coordinates.inverse(z)).norm(dim=-1)
        bound = radius * coordinates.stretch(z, torch.full((30,), radius))
        assert bool((apart <= bound * (1 + 1e-12)).all())
        # And nearby not by so much that a certificate would be of no use.
        assert radius > 0.1 or float((apart.amax(0) / bound).max()) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_block_stretches_beyond_its_bound_only_in_the_users_norm(name):
    block = in_coordinates(zoo.dense(), name)
    x = torch.randn(20, zoo.DIM)
    found = certificate(block, x)
    assert found.holds
    assert found.rows[-1].stretch <= 0.97
    words = found.rows[-1].metric
    assert words in str(found)
    assert all(type(strategy).__name__ in words for strategy in zoo.COORDINATES[name].values())


@pytest.mark.parametrize("name", NAMES)
def test_state_copies_and_caches(name):
    block, fresh = (in_coordinates(zoo.dense(), name) for _ in range(2))
    x = torch.randn(6, zoo.DIM)
    assert not torch.allclose(block(x), fresh(x))
    fresh.load_state_dict(block.state_dict())
    assert torch.equal(block(x), fresh(x))
    block.forward_and_logdet(x)[1].sum().backward()
    assert torch.equal(copy.deepcopy(block)(x), block(x))
    with cached(block):
        torch.testing.assert_close(block(x), fresh(x))
    assert all(p.grad is not None for n, p in block.named_parameters() if "coordinates" in n)


def test_a_transform_notices_that_its_metric_has_changed():
    transform = iresnet(3, metric=Diagonal())
    x = torch.randn(4, 3)
    y = transform(x)
    with torch.no_grad():
        transform.block.coordinates.log_scale.add_(1.0)
    assert not torch.allclose(transform(x), y)


def test_the_identity_adds_nothing():
    torch.manual_seed(0)
    plain = ResidualBlock(DenseContraction(3))
    torch.manual_seed(0)
    other = ResidualBlock(DenseContraction(3), metric=Identity(), chart=None)
    assert plain.state_dict().keys() == other.state_dict().keys()
    x = torch.randn(5, 3)
    assert torch.equal(plain(x), other(x))


@pytest.mark.parametrize("metric", [Diagonal, Triangular])
def test_the_spread_of_the_start(metric):
    block = ResidualBlock(DenseContraction(400, [4]), metric=metric(spread=0.3))
    assert float(block.coordinates.log_scale.std()) == pytest.approx(0.3, rel=0.15)
    still = ResidualBlock(DenseContraction(4, [4]), metric=metric(spread=0.0))
    x = torch.randn(5, 4)
    torch.testing.assert_close(still(x), x + still.contraction(x))


def test_a_metric_reaches_what_none_does():
    """A shear of 10 has a singular value far beyond 2, and eigenvalues of 1."""
    shear = torch.tensor([[0.0, 0.9 * 10], [0.0, 0.0]])
    g = DenseContraction(2, [], lipschitz=0.95, norm=Gram())
    block = ResidualBlock(g, metric=Diagonal(), logdet=Exact())
    with torch.no_grad():
        g.layers[0].weight.copy_(0.1 * shear)
        g.layers[0].bias.zero_()
        block.coordinates.log_scale.copy_(torch.tensor([10.0, 1.0]).log())
    x = torch.randn(5, 2)
    y, logdet = block.forward_and_logdet(x)
    torch.testing.assert_close(y, x + x @ shear.T)
    torch.testing.assert_close(logdet, torch.zeros(5))
    torch.testing.assert_close(block.inverse(y), x)


def test_large_numbers_in_a_chart():
    block = ResidualBlock(DenseContraction(3, lipschitz=0.5).float(), chart=Asinh()).float()
    x = 1e15 * torch.randn(20, 3, dtype=torch.float32)
    y, logdet = block.forward_and_logdet(x)
    assert bool(y.isfinite().all())
    assert bool(logdet.isfinite().all())
    error = (block.inverse(y) - x).norm(dim=-1) / x.norm(dim=-1)
    assert float(error.max()) < 1e-3


def test_builders_pass_them_on():
    options = {"metric": Triangular(0.1), "chart": Asinh(2.0)}
    makers = [
        partial(iresnet, 3),
        partial(iresnet_stack, 3, 2),
        partial(IResNetTransform, 3),
    ]
    for make in makers:
        blocks = [m for m in make(**options).modules() if isinstance(m, ResidualBlock)]
        assert blocks
        assert all((b.metric, b.chart) == (Triangular(0.1), Asinh(2.0)) for b in blocks)


def test_blocks_take_them_in_turn():
    stack = iresnet_stack(3, 4, metric=(Diagonal(), Identity()), chart=(Asinh(), None, None))
    blocks = [m for m in stack.modules() if isinstance(m, ResidualBlock)]
    assert [b.metric for b in blocks] == 2 * [Diagonal(), Identity()]
    assert [b.chart for b in blocks] == [Asinh(), None, None, Asinh()]
    with pytest.raises(ArgumentError, match="chart"):
        iresnet_stack(3, 2, chart=())


def test_in_nflows():
    transform = IResNetTransform(3, metric=Diagonal(), chart=Asinh())
    both = CompositeTransform([InverseTransform(transform), transform])
    x = torch.randn(5, 3)
    y, logdet = both(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(logdet, torch.zeros(5), atol=1e-7, rtol=0)


def test_wrong_arguments():
    g = DenseContraction(3)
    with pytest.raises(ArgumentTypeError, match=r"Expected metric .*Diagonal\(\).* Call it"):
        ResidualBlock(g, metric=Diagonal)
    with pytest.raises(ArgumentTypeError, match="Expected metric"):
        ResidualBlock(g, metric=Asinh())
    with pytest.raises(ArgumentTypeError, match=r"Expected chart .*Asinh\(\)"):
        ResidualBlock(g, chart=Diagonal())
    with pytest.raises(ArgumentError, match="spread"):
        Diagonal(spread=-1.0)
    for options in ({"metric": Diagonal()}, {"chart": Asinh()}):
        with pytest.raises(ArgumentError, match=r"known size .*\(-1,\)"):
            ResidualBlock(zoo.CONTRACTIONS["wrapped"](), **options)
    with pytest.raises(ArgumentError, match="scale"):
        Asinh(scale=0.0)
    block = ResidualBlock(g, metric=Diagonal())
    with pytest.raises(ArgumentError, match="x0"):
        block.inverse(torch.zeros(2, 3), x0=torch.zeros(2, 4))
    with pytest.raises(InversionError, match="NaN"):
        block.inverse(torch.full((2, 3), torch.nan))


def test_images_are_scaled_by_their_channels():
    block = ResidualBlock(ConvContraction((4, 8, 8), [4]), metric=Diagonal(), chart=Asinh())
    shapes = {n: tuple(p.shape) for n, p in block.named_parameters() if "coordinates" in n}
    assert set(shapes.values()) == {(4,)}
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(block.inverse(block(x)), x)


@pytest.mark.parametrize("dim", [3, 20])
def test_the_bound_holds_in_an_ill_conditioned_metric(dim):
    block = ResidualBlock(DenseContraction(dim), metric=Triangular())
    with torch.no_grad():
        block.coordinates.below.normal_(std=2.0)
    block = block.float()
    y = block.coordinates.inverse(torch.randn(100, dim)).detach().float()
    # The weights in both precisions are the same only to within rounding, a part of what hides.
    exact = copy.deepcopy(block).double().solve(y.double(), rtol=1e-14).value
    solution = block.solve(y)
    error = (solution.value.double() - exact).norm(dim=-1)
    stats = solution.stats
    assert bool((error <= 2 * stats.error_bound).all())
    assert bool((stats.error_bound <= stats.tolerance).all())


def test_autocast_changes_nothing_in_a_metric():
    block = in_coordinates(zoo.dense(), "asinh_triangular").float()
    y = torch.randn(20, zoo.DIM, dtype=torch.float32)
    plain = block.solve(y).value
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(block.solve(y).value, plain)
        torch.testing.assert_close(block.inverse(y), plain, atol=1e-5, rtol=1e-5)


def test_what_overflows_on_the_way_back_is_no_solution():
    block = ResidualBlock(DenseContraction(2), metric=Diagonal()).float()
    with torch.no_grad():
        block.coordinates.log_scale.copy_(torch.tensor([0.0, 89.0]))
    with pytest.raises(InversionError, match="NaN or infinity"):
        block.inverse(torch.ones(1, 2, dtype=torch.float32))
    triangular = ResidualBlock(DenseContraction(2), metric=Triangular())
    with torch.no_grad():
        triangular.coordinates.below.fill_(torch.nan)
    with pytest.raises(InversionError, match="NaN or infinity"):
        triangular.inverse(torch.ones(1, 2))


def test_a_chart_far_out_has_its_slope():
    chart = Asinh().build((1,)).float()
    for x in (1e8, 1e9, 2e9, 1e22, -1e30):
        point = torch.tensor([x], dtype=torch.float32, requires_grad=True)
        (slope,) = torch.autograd.grad(chart(point).sum(), point)
        torch.testing.assert_close(slope * point.abs(), torch.ones(1, dtype=torch.float32))
        torch.testing.assert_close(chart.inverse(chart(point)), point, rtol=1e-4, atol=0)


def test_wrong_tolerances_of_a_block_in_coordinates():
    block = ResidualBlock(DenseContraction(3), metric=Diagonal())
    y = torch.zeros(2, 3)
    for name, value in (("rtol", -1.0), ("atol", -1.0), ("atol", torch.inf), ("max_steps", 0)):
        with pytest.raises(ArgumentError, match=f"Expected {name}"):
            block.solve(y, **{name: value})
    for name in ("atol", "rtol"):
        with pytest.raises(ArgumentTypeError, match=f"Expected {name}"):
            block.solve(y, **{name: "a"})
    limited = block.solve(5 + y, max_steps=1, throw=False)
    assert int(limited.stats.steps.max()) <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_forward(dtype):
    block = ResidualBlock(DenseContraction(3), metric=Triangular()).to(dtype)
    assert block(torch.zeros(2, 3, dtype=dtype)).dtype == dtype
