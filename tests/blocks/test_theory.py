"""Equations 1 to 11, 25, 26 and 32 to 34 of the report."""

import itertools

import pytest
import torch

from pyro_iresnet import ResidualBlock
from pyro_iresnet.activations import Tanh
from pyro_iresnet.contractions import Contraction
from pyro_iresnet.coordinates import TriangularScale
from pyro_iresnet.norms import PowerIteration, SingularValue

from .. import zoo
from ..truth import distance

L = 0.8


class Turn(Contraction):
    """Quarter turn of the plane, scaled by ``L``."""

    event_shape, context_dim, lipschitz = (2,), None, L

    def lipschitz_bound(self):
        return torch.tensor(L)

    def forward(self, x, context=None):
        return L * torch.stack([-x[..., 1], x[..., 0]], -1)


def pairs(dim=zoo.DIM):
    return (torch.randn(200, dim), torch.randn(200, dim))


# --- Invertible: Eq. 1 to 11, 25 and 26 ----------------------------------------------------------


def test_adds_g_to_x():
    g, x = zoo.dense(), torch.randn(7, zoo.DIM)
    torch.testing.assert_close(ResidualBlock(g)(x), x + g(x))


def test_bi_lipschitz_block():
    block = ResidualBlock(zoo.dense(lipschitz=L))
    for scale in (1e-3, 1.0, 1e2):
        a, b = pairs()
        b = a + scale * b
        stretch = distance(block(a), block(b)) / distance(a, b)
        assert (stretch >= 1 - L - 1e-9).all()
        assert (stretch <= 1 + L + 1e-9).all()


def test_stretch_in_coordinates():
    block = ResidualBlock(Turn(), coordinates=TriangularScale(spread=1.0))
    for p in block.coordinates.parameters():
        p.data += torch.randn_like(p)
    a, b = pairs(2)
    z = block.coordinates
    back = torch.stack([z.inverse(e) for e in torch.eye(2)], 1)
    condition = torch.linalg.cond(back)
    stretch = distance(block(a), block(b)) / distance(a, b)
    assert condition > 1.5
    assert (stretch >= (1 - L) / condition - 1e-9).all()
    assert (stretch <= 1 + condition * L + 1e-9).all()
    assert stretch.max() > 1 + L, "so that the condition is needed"
    inside = distance(z(block(a)), z(block(b))) / distance(z(a), z(b))
    assert (inside >= 1 - L - 1e-9).all()
    assert (inside <= 1 + L + 1e-9).all()


def test_composes_layers():
    g, x = zoo.dense(hidden_dims=(8, 7), activation=Tanh), torch.randn(5, zoo.DIM)
    h = x
    weights = [weight for _, weight in g.normalized_weights()]
    for i, (layer, acting) in enumerate(zip(g.layers, weights, strict=True)):
        h = h @ acting.weight.T + layer.bias
        h = g.activations[i](h) if i < 2 else h
    torch.testing.assert_close(g(x), h)


def test_constant_ignores_biases():
    g = zoo.dense(lipschitz=L)
    bound = g.lipschitz_bound()
    with torch.no_grad():
        for layer in g.layers:
            layer.bias.normal_(std=10.0)
    assert torch.equal(g.lipschitz_bound(), bound)
    a, b = pairs()
    assert (distance(g(a), g(b)) <= bound * distance(a, b)).all()


def test_jacobian_of_small_step():
    g, x = zoo.dense(), torch.randn(5, zoo.DIM)
    step = torch.randn(5, zoo.DIM)
    jacobian = g.linearize(x)
    for h in (1e-3, 1e-4):
        first_order = (g(x + h * step) - g(x)) / h
        assert (first_order - jacobian.mv(step)).norm() <= 50 * h


@pytest.mark.parametrize("shape", [(3, 6), (6, 3), (4, 4)])
def test_norm_is_largest_stretch(shape):
    weight = torch.randn(shape)
    norm = SingularValue()(weight)
    x = torch.randn(1000, shape[1])
    assert ((x @ weight.T).norm(dim=-1) <= norm * x.norm(dim=-1)).all()
    # The first right singular vector attains the norm.
    v = torch.linalg.svd(weight).Vh[0]
    torch.testing.assert_close((weight @ v).norm(), norm * v.norm())
    # Eq. 25: the largest value of a quadratic form on the unit sphere.
    torch.testing.assert_close(v @ weight.T @ weight @ v, norm**2)


@pytest.mark.parametrize("shape", [(3, 6), (6, 3), (4, 4)])
def test_norm_is_root_of_eigenvalue(shape):
    weight = torch.randn(shape)
    values, vectors = torch.linalg.eigh(weight.T @ weight)
    assert (values >= -1e-12).all()
    torch.testing.assert_close(SingularValue()(weight), values[-1].sqrt())
    # Eq. 26: a unit vector weighs the eigenvalues.
    x = torch.nn.functional.normalize(torch.randn(shape[1]), dim=0)
    weighed = (values * (vectors.T @ x) ** 2).sum()
    torch.testing.assert_close((weight @ x).square().sum(), weighed)
    assert weighed <= values[-1]


def test_eigenvalue_of_normal_matrices():
    a = torch.randn(4, 4)
    antisymmetric, rotation = a - a.T, torch.linalg.qr(a).Q
    for normal in (a + a.T, antisymmetric, rotation):
        torch.testing.assert_close(normal @ normal.T, normal.T @ normal)
        radius = torch.linalg.eigvals(normal).abs().max()
        torch.testing.assert_close(SingularValue()(normal), radius)
    # Both eigenvalues are 1/2, but the shear stretches by more than 10.
    shear = torch.tensor([[0.5, 10.0], [0.0, 0.5]])
    assert torch.linalg.eigvals(shear).abs().max() == 0.5
    assert SingularValue()(shear) > 10


# --- Power iteration: Eq. 32 to 34 ---------------------------------------------------------------


def test_power_iteration_from_below():
    weight, u = torch.randn(5, 4), torch.ones(4)
    norm = SingularValue()(weight)
    values = []
    for _ in range(200):
        u = torch.nn.functional.normalize(weight.T @ (weight @ u), dim=0)
        values.append(u @ weight.T @ weight @ u)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
    assert max(values) <= norm**2 * (1 + 1e-12)
    torch.testing.assert_close(values[-1], norm**2)


def test_power_iteration_forms():
    weight = torch.randn(5, 4)
    u = torch.linspace(1.0, 2.0, 5)  # start of PowerIteration
    for _ in range(7):
        v = torch.nn.functional.normalize(weight.T @ u, dim=0)
        u = torch.nn.functional.normalize(weight @ v, dim=0)
    torch.testing.assert_close(PowerIteration(steps=7)(weight), u @ weight @ v)
    # One step of Eq. 32 is two half steps of Eq. 34.
    torch.testing.assert_close(
        torch.nn.functional.normalize(weight.T @ u, dim=0),
        torch.nn.functional.normalize(weight.T @ weight @ v, dim=0),
    )


def test_power_iteration_start():
    # Singular vectors: (1, -1) with value 3, and (1, 1) with value 1.
    weight = torch.tensor([[2.0, -1.0], [-1.0, 2.0]])
    u = torch.ones(2)
    for _ in range(100):
        u = torch.nn.functional.normalize(weight @ u, dim=0)
    torch.testing.assert_close(u @ weight @ u, torch.tensor(1.0))
    torch.testing.assert_close(PowerIteration(steps=100)(weight), torch.tensor(3.0))
