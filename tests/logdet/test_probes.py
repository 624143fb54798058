import math

import pytest
import torch

from pyro_iresnet._counter_rng import fixed_normals, fixed_signs
from pyro_iresnet.logdet.probe import rademacher

SIZE = (400, 500)
MAKERS = {
    "random": lambda shape: rademacher(shape, torch.zeros(())),
    "fixed": lambda shape: fixed_signs(shape, 0, torch.zeros(())),
    "fixed_7": lambda shape: fixed_signs(shape, 7, torch.zeros(())),
}


@pytest.mark.parametrize("name", MAKERS)
def test_independent_signs(name):
    signs = MAKERS[name](SIZE)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean().abs() < 4 / math.sqrt(signs.numel())
    # Correlations of neighbours, rows and columns are means of independent signs.
    for a, b in ((signs[1:], signs[:-1]), (signs[:, 1:], signs[:, :-1]), (signs[2:], signs[:-2])):
        assert (a * b).mean().abs() < 4 / math.sqrt(a.numel())
    gram = signs.T @ signs / len(signs)
    gram.fill_diagonal_(0)
    assert gram.abs().max() < 6 / math.sqrt(len(signs))


@pytest.mark.parametrize("size", [1, 31, 32, 33, 65])
def test_any_size(size):
    assert rademacher((size,), torch.zeros(())).shape == (size,)
    assert rademacher((0, size), torch.zeros(())).shape == (0, size)


def test_fixed_signs_follow_seed():
    like = torch.zeros((), dtype=torch.float32)
    first = fixed_signs((5, 9), 3, like)
    torch.rand(7)
    assert torch.equal(first, fixed_signs((5, 9), 3, like))
    assert first.dtype == torch.float32
    others = [fixed_signs((5, 9), seed, like) for seed in (-3, 0, 2, 4, 2**31 - 1, 2**40)]
    assert all(not torch.equal(first, other) for other in others)


def test_random_signs_follow_seed():
    torch.manual_seed(5)
    first = rademacher((100,), torch.zeros(()))
    second = rademacher((100,), torch.zeros(()))
    torch.manual_seed(5)
    assert torch.equal(first, rademacher((100,), torch.zeros(())))
    assert not torch.equal(first, second)


def test_fixed_normals():
    x = fixed_normals((20_000, 3), 0, torch.zeros(()))
    assert torch.equal(x, fixed_normals((20_000, 3), 0, torch.zeros(())))
    assert not torch.equal(x, fixed_normals((20_000, 3), 1, torch.zeros(())))
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), torch.eye(3), atol=0.04, rtol=0)
    assert x.isfinite().all()
