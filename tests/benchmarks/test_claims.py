"""Questions of ``benchmarks/run/claims.py`` to this project and to other packages."""

import math
import warnings

import pytest
import torch

pytest.importorskip("normflows", reason="needs the extra bench")

from benchmarks.peers.contenders import Contender
from benchmarks.peers.packages import TOLD, WORK, Package, data, packages, share_of
from benchmarks.run import claims

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
]


def package_of(contender, from_noise=None, blocks=()):
    return Package(lambda: contender, from_noise, lambda module: 1.0, lambda module: list(blocks))


@pytest.mark.parametrize("name", packages())
def test_answers_every_question(name):
    found = claims.answers(packages()[name], steps=3, draws=3)
    assert set(found) == set(claims.QUESTIONS.values())
    numbers = [v for k, v in found.items() if k not in ("frameworks", "through")]
    assert all(math.isfinite(float(text.split()[0].rstrip(","))) for text in numbers)


def test_keeps_own_promises():
    package = packages()["this project"]
    contender = package.trained(20)
    assert 0 < package.share(contender.module) <= 1 + 1e-5
    repeat, error = claims.density(contender, 3)
    assert repeat == 0
    assert error < 1e-5
    assert claims.inverse(contender, package)[0] < 1e-4
    assert claims.through_inverse(contender, package) < 1e-4
    assert claims.frameworks(contender, package) == ["Pyro", "nflows"]
    means = [claims.gradient(contender, 20, spread=spread) for spread in (0.0, 1.0)]
    for mean in (claims.in_training(contender, 50), *means):
        assert abs(mean.value) < 5 * mean.error + 1e-3


def test_exact_density():
    """Compare with a scaled normal distribution, whose density is known."""
    torch.set_default_dtype(torch.float64)
    contender = Contender(torch.nn.Identity(), lambda x: x, lambda x: 2 * x + 1)
    x = data(10)
    normal = torch.distributions.Normal(-0.5, 0.5)
    torch.testing.assert_close(claims.exact(contender, x), normal.log_prob(x).sum(1))


def test_error_of_mean():
    torch.set_default_dtype(torch.float64)

    def noisy(x):
        exact = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
        return exact + 0.1 + torch.randn(len(x))

    torch.manual_seed(0)
    contender = Contender(torch.nn.Identity(), noisy, lambda x: x)
    assert claims.density(contender, 20)[1] == pytest.approx(0.8 / math.sqrt(20), rel=0.25)
    assert claims.density(contender, 2000)[1] == pytest.approx(0.1, rel=0.1)


def test_hears_warnings():
    contender = Contender(torch.nn.Identity(), lambda x: x, lambda x: x)

    def silent(module, z):
        return z + 1

    def warning(module, z):
        warnings.warn("far off", stacklevel=1)
        return z + 1

    def printing(module, z):
        print("far off")
        return z + 1

    def outdated(module, z):
        warnings.warn("call it otherwise", DeprecationWarning, stacklevel=1)
        return z + 1

    for from_noise, said in (
        (silent, False),
        (warning, True),
        (printing, True),
        (outdated, False),
    ):
        package = package_of(contender, from_noise)
        error, heard = claims.inverse(contender, package)
        assert heard is said
        assert error == pytest.approx(math.sqrt(WORK.dim), rel=1e-5)


def test_gradient_through_inverse():
    contender = Contender(torch.nn.Identity(), lambda x: x, lambda x: 2 * x)
    for factor, error in ((0.5, 0.0), (0.75, 0.5)):
        package = package_of(contender, lambda module, z, f=factor: f * z)
        assert claims.through_inverse(contender, package) == pytest.approx(error, abs=1e-6)
    package = package_of(contender, lambda module, z: z.detach())
    assert math.isnan(claims.through_inverse(contender, package))


def test_frameworks_of_package():
    contender = packages()["flowcon"].make()
    (block,) = packages()["flowcon"].blocks(contender.module)
    assert claims.frameworks(contender, package_of(contender, blocks=[block])) == ["nflows"]
    linear = torch.nn.Linear(WORK.dim, WORK.dim)
    assert claims.frameworks(contender, package_of(contender, blocks=[linear])) == []


def test_share_of_block():
    torch.set_default_dtype(torch.float64)
    layers = [torch.nn.Linear(2, 2) for _ in range(2 * WORK.blocks)]
    for i, layer in enumerate(layers):
        layer.weight.data = (0.5 if i < 6 else 2.0) * TOLD * torch.eye(2)
    layers[7].weight.data *= 0.75
    # Blocks of shares 1/4, 1/4, 1/4 and 4 * 0.75.
    assert share_of("Linear", TOLD, torch.nn.Sequential(*layers)) == pytest.approx(3.0)


def test_detects_missing_logdet():
    torch.set_default_dtype(torch.float64)
    scale = torch.nn.Parameter(torch.tensor(0.3))
    module = torch.nn.ParameterList([scale])

    def to_noise(x):
        return scale.exp() * x

    def right(x):
        normal = torch.distributions.Normal(0.0, 1.0)
        return normal.log_prob(to_noise(x)).sum(1) + WORK.dim * scale

    def none_of_the_log_determinant(x):
        return right(x) - WORK.dim * (scale - scale.detach())

    fine = Contender(module, right, to_noise)
    wrong = Contender(module, none_of_the_log_determinant, to_noise)
    for spread in (0.0, 1.0):
        assert claims.gradient(fine, 2, spread=spread).value < 1e-9
        assert claims.gradient(wrong, 2, spread=spread).value > 0.05
