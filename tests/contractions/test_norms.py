from dataclasses import dataclass

import pytest
import torch

from pyro_iresnet import DenseContraction
from pyro_iresnet.errors import ArgumentError
from pyro_iresnet.norms import (
    Cholesky,
    Gram,
    Hard,
    Norm,
    PowerIteration,
    SingularValue,
)
from pyro_iresnet.norms.convolution import over_symbol, spectral_norm

from .. import zoo

SHAPES = [(1, 1), (3, 8), (8, 3), (16, 16), (64, 64), (1, 7)]


def matrices(shape):
    low_rank = torch.randn(shape[0], 1) @ torch.randn(1, shape[1])
    return {
        "random": torch.randn(shape),
        "low_rank": low_rank,
        "orthogonal": torch.nn.init.orthogonal_(torch.empty(shape)),
        "large": 1e6 * torch.randn(shape),
        "tiny": 1e-6 * torch.randn(shape),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", zoo.CERTIFIED_NORMS)
def test_upper_bounds(name, shape):
    for weight in matrices(shape).values():
        exact = torch.linalg.matrix_norm(weight, ord=2)
        norm = zoo.CERTIFIED_NORMS[name](weight)
        assert norm >= exact * (1 - 1e-12)
        torch.testing.assert_close(zoo.CERTIFIED_NORMS[name].proven(weight), norm)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("squarings", [1, 3, 6, 10])
def test_gram_is_schatten(shape, squarings):
    order = 2 ** (squarings + 2) + 2
    for weight in matrices(shape).values():
        singular = torch.linalg.svdvals(weight)
        largest = singular.max()
        expected = largest * (singular / largest).pow(order).sum().pow(1 / order)
        torch.testing.assert_close(Gram(squarings)(weight), expected)
        assert expected <= largest * min(shape) ** (1 / order)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("name", zoo.CERTIFIED_NORMS)
def test_gradients(name, shape):
    weight = torch.randn(shape, requires_grad=True)
    norm = zoo.CERTIFIED_NORMS[name]
    assert torch.autograd.gradcheck(norm, (weight,))
    assert torch.autograd.gradgradcheck(norm, (weight,))


def test_gram_in_float32():
    for weight in matrices((64, 64)).values():
        weight = weight.float().requires_grad_()
        norm = Gram(squarings=10)(weight)
        norm.backward()
        assert norm >= torch.linalg.matrix_norm(weight.double(), ord=2) * (1 - 1e-6)
        assert weight.grad.isfinite().all()


def test_gram_gradient_of_identity():
    # Norms satisfy <W, dS/dW> = S.
    for size in (2, 64, 1024):
        weight = torch.eye(size, dtype=torch.float32, requires_grad=True)
        norm = Gram()(weight)
        norm.backward()
        torch.testing.assert_close((weight * weight.grad).sum(), norm)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-18, 1e18, 1e25, 1e30])
def test_gram_at_extreme_scales(scale):
    weight = torch.randn(8, 5, dtype=torch.float32)
    expected = Gram()(weight).double() * scale
    torch.testing.assert_close(
        Gram()(scale * weight).double() / scale, expected / scale, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("name", zoo.NORMS)
def test_second_derivatives_at_zero(name):
    weight = torch.zeros(3, 4, requires_grad=True)
    acting = zoo.NORMS[name].constrain(weight, 0.9)
    loss = (acting.sin() + acting**2).sum()
    (first,) = torch.autograd.grad(loss, weight, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), weight)
    assert second.isfinite().all()
    assert second.norm() > 1


def test_gram_under_vmap():
    weights = torch.randn(4, 6, 3)
    batched = torch.func.vmap(Gram())(weights)
    torch.testing.assert_close(batched, torch.stack([Gram()(w) for w in weights]))


def test_power_iteration_is_below():
    weight = torch.randn(30, 20)
    exact = torch.linalg.matrix_norm(weight, ord=2)
    values = [PowerIteration(steps)(weight) for steps in (1, 2, 5, 20, 500)]
    assert all(value <= exact * (1 + 1e-12) for value in values)
    torch.testing.assert_close(values[-1], exact)
    torch.testing.assert_close(PowerIteration(1).proven(weight), exact)


def test_power_iteration_gradient():
    weight = torch.randn(6, 4, requires_grad=True)
    (power,) = torch.autograd.grad(PowerIteration(500)(weight), weight)
    (exact,) = torch.autograd.grad(SingularValue()(weight), weight)
    torch.testing.assert_close(power, exact)


@pytest.mark.parametrize("name", zoo.NORMS)
def test_keeps_zero_weights(name):
    weight = torch.zeros(4, 3, requires_grad=True)
    acting = zoo.NORMS[name].constrain(weight, 0.9)
    acting.sum().backward()
    assert (acting == 0).all()
    assert weight.grad.isfinite().all()


SOFT = sorted(name for name in zoo.NORMS if not name.startswith(("hard", "cholesky")))
# Norms with one scale for a whole weight.
WHOLE = sorted(n for n in zoo.NORMS if not n.startswith("cholesky"))


@pytest.mark.parametrize("name", SOFT)
def test_keeps_small_weights(name):
    small = 1e-3 * torch.randn(4, 3)
    assert torch.equal(zoo.NORMS[name].constrain(small, 0.9), small)


@pytest.mark.parametrize("name", WHOLE)
def test_scales_large_weights_down(name):
    norm = zoo.NORMS[name]
    large = norm.constrain(1e3 * torch.randn(4, 3), 0.9)
    torch.testing.assert_close(norm(large), torch.tensor(0.9))


def test_hard_scales_up():
    small = 1e-3 * torch.randn(2, 4, 3)
    acting = Hard(SingularValue()).constrain(small, torch.tensor([0.9, 0.5]))
    norms = torch.linalg.matrix_norm(acting, ord=2)
    torch.testing.assert_close(norms, torch.tensor([0.9, 0.5]))


@pytest.mark.parametrize("name", zoo.NORMS)
def test_batches_equal_shapes(name):
    norm = zoo.NORMS[name]
    shapes = [(4, 6), (6, 4), (4, 6), (5, 5), (5, 5), (1, 3), (2, 2)]
    weights = [(3 * torch.randn(s)).requires_grad_() for s in shapes]
    weights[2].data.zero_()
    weights[4].data.mul_(1e-3)
    bounds = [0.5 + 0.1 * i for i in range(len(shapes))]
    together = norm.constrain_all(weights, bounds)
    for weight, bound, acting in zip(weights, bounds, together, strict=True):
        (alone,) = norm.constrain_all([weight], [bound])
        assert acting.weight.shape == weight.shape
        torch.testing.assert_close(acting.weight, alone.weight)
        torch.testing.assert_close(acting.norm(), alone.norm())
        torch.testing.assert_close(acting.weight, norm.constrain(weight, bound))
        exact = torch.linalg.matrix_norm(acting.weight.detach(), ord=2)
        assert exact <= acting.norm() * (1 + 1e-12)
        if name in WHOLE:
            torch.testing.assert_close(acting.norm(), norm.proven(acting.weight).detach())
        found, expected = [
            torch.autograd.grad(a.weight.sin().sum(), weight, retain_graph=True)[0]
            for a in (acting, alone)
        ]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("damping", [0.03, 0.3, 3.0])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_cholesky_singular_values(shape, damping):
    weight = 2 * torch.randn(shape)
    before = torch.linalg.svdvals(weight)
    after = torch.linalg.svdvals(Cholesky(damping).constrain(weight, 0.9))
    torch.testing.assert_close(after, 0.9 * before / (before**2 + damping**2).sqrt())


def test_cholesky_shows_nan():
    weights = torch.randn(3, 4, 5)
    weights[1, 2, 3] = torch.nan
    acting = Cholesky().constrain(weights, 0.9)
    assert acting[1].isnan().any()
    assert acting[[0, 2]].isfinite().all()


def test_cholesky_bound_in_float32():
    for scale in (1.0, 1e3, 1e6, 1e12):
        weight = scale * torch.randn(64, 2) @ torch.randn(2, 64)
        weight = (weight + 1e-3 * torch.randn(64, 64)).float()
        acting = Cholesky().constrain(weight, 0.97).double()
        assert torch.linalg.matrix_norm(acting, ord=2) <= 0.97 * (1 + 1e-6)
        # Float32 and float64 agree, so a batch or a cache changes nothing.
        exact = Cholesky().constrain(weight.double(), 0.97)
        torch.testing.assert_close(acting, exact, atol=1e-6, rtol=1e-5)


def test_constrains_nothing():
    assert Gram().constrain_all([], []) == []


KERNELS = [(3, 2, 3, 3), (2, 5, 3, 3), (2, 2, 5, 5), (3, 3, 1, 1), (1, 4, 3, 1)]


@pytest.mark.parametrize("shape", KERNELS)
@pytest.mark.parametrize("name", zoo.CERTIFIED_NORMS)
def test_bounds_convolution(name, shape):
    norm = zoo.CERTIFIED_NORMS[name]
    kernel = 3 * torch.randn(shape)
    (acting,) = norm.constrain_all([kernel], [0.9])
    assert acting.weight.shape == shape
    assert acting.norm() <= 0.9 + 1e-12
    for size in ((5, 5), (6, 9), (12, 12)):
        for circular in (False, True):
            matrix = zoo.operator(acting.weight, size, circular=circular)
            exact = torch.linalg.eigvalsh(matrix @ matrix.T)[-1].sqrt()
            assert exact <= acting.norm() * (1 + 1e-9)


def test_tight_convolution_bound():
    for side in (3, 5):
        kernel = torch.randn(3, 3, side, side)
        bound = over_symbol(kernel, spectral_norm)
        matrix = zoo.operator(kernel, (24, 24), circular=True)
        exact = torch.linalg.eigvalsh(matrix @ matrix.T)[-1].sqrt()
        assert exact <= bound <= 1.05 * exact
        # Published code takes the norm of the kernel as a matrix, which is no bound.
        assert torch.linalg.matrix_norm(kernel.flatten(1), ord=2) < 0.8 * exact


@pytest.mark.parametrize("name", zoo.CERTIFIED_NORMS)
def test_kernel_gradients(name):
    norm = zoo.CERTIFIED_NORMS[name]
    kernel = torch.randn(2, 3, 3, 3, requires_grad=True)

    def acting(kernel):
        return norm.constrain_all([kernel], [0.9])[0].weight

    assert torch.autograd.gradcheck(acting, (kernel,), fast_mode=True)
    assert torch.autograd.gradgradcheck(acting, (kernel,), fast_mode=True)


@pytest.mark.parametrize("name", zoo.CERTIFIED_NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e25, 1e30])
def test_extreme_scales(name, scale):
    weight = torch.randn(8, 5, dtype=torch.float32)
    norm = zoo.CERTIFIED_NORMS[name]
    expected = norm(weight).double()
    torch.testing.assert_close(norm(scale * weight).double() / scale, expected, rtol=1e-5, atol=0)
    (acting,) = norm.constrain_all([scale * weight], [0.9])
    assert acting.weight.isfinite().all()
    exact = torch.linalg.matrix_norm(acting.weight.double(), ord=2)
    assert exact <= float(acting.norm()) * (1 + 1e-5)


@pytest.mark.parametrize("name", zoo.CERTIFIED_NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_proves_rounded_weight(name, dtype):
    for shape in ((6, 4), (2, 3, 3, 3)):
        (acting,) = zoo.CERTIFIED_NORMS[name].constrain_all([torch.randn(shape).to(dtype)], [0.9])
        assert acting.weight.dtype == dtype
        assert acting.exact() <= acting.norm() * (1 + 1e-5)
        assert acting.norm() < 1.0


def test_unseen_direction():
    unseen = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
    assert Hard(PowerIteration(1)).constrain(unseen, 0.9).isfinite().all()


def test_cholesky_refuses_arguments():
    with pytest.raises(ArgumentError, match="damping"):
        Cholesky(damping=0.0)
    with pytest.raises(ArgumentError, match="prove"):
        Cholesky(norm=PowerIteration())
    with pytest.raises(ArgumentError, match="every direction"):
        Hard(Cholesky())


def test_refuses_norms_of_rows():
    class OfRows(Gram):
        def sizes(self, weights):
            return weights.norm(dim=-1)

        def rule(self):
            return None

    with pytest.raises(
        ArgumentError, match=r"one norm for each weight, shape \(3,\); got \(3, 3\)"
    ):
        OfRows().constrain_all(list(torch.randn(3, 3, 4)), [0.5, 0.6, 0.7])


def test_constrain_refuses_arguments():
    with pytest.raises(ArgumentError, match="rows, columns"):
        Gram().constrain(torch.ones(3), 1.0)
    with pytest.raises(ArgumentError, match="bound"):
        Gram().constrain(torch.eye(2), -1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_spectral_norm_keeps_dtype(dtype):
    weight = torch.randn(3, 4).to(dtype)
    norm = spectral_norm(weight)
    assert norm.dtype == dtype
    exact = torch.linalg.matrix_norm(weight.double(), ord=2).to(dtype)
    torch.testing.assert_close(norm, exact, rtol=4 * torch.finfo(dtype).eps + 1e-6, atol=0)


@pytest.mark.parametrize("shape", [(20, 2, 3, 3), (2, 20, 3, 3), (18, 2, 3, 3), (12, 1, 3, 1)])
@pytest.mark.parametrize("circular", [True, False])
def test_cholesky_keeps_patches(shape, circular):
    # A wide kernel far above the damping stretches all images alike, but at a border of zeros.
    kernel = Cholesky(1e-4).constrain_all([torch.randn(shape)], [0.9])[0].weight
    singular = torch.linalg.svdvals(zoo.operator(kernel, (6, 7), circular=circular))
    assert singular.max() <= 0.9
    assert singular.max() > 0.89
    if circular:
        assert singular[: 2 * 42 if 2 in shape else 42].min() > 0.89


def test_cholesky_of_narrow_kernels():
    kernel = Cholesky(1e-4).constrain_all([torch.randn(17, 2, 3, 3)], [0.9])[0].weight
    singular = torch.linalg.svdvals(zoo.operator(kernel, (6, 7), circular=True))
    assert 0.8 < singular.max() <= 0.9


def test_norm_of_a_users_own_proves_nothing_by_itself():
    @dataclass(frozen=True)
    class Low(Norm):
        @property
        def certified(self):
            return False

        def __call__(self, weight):
            return 0.7 * spectral_norm(weight)

    g = DenseContraction(2, [], lipschitz=0.9, norm=Low())
    with torch.no_grad():
        g.layers[0].weight.copy_(torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
    torch.testing.assert_close(g.lipschitz_bound(), torch.tensor(0.9 / 0.7))
