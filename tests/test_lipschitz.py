import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_iresnet import ContractionError, DenseContraction, PowerIteration, ResidualBlock, testing

from . import zoo


@pytest.mark.parametrize("name", zoo.CONTRACTIONS)
def test_the_contract(name):
    testing.check_contraction(zoo.CONTRACTIONS[name](), torch.randn(40, *zoo.event_shape(name)))


@pytest.mark.parametrize("name", zoo.CONDITIONAL)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_contract_under_a_context(name, scale):
    context = scale * torch.randn(40, zoo.CONTEXT)
    testing.check_contraction(zoo.CONDITIONAL[name](), torch.randn(40, zoo.DIM), context)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 12), max_size=3),
    st.floats(0.05, 0.99),
    st.floats(0.1, 50.0),
    st.sampled_from(sorted(zoo.ACTIVATIONS)),
    st.sampled_from(sorted(zoo.CERTIFIED_NORMS)),
    st.integers(0, 2**16),
)
def test_no_pair_of_points_is_stretched(dim, hidden, lipschitz, gain, activation, norm, seed):
    torch.manual_seed(seed)
    g = zoo.trained(
        DenseContraction(
            dim,
            hidden,
            lipschitz=lipschitz,
            activation=zoo.ACTIVATIONS[activation],
            norm=zoo.CERTIFIED_NORMS[norm],
        ),
        gain,
    ).double()
    testing.check_lipschitz_bound(g, torch.randn(20, dim, dtype=torch.float64))


def expand(g, steps=300, every=10):
    """Train towards a map that stretches; yield while at it."""
    g.float()
    optimizer = torch.optim.Adam(g.parameters(), lr=1e-2)
    for step in range(steps):
        x = torch.randn(64, zoo.DIM, dtype=torch.float32)
        loss = (x + g(x) - 5 * x).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            yield step


@pytest.mark.parametrize("name", zoo.CERTIFIED_NORMS)
def test_the_bound_holds_all_through_training(name):
    g = DenseContraction(zoo.DIM, [32, 32], lipschitz=0.9, norm=zoo.CERTIFIED_NORMS[name])
    for _ in expand(g):
        bound = float(g.lipschitz_bound())
        acting = g.acting()
        weights = [layer.weight.detach().double() for layer in acting.layers]
        norms = [torch.linalg.matrix_norm(w, ord=2) for w in weights]
        for norm, layer in zip(norms, acting.layers, strict=True):
            assert norm <= layer.norm() * (1 + 1e-5)
        slopes = math.prod(a.bound for a in acting.activations)
        exact = float(torch.stack(norms).prod()) * slopes
        assert exact <= bound + 1e-5
        assert bound <= 0.9 + 1e-5
    x = torch.randn(50, zoo.DIM, dtype=torch.float32)
    norms = torch.linalg.matrix_norm(g.linearize(x).as_matrix(), ord=2)
    assert norms.max() <= bound + 1e-5


def test_power_iteration_promises_nothing_and_the_inverse_refuses():
    g = DenseContraction(zoo.DIM, [64, 64], lipschitz=0.99, norm=PowerIteration(steps=1))
    zoo.trained(g)
    assert g.lipschitz_bound() > 1
    with pytest.raises(ContractionError, match=r"proven Lipschitz bound is 1\.\d+"):
        ResidualBlock(g).inverse(torch.randn(3, zoo.DIM))
