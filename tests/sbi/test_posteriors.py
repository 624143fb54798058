"""Posteriors of the recipe on problems with a known posterior."""

import copy
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

pytest.importorskip("sbi", reason="needs the extra sbi")

from pyro_iresnet.sbi import iresnet_builder

from .recipe import draw, fitted

BoxUniform = pytest.importorskip("sbi.utils").BoxUniform
diagnostics = pytest.importorskip("sbi.diagnostics")
c2st = pytest.importorskip("sbi.utils.metrics").c2st


pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:Capping max_sampling_batch_size"),
]


# --- Linear and Gaussian: the posterior in closed form -------------------------------------------


NOISE = 0.3
MIXING = torch.tensor(
    [[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [0.3, 0.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float32
)


def measured(theta):
    return theta @ MIXING.T + NOISE * torch.randn(len(theta), 4)


def gaussian_posterior(x):
    precision = torch.eye(3) + MIXING.T @ MIXING / NOISE**2
    return MultivariateNormal(
        torch.linalg.solve(precision, MIXING.T @ x / NOISE**2), precision_matrix=precision
    )


@pytest.fixture(scope="module")
def linear(_as_sbi_has_it):
    torch.manual_seed(0)
    prior = MultivariateNormal(torch.zeros(3), torch.eye(3))
    theta = prior.sample((20_000,))
    build_fn = iresnet_builder(num_blocks=3, hidden_features=32)
    epochs = [25, 10, 10]
    return fitted(prior, theta, measured(theta), build_fn, epochs=epochs, rate=5e-3, batch=500)


# One third of all theta lie farther out than the last truth.
TRUTHS = [[0.0, 0.0, 0.0], [1.0, -0.5, 0.5], [-1.0, 1.0, 1.0], [0.5, 1.5, -1.0]]


@pytest.mark.slow
@pytest.mark.parametrize("truth", TRUTHS)
def test_gaussian_posterior(linear, truth):
    count = 4000
    x = measured(torch.tensor([truth]))[0]
    exact = gaussian_posterior(x)
    # Standardise the samples by the exact posterior.
    samples = torch.linalg.solve_triangular(
        exact.scale_tril, (draw(linear, count, x) - exact.mean).T, upper=False
    )
    error = 4 / math.sqrt(count)
    mean, excess = samples.mean(1), samples.cov() - torch.eye(3)
    reference = exact.sample((count,))
    gap = exact.log_prob(reference) - linear.log_prob(reference, x=x, norm_posterior=False)
    print(f"mean {mean.abs().max():.3f} cov {excess.abs().max():.3f} KL {gap.mean():.4f}")
    assert (mean.abs() < error + 0.05).all()
    assert (excess.abs() < math.sqrt(2) * error + 0.05).all()
    assert -error * gap.std() < gap.mean() < 0.01
    assert gap.abs().quantile(0.9) < 0.3


@pytest.mark.slow
def test_gaussian_mode(linear):
    x = measured(torch.tensor([TRUTHS[1]]))[0]
    exact = gaussian_posterior(x)
    posterior = copy.deepcopy(linear).set_default_x(x)
    mode = posterior.map(num_iter=200, learning_rate=0.05, num_init_samples=200)
    assert ((mode[0] - exact.mean).abs() < 0.3 * exact.stddev).all()


# --- Two moons: two thin crescents, whose density is known ---------------------------------------


def crescent(count):
    angle, radius = math.pi * (torch.rand(count) - 0.5), 0.1 + 0.01 * torch.randn(count)
    return torch.stack([0.25 + radius * angle.cos(), radius * angle.sin()], -1)


def turned(theta):
    a, b = theta.unbind(-1)
    return torch.stack([a + b, b - a], -1) / math.sqrt(2)


def two_moons(theta):
    q, s = turned(theta).unbind(-1)
    return crescent(len(theta)) + torch.stack([-q.abs(), s], -1)


def moons_sample(count, x):
    """Draw from the exact posterior: x minus a crescent is (-abs(q), s), with either sign of q."""
    rest = x - crescent(count)
    q = rest[:, 0] * torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    s = rest[:, 1]
    return torch.stack([q - s, q + s], -1) / math.sqrt(2)


def moons_log_prob(theta, x):
    """Compute the exact log-density, with both crescents inside the box of the prior."""
    q, s = turned(theta).unbind(-1)
    away = x - torch.stack([-q.abs(), s], -1) - torch.tensor([0.25, 0.0])
    radius = away.norm(dim=-1)
    log_prob = Normal(0.1, 0.01).log_prob(radius) - (2 * math.pi * radius).log()
    return log_prob.where(away[..., 0] > 0, -math.inf)


@pytest.fixture(scope="module")
def moons(_as_sbi_has_it):
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((50_000,))
    build_fn = iresnet_builder(num_blocks=6)
    epochs = [25, 12, 12]
    return fitted(prior, theta, two_moons(theta), build_fn, epochs=epochs, rate=5e-3, batch=250)


MOONS = [[0.0, 0.0], [-0.2, 0.3], [-0.4, -0.2]]


@pytest.mark.parametrize("x", MOONS)
def test_exact_two_moons(x):
    x = torch.tensor(x)
    axis = torch.linspace(-1, 1, 2001)
    grid = torch.cartesian_prod(axis, axis)
    density = moons_log_prob(grid, x).exp() * 1e-6
    assert abs(density.sum() - 1) < 0.01
    samples = moons_sample(20_000, x)
    torch.testing.assert_close(samples.mean(0), density @ grid, atol=0.02, rtol=0)
    torch.testing.assert_close(
        samples.std(0), (density @ (grid - density @ grid) ** 2).sqrt(), atol=0.02, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("x", MOONS)
def test_two_moons_posterior(moons, x):
    x = torch.tensor(x)
    reference, samples = moons_sample(2000, x), draw(moons, 2000, x)
    gap = moons_log_prob(reference, x) - moons.log_prob(reference, x=x, norm_posterior=False)
    score = c2st(samples, reference)
    upper = (samples.sum(-1) > 0).float().mean()
    print(f"KL {gap.mean():.3f} c2st {float(score):.3f} share of one moon {upper:.3f}")
    # Gap at the first x: 5.0 nats for the prior, 2.7 for a Gaussian of the right covariance.
    assert gap.mean() < 0.15
    assert score < 0.57
    assert abs(upper - 0.5) < 0.05


# --- Calibration ---------------------------------------------------------------------------------


class Misscaled:
    """Draws of a posterior, scaled about the mean and shifted."""

    def __init__(self, posterior, factor=1.0, shift=0.0):
        self.posterior, self.factor, self.shift = posterior, factor, shift

    def sample_batched(self, shape, x, **options):
        samples = self.posterior.sample_batched(shape, x=x, **options)
        mean = samples.mean(0)
        return mean + self.factor * (samples - mean) + self.shift * samples.std(0)


def calibration(posterior, theta, x):
    ranks, draws = diagnostics.run_sbc(
        theta, x, posterior, num_posterior_samples=100, show_progress_bar=False
    )
    # Spread the integer ranks for the comparison with a continuous distribution.
    ranks = ranks + torch.rand_like(ranks)
    result = diagnostics.check_sbc(ranks, theta, draws, num_posterior_samples=101)
    print({name: [round(v, 5) for v in value.tolist()] for name, value in result.items()})
    return result


def is_calibrated(result):
    return bool(
        (result["ks_pvals"] > 0.01).all()
        and ((result["c2st_dap"] - 0.5).abs() < 0.06).all()
        and (result["c2st_ranks"] < 0.57).all()
    )


PROBLEMS = {"linear": measured, "moons": two_moons}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_calibration(name, request):
    posterior = request.getfixturevalue(name)
    torch.manual_seed(1)  # draws unlike the training data
    theta = posterior.prior.sample((1000,))
    x = PROBLEMS[name](theta)
    assert is_calibrated(calibration(posterior, theta, x))


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "shift"), [(0.7, 0.0), (1.5, 0.0), (1.0, 0.3)])
def test_calibration_detects_errors(linear, factor, shift):
    torch.manual_seed(1)
    theta = linear.prior.sample((1000,))
    result = calibration(Misscaled(linear, factor, shift), theta, measured(theta))
    assert (result["ks_pvals"] < 1e-3).all()
    assert not is_calibrated(result)


class ExactMoons:
    """Exact posterior of two moons, for ``run_sbc``."""

    def sample_batched(self, shape, x, **_):
        # Part of a crescent may lie outside the box, or have no q.
        samples = torch.stack([moons_sample(50 * shape[0], each) for each in x], 1)
        inside = (samples.abs() <= 1).all(-1) & moons_log_prob(samples, x).isfinite()
        assert (inside.sum(0) >= shape[0]).all()
        kept = inside.byte().argsort(stable=True, dim=0, descending=True)[: shape[0]]
        return samples.gather(0, kept[..., None].expand(*kept.shape, 2))


def test_calibration_passes_exact_moons():
    torch.manual_seed(1)
    theta = 2 * torch.rand(1000, 2) - 1
    assert is_calibrated(calibration(ExactMoons(), theta, two_moons(theta)))
