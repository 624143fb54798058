"""What README says of the other packages can be asked of them, and of this project."""

import math

import pytest
import torch

pytest.importorskip("normflows", reason="needs the extra bench")

from benchmarks import claims

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
]


@pytest.mark.parametrize("name", claims.packages())
def test_every_question_has_an_answer(name):
    found = claims.answers(claims.packages()[name], steps=3, draws=3)
    assert set(found) == set(claims.QUESTIONS.values())
    assert all(math.isfinite(float(text.split()[0])) for text in found.values())


def test_this_project_keeps_what_it_promises():
    torch.set_default_dtype(torch.float32)
    package = claims.packages()["this project"]
    contender = package.trained(20)
    assert package.layer_norm(contender.module) <= 1 + 1e-5
    repeat, error = claims.density(contender, 3)
    assert repeat == 0
    assert error < 1e-5
    assert claims.inverse(contender, package) < 1e-4
    for mean in (claims.in_training(contender, 50), claims.weighted(contender, 50)):
        assert abs(mean.value) < 5 * mean.error + 1e-3


def test_the_exact_density_is_that_of_the_flow():
    """By a flow whose density is known: a normal that ActNorm has scaled."""
    torch.set_default_dtype(torch.float64)
    contender = claims.Contender(torch.nn.Identity(), lambda x: x, lambda x: 2 * x + 1)
    x = claims.data(10)
    normal = torch.distributions.Normal(-0.5, 0.5)
    torch.testing.assert_close(claims.exact(contender, x), normal.log_prob(x).sum(1))
