"""Count of the products of a step, which shows in no other figure when it is wrong."""

import pytest
import torch
from torch import nn

from benchmarks.harness.products import PRODUCTS, SIDE, Products, big_product, products_of
from pyro_iresnet import IResNetTransform

F32, F64 = torch.float32, torch.float64


def test_known_network():
    """Count two layers: forward, gradients of both weights, and of one hidden layer."""
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).float()
    x = torch.randn(7, 3, dtype=F32)
    forward = 7 * (3 * 5 + 5 * 2)
    found = products_of(lambda: net(x).sum().backward(), 4)
    assert found.multiply_adds == {F32: 4 * (2 * forward + 7 * 5 * 2)}
    assert found.total == 4 * (2 * forward + 7 * 5 * 2)


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (lambda a, b, v: a @ b, 4 * 3 * 5),
        (lambda a, b, v: a.double() @ b.double(), 4 * 3 * 5),
        (lambda a, b, v: torch.mm(a, b, out=a.new_empty(4, 5)), 4 * 3 * 5),
        (lambda a, b, v: a.new_zeros(4, 5).addmm_(a, b), 4 * 3 * 5),
        (lambda a, b, v: torch.addmm(input=a.new_zeros(5), mat1=a, mat2=b), 4 * 3 * 5),
        (lambda a, b, v: a @ v, 4 * 3),
        (lambda a, b, v: torch.addmv(a.new_zeros(4), a, v), 4 * 3),
        (lambda a, b, v: v @ v, 3),
        (lambda a, b, v: torch.einsum("ij,njk->nik", a, b.expand(2, 3, 5)), 2 * 4 * 3 * 5),
        (lambda a, b, v: a.expand(2, 4, 3).bmm(b.expand(2, 3, 5)), 2 * 4 * 3 * 5),
        (lambda a, b, v: a.new_zeros(2, 4, 5).baddbmm_(a.expand(2, 4, 3), b.expand(2, 3, 5)), 120),
        (lambda a, b, v: a * v, 0),
        (lambda a, b, v: torch.linalg.vector_norm(a), 0),
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_product(product, expected, mode):
    a, b, v = (torch.randn(shape, dtype=F64) for shape in ((4, 3), (3, 5), (3,)))
    with mode(), Products() as found:
        product(a, b, v)
    assert found.multiply_adds[F64] == expected


def test_function():
    """Count the products of an autograd Function with a backward pass of its own."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a @ b

        @staticmethod
        def backward(ctx, grad):
            a, b = ctx.saved_tensors
            return grad @ b.mT, a.mT @ grad

    a, b = (torch.randn(shape, dtype=F64, requires_grad=True) for shape in ((4, 3), (3, 5)))
    found = products_of(lambda: Twice.apply(a, b).sum().backward(), 1)
    assert found.multiply_adds == {F64: 3 * 4 * 3 * 5}


def test_lapack_apart():
    matrices = torch.eye(6).expand(3, 6, 6)
    with Products() as found:
        factor = torch.linalg.cholesky(matrices)
        torch.linalg.solve_triangular(factor, torch.randn(3, 6, 2), upper=False)
        torch.linalg.slogdet(matrices)
    assert not found.multiply_adds
    assert found.matrices["linalg_cholesky_ex 6 x 6"] == 3
    assert found.lapack["linalg_cholesky_ex"] == 3 * 6**3 / 6
    assert found.lapack["linalg_solve_triangular"] == 3 * 6**2 * 2 / 2
    assert found.lapack["_linalg_slogdet"] == pytest.approx(3 * 6**3 / 3)


@torch.library.custom_op("benchmarks::hides_product", mutates_args=())
def _hides_product(a: torch.Tensor) -> torch.Tensor:
    return a @ a


@pytest.mark.parametrize(
    "call",
    [_hides_product, torch.linalg.qr, lambda a: nn.functional.conv1d(a[None, None, 0], a[None])],
)
def test_refuses_hidden_products(call):
    with pytest.raises(NotImplementedError), Products():
        call(torch.ones(1, 1))


@pytest.mark.parametrize("dim", [2, 9])
def test_same_as_profiler(dim):
    """Count the products of a step outside of the counter, where a fast path might be another."""
    torch.manual_seed(0)
    block = IResNetTransform(dim, [16, 16])
    x = torch.randn(20, dim)

    def step():
        torch.manual_seed(1)
        y, logdet = block(x)
        (y.square().sum() - logdet.sum()).backward()

    step()
    with torch.profiler.profile(with_flops=True, record_shapes=True) as profile:
        step()
    names = {f"aten::{name}" for name in PRODUCTS}
    flops = sum(event.flops for event in profile.events() if event.name in names)
    # The profiler counts no product in place.
    shapes = [event.input_shapes for event in profile.events() if event.name == "aten::addmm_"]
    in_place = sum(rows * inner * second[1] for _, (rows, inner), second, *_ in shapes)
    # Norms are taken in double precision.
    assert sum(products_of(step, 1).multiply_adds.values()) == flops / 2 + in_place > 0


def test_big_product():
    assert products_of(big_product(F32), 2).multiply_adds == {F32: 2 * SIDE**3}
