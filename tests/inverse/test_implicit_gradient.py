import pytest
import torch
from torch.func import functional_call

from pyro_iresnet import Exact, FixedPoint, ResidualBlock, wrap
from pyro_iresnet.errors import HigherOrderError, LinearSolveError
from pyro_iresnet.operators import (
    DenseSolve,
    Diagonal,
    KrylovSolve,
    Linearization,
)

from .. import zoo

TIGHT = FixedPoint(rtol=1e-13)
NAMES = [
    *("linear", "two_hidden", "three_hidden", "dense_sine", "scalar"),
    pytest.param("wrapped", marks=pytest.mark.slow),
]


def inverse_of(block, context=None):
    """Return the inverse as a function of ``y`` and parameters, and the parameters."""
    names = [n for n, _ in block.named_parameters()]

    class Inverse(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, y):
            return self.block.inverse(y, context)

    module = Inverse()

    def call(y, *parameters):
        named = {f"block.{n}": p for n, p in zip(names, parameters, strict=True)}
        return functional_call(module, named, (y,))

    return call, [p.detach().clone().requires_grad_() for p in block.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_first_derivatives(name):
    block = ResidualBlock(zoo.CONTRACTIONS[name](), solver=TIGHT)
    y = torch.randn(2, *zoo.event_shape(name), requires_grad=True)
    call, parameters = inverse_of(block)
    assert torch.autograd.gradcheck(call, (y, *parameters), fast_mode=True)


@pytest.mark.parametrize("name", ["two_hidden", "dense_sine", "wrapped"])
def test_second_derivatives(name):
    block = ResidualBlock(zoo.CONTRACTIONS[name](), solver=TIGHT)
    y = torch.randn(2, zoo.DIM, requires_grad=True)
    assert torch.autograd.gradgradcheck(block.inverse, (y,), fast_mode=True)


def test_second_parameter_derivatives():
    block = ResidualBlock(zoo.dense(2, (3,)), solver=TIGHT)
    call, parameters = inverse_of(block)
    y = torch.randn(1, 2, requires_grad=True)
    assert torch.autograd.gradgradcheck(call, (y, *parameters))


@pytest.mark.parametrize("name", zoo.CONDITIONAL)
def test_context_derivatives(name):
    block = ResidualBlock(zoo.CONDITIONAL[name](), solver=TIGHT)
    y = torch.randn(2, *zoo.event_shape(name), requires_grad=True)
    context = torch.randn(2, zoo.CONTEXT, requires_grad=True)
    assert torch.autograd.gradcheck(block.inverse, (y, context), fast_mode=True)


def test_logdet_gradient():
    block = ResidualBlock(zoo.dense(3), solver=TIGHT, logdet=Exact())
    y = torch.randn(2, 3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: block.inverse_and_log_det(y)[1], (y,))
    x, logdet = block.inverse_and_log_det(y)
    torch.testing.assert_close(-block.forward_and_log_det(x)[1], logdet)


def test_gradient_above_dense_size():
    block = ResidualBlock(zoo.dense(40, (30,), lipschitz=0.9), solver=TIGHT)
    y = torch.randn(3, 40, requires_grad=True)
    weights = torch.randn(3, 40)
    (implicit,) = torch.autograd.grad((weights * block.inverse(y)).sum(), y)
    x = block.inverse(y).detach()
    matrix = torch.eye(40) + block.contraction.linearize(x).as_matrix()
    expected = torch.linalg.solve(matrix.mT, weights[..., None])[..., 0]
    torch.testing.assert_close(implicit, expected)

    def gradient(y, create_graph=False):
        value = (block.inverse(y) ** 2).sum()
        return torch.autograd.grad(value, y, create_graph=create_graph)[0]

    (second,) = torch.autograd.grad(gradient(y, create_graph=True), y, weights)
    h = 1e-5
    difference = (gradient(y + h * weights) - gradient(y - h * weights)) / (2 * h)
    torch.testing.assert_close(second, difference, atol=1e-5, rtol=1e-5)


LINEAR_SOLVES = {
    "dense": DenseSolve(),
    "krylov": KrylovSolve(),
    "krylov_tight": KrylovSolve(rtol=1e-12),
    "krylov_short": KrylovSolve(directions=2),
}
ITERATIVE = {
    "krylov": KrylovSolve(),
    "short": KrylovSolve(directions=2),
}


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("name", LINEAR_SOLVES)
def test_linear_solves(name, transpose):
    g = zoo.dense(lipschitz=0.95)
    linearization = g.linearize(torch.randn(3, 4, zoo.DIM))
    v = torch.randn(3, 4, zoo.DIM)
    v[0, 0] = 0.0
    w = LINEAR_SOLVES[name](linearization, v, transpose=transpose, lipschitz=0.95).value
    back = w + (linearization.vm(w) if transpose else linearization.mv(w))
    torch.testing.assert_close(back, v, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ITERATIVE)
def test_iterative_solve_keeps_tolerance(name, dtype):
    g = zoo.dense(40, (30,), lipschitz=0.9).to(dtype)
    linearization = g.linearize(torch.randn(50, 40, dtype=dtype))
    v = torch.randn(50, 40, dtype=dtype)
    solved = ITERATIVE[name](linearization, v, transpose=False, lipschitz=0.9)
    exact = DenseSolve()(linearization, v, transpose=False, lipschitz=0.9).value
    asked = 1e-6 if dtype == torch.float32 else 1e-10
    # Rounding is larger than the asked tolerance in float32.
    floor = 8 * torch.finfo(dtype).eps / (1 - 0.9)
    assert ((solved.value - exact).norm(dim=-1) <= max(asked, floor) * v.norm(dim=-1)).all()
    assert solved.products.shape == (50,)


def test_krylov_products_count_eigenvalues():
    matrix = torch.diag(torch.tensor([0.9, -0.9, 0.9, -0.9, 0.5, 0.5]))
    linearization = wrap(zoo.Scaled(1.0, matrix), lipschitz=0.95).linearize(torch.randn(4, 6))
    v = torch.randn(4, 6)
    v[0, :4] = 0.0
    krylov = KrylovSolve()(linearization, v, transpose=False, lipschitz=0.95)
    assert krylov.products.tolist() == [1, 3, 3, 3]
    torch.testing.assert_close(krylov.value, v / (1 + matrix.diagonal()))


@pytest.mark.parametrize("name", ITERATIVE)
def test_rows_end_alone(name):
    slopes = torch.linspace(0.0, 0.9, 12)[:, None] * torch.randn(12, 40).tanh()
    value = torch.zeros(12, 40)
    v = torch.randn(12, 40)

    def solved(rows):
        linearization = Linearization(value[rows], Diagonal(slopes[rows]))
        return ITERATIVE[name](linearization, v[rows], transpose=False, lipschitz=0.9)

    together, alone = solved(slice(None)), [solved(slice(i, i + 1)) for i in range(12)]
    assert together.products.tolist() == [int(one.products) for one in alone]
    assert len(set(together.products.tolist())) > 4
    torch.testing.assert_close(together.value, torch.cat([one.value for one in alone]))
    error = (together.value - v / (1 + slopes)).norm(dim=1)
    assert (error <= 1e-10 * v.norm(dim=1)).all()


@pytest.mark.parametrize("name", ITERATIVE)
def test_isolates_nan_row(name):
    linearization = zoo.dense(40, (30,)).linearize(torch.randn(3, 40))
    v = torch.randn(3, 40)
    clean = ITERATIVE[name](linearization, v, transpose=True, lipschitz=0.97).value
    v[1, 3] = torch.nan
    found = ITERATIVE[name](linearization, v, transpose=True, lipschitz=0.97).value
    assert found[1].isnan().any()
    torch.testing.assert_close(found[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("name", ITERATIVE)
def test_refuses_divergence(name):
    linearization = wrap(zoo.Scaled(-1.0, torch.eye(2)), lipschitz=0.9).linearize(torch.randn(3, 2))
    with pytest.raises(LinearSolveError, match="did not reach the tolerance"):
        ITERATIVE[name](linearization, torch.randn(3, 2), transpose=False, lipschitz=0.9)


def test_constant_memory():
    g = zoo.dense(lipschitz=0.99)
    y = torch.randn(10, zoo.DIM, requires_grad=True)

    def saved(rtol):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            ResidualBlock(g, solver=FixedPoint(rtol=rtol)).inverse(y)
        return sum(sizes)

    assert saved(1e-12) == saved(1e-2)


def test_no_graph_without_grad():
    block = zoo.block()
    with torch.no_grad():
        x = block.inverse(torch.randn(3, zoo.DIM, requires_grad=True))
    assert not x.requires_grad


def difference(function, at, h=1e-6):
    """Differentiate a function of one tensor by finite differences."""
    steps = h * torch.eye(at.numel()).reshape(-1, *at.shape)
    ends = [(function(at + s) - function(at - s)) / (2 * h) for s in steps]
    return torch.stack(ends).reshape(at.shape)


def test_second_derivatives_when_substituted():
    block = ResidualBlock(zoo.dense(2, (4,), lipschitz=0.8), solver=TIGHT)
    state = {n: torch.randn_like(p) for n, p in block.named_parameters()}
    weight = state["contraction.layers.0.weight"].requires_grad_()
    module = torch.nn.Module()
    module.block = block
    module.forward = lambda y: block.inverse(y)
    state = {f"block.{n}": t for n, t in state.items()}

    def slope(y):
        x = functional_call(module, state, (y,))
        return torch.autograd.grad((x**2).sum(), weight, create_graph=True)[0].sum()

    y = torch.randn(1, 2, requires_grad=True)
    (second,) = torch.autograd.grad(slope(y), y)
    expected = difference(lambda y: slope(y).detach(), y.detach())
    torch.testing.assert_close(second, expected, atol=1e-6, rtol=1e-5)


class FromOutside(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.held = [scale]

    def forward(self, x):
        return 0.5 * (x * self.held[0]).sin()


def test_derivatives_of_unregistered_tensor():
    scale = torch.tensor([0.3, 0.8], requires_grad=True)
    block = ResidualBlock(wrap(FromOutside(scale), lipschitz=0.5), solver=TIGHT)
    y = torch.randn(1, 2, requires_grad=True)

    def value(scale):
        twin = ResidualBlock(wrap(FromOutside(scale), lipschitz=0.5), solver=TIGHT)
        return (twin.inverse(y) ** 2).sum().detach()

    loss = (block.inverse(y) ** 2).sum()
    (first,) = torch.autograd.grad(loss, scale, retain_graph=True)
    torch.testing.assert_close(first, difference(value, scale.detach()), atol=1e-7, rtol=1e-6)
    with pytest.raises(HigherOrderError, match="Register it"):
        torch.autograd.grad(loss, y, create_graph=True)


@pytest.mark.parametrize("dim", [2, 40])
def test_empty_batch(dim):
    block = ResidualBlock(zoo.dense(dim))
    y = torch.zeros(0, dim, requires_grad=True)
    block.inverse(y).sum().backward()
    assert y.grad.shape == (0, dim)


@pytest.mark.parametrize("size", [1e-30, 1e-25, 1e25])
def test_any_cotangent_size(size):
    linearization = zoo.dense(40, (30,)).float().linearize(torch.randn(2, 40).float())
    v = torch.randn(2, 40).float()
    one = KrylovSolve()(linearization, v, transpose=True, lipschitz=0.97).value
    other = KrylovSolve()(linearization, size * v, transpose=True, lipschitz=0.97).value
    torch.testing.assert_close(other.double() / size, one.double(), rtol=1e-4, atol=1e-5)


def test_second_context_derivatives():
    block = ResidualBlock(zoo.dense(2, (3,), context_dim=2), solver=TIGHT)
    y = torch.randn(1, 2, requires_grad=True)
    context = torch.randn(1, 2, requires_grad=True)
    assert torch.autograd.gradgradcheck(block.inverse, (y, context))


def test_third_derivative():
    def third(dim):
        block = ResidualBlock(zoo.dense(dim, (4,), lipschitz=0.7), solver=TIGHT)
        y = torch.randn(1, dim, requires_grad=True)
        direction = torch.randn(1, dim)

        def along(t, order):
            value = (block.inverse(y + t * direction) ** 3).sum()
            for _ in range(order):
                (value,) = torch.autograd.grad(value, t, create_graph=True)
            return value

        zero = torch.zeros((), requires_grad=True)
        h = 1e-4
        ends = [along(torch.tensor(s * h, requires_grad=True), 2) for s in (1.0, -1.0)]
        return along(zero, 3), (ends[0] - ends[1]) / (2 * h)

    torch.testing.assert_close(*third(3), rtol=1e-5, atol=1e-5)
    with pytest.raises(HigherOrderError, match="third one"):
        third(40)
