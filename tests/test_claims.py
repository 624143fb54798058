"""What README says of the other packages can be asked of them, and of this project."""

import math
import warnings

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
    numbers = [v for k, v in found.items() if k not in ("frameworks", "through")]
    assert all(math.isfinite(float(text.split()[0].rstrip(","))) for text in numbers)


def test_this_project_keeps_what_it_promises():
    torch.set_default_dtype(torch.float32)
    package = claims.packages()["this project"]
    contender = package.trained(20)
    assert package.layer_norm(contender.module) <= 1 + 1e-5
    repeat, error = claims.density(contender, 3)
    assert repeat == 0
    assert error < 1e-5
    assert claims.inverse(contender, package)[0] < 1e-4
    assert claims.through_inverse(contender, package) < 1e-4
    assert claims.frameworks(package) == ["Pyro", "nflows"]
    for mean in (claims.in_training(contender, 50), claims.weighted(contender, 50)):
        assert abs(mean.value) < 5 * mean.error + 1e-3


def test_the_exact_density_is_that_of_the_flow():
    """By a flow whose density is known: a normal that ActNorm has scaled."""
    torch.set_default_dtype(torch.float64)
    contender = claims.Contender(torch.nn.Identity(), lambda x: x, lambda x: 2 * x + 1)
    x = claims.data(10)
    normal = torch.distributions.Normal(-0.5, 0.5)
    torch.testing.assert_close(claims.exact(contender, x), normal.log_prob(x).sum(1))


def test_what_is_said_while_inverting_is_heard():
    contender = claims.Contender(torch.nn.Identity(), lambda x: x, lambda x: x)

    def silent(module, z):
        return z + 1

    def warning(module, z):
        warnings.warn("far off", RuntimeWarning, stacklevel=1)
        return z + 1

    def printing(module, z):
        print("far off")
        return z + 1

    for from_noise, said in ((silent, False), (warning, True), (printing, True)):
        package = claims.Package("torch", lambda: contender, from_noise, lambda module: 1.0)
        error, heard = claims.inverse(contender, package)
        assert heard is said
        assert error == pytest.approx(math.sqrt(claims.WORK.dim), rel=1e-5)


def test_the_gradient_through_an_inverse_is_checked():
    contender = claims.Contender(torch.nn.Identity(), lambda x: x, lambda x: 2 * x)
    for factor, error in ((0.5, 0.0), (0.75, 0.5)):
        package = claims.Package(
            "torch", lambda: contender, lambda module, z, f=factor: f * z, lambda module: 1.0
        )
        assert claims.through_inverse(contender, package) == pytest.approx(error, abs=1e-6)
    package = claims.Package(
        "torch", lambda: contender, lambda module, z: z.detach(), lambda module: 1.0
    )
    assert math.isnan(claims.through_inverse(contender, package))
