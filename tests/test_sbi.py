"""A real client: sbi's NPE over the estimator of ``docs/sbi.md``."""

import copy
import math
import pickle
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

pytest.importorskip("sbi")
NPE = pytest.importorskip("sbi.inference").NPE
BoxUniform = pytest.importorskip("sbi.utils").BoxUniform
diagnostics = pytest.importorskip("sbi.diagnostics")
c2st = pytest.importorskip("sbi.utils.metrics").c2st

pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:Capping max_sampling_batch_size"),
]

PAGE = Path(__file__).parent.parent / "docs" / "sbi.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def build_iresnet(*args, **options):
    """The recipe of the page, word for word."""
    names = {}
    exec(compile(EXAMPLES[0], "docs/sbi.md, the recipe", "exec"), names)
    return names["build_iresnet"](*args, **options)


@pytest.fixture(scope="module", autouse=True)
def _as_sbi_has_it(tmp_path_factory):
    """Float32, and a folder of its own, since sbi writes logs where it runs."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sbi"))
        yield
    torch.set_default_dtype(default)


@pytest.fixture(autouse=True)
def _float32(_fresh_state):
    torch.set_default_dtype(torch.float32)


def fitted(prior, theta, x, build_fn, *, epochs, rate, batch):
    """The posterior after as many epochs at each of a falling rate."""
    inference = NPE(prior, density_estimator=build_fn, show_progress_bars=False)
    inference.append_simulations(theta, x)
    done = 0
    for i, count in enumerate(epochs):
        done += count
        if i > 0:
            for group in inference.optimizer.param_groups:
                group["lr"] = rate / 5**i
        inference.train(
            training_batch_size=batch,
            learning_rate=rate,
            max_num_epochs=done,
            stop_after_epochs=done,
            resume_training=i > 0,
        )
    return inference.build_posterior()


def draw(posterior, count, x):
    return posterior.sample((count,), x=x, show_progress_bars=False)


# --- The recipe, and what sbi does with it -------------------------------------------------------


def test_the_examples_of_the_page_run_one_after_the_other():
    names = {}
    for i, code in enumerate(EXAMPLES):
        exec(compile(code, f"docs/sbi.md, example {i}", "exec"), names)
    assert names["samples"].shape == (100, 5, 2)


def test_two_rows_before_training_do_not_start_the_flow():
    theta, x = 5 + 3 * torch.randn(500, 2), torch.randn(500, 3)
    net = build_iresnet(theta, x)
    start = copy.deepcopy(net.state_dict())
    net.log_prob(theta[None, :2], condition=x[:2])  # what sbi does before it trains
    assert all(torch.equal(value, start[name]) for name, value in net.state_dict().items())
    net.loss(theta, x)
    noise = net.net.transform_to_noise(theta, x)
    torch.testing.assert_close(noise.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(noise.std(0), torch.ones(2), atol=1e-3, rtol=0)


def test_units_do_not_matter():
    theta, x = torch.randn(500, 2), torch.randn(500, 3)
    units, location = torch.tensor([1e-4, 1e4]), torch.tensor([1e-3, -1e5])
    torch.manual_seed(1)
    plain = build_iresnet(theta, x).loss(theta, x)
    torch.manual_seed(1)
    other_theta, other_x = location + units * theta, 1e6 * x
    scaled = build_iresnet(other_theta, other_x).loss(other_theta, other_x)
    torch.testing.assert_close(scaled, plain + units.log().sum(), atol=1e-3, rtol=1e-3)


SERIES = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 5))


@pytest.fixture(scope="module")
def quick(_as_sbi_has_it):
    """Hardly trained, with an embedding net over a series of four points: posterior and data."""
    torch.manual_seed(0)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((400,))
    x = theta[:, None] + 0.5 * torch.randn(400, 4, 2)
    build_fn = partial(
        build_iresnet, num_blocks=2, hidden_features=16, embedding_net=copy.deepcopy(SERIES)
    )
    return fitted(prior, theta, x, build_fn, epochs=[3], rate=5e-3, batch=100), theta, x


def test_float32_and_deterministic(quick):
    posterior, theta, x = quick
    assert all(p.dtype == torch.float32 for p in posterior.posterior_estimator.parameters())
    first, second = (posterior.log_prob(theta[:50], x=x[0], norm_posterior=False) for _ in range(2))
    assert first.dtype == torch.float32
    assert torch.equal(first, second)


def test_the_embedding_net_is_trained_and_used(quick):
    posterior, theta, x = quick
    (_, trained) = posterior.posterior_estimator.embedding_net[0]
    assert any(
        not torch.equal(p, q)
        for p, q in zip(trained.parameters(), SERIES.parameters(), strict=True)
    )
    one, other = (posterior.log_prob(theta[:5], x=x[i], norm_posterior=False) for i in (0, 1))
    assert not torch.allclose(one, other)


def test_a_sample_has_the_density_it_comes_with(quick):
    posterior, _, x = quick
    net = posterior.posterior_estimator
    samples, log_prob = net.sample_and_log_prob(torch.Size([200]), condition=x[:1])
    torch.testing.assert_close(net.log_prob(samples, x[:1]), log_prob, atol=1e-4, rtol=1e-4)


def test_batches_of_observations(quick):
    posterior, _, x = quick
    samples = posterior.sample_batched((2000,), x=x[:3], show_progress_bars=False)
    assert samples.shape == (2000, 3, 2)
    joint = posterior.log_prob_batched(samples[:50], x=x[:3], norm_posterior=False)
    for i in range(3):
        alone = posterior.log_prob(samples[:50, i], x=x[i], norm_posterior=False)
        torch.testing.assert_close(joint[:, i], alone, atol=1e-4, rtol=1e-4)
        # Six standard errors of a difference of means.
        gap = samples[:, i].mean(0) - draw(posterior, 2000, x[i]).mean(0)
        assert (gap.abs() < 6 * samples[:, i].std(0) * math.sqrt(2 / 2000)).all()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda posterior: pickle.loads(pickle.dumps(posterior))]
)
def test_copies_are_equal(quick, copied):
    posterior, theta, x = quick
    other = copied(posterior)
    log_probs = [p.log_prob(theta[:20], x=x[0], norm_posterior=False) for p in (posterior, other)]
    assert torch.equal(*log_probs)
    samples = []
    for each in (posterior, other):
        torch.manual_seed(3)
        samples.append(draw(each, 20, x[0]))
    assert torch.equal(*samples)


def test_gradients_reach_parameters_and_data(quick):
    posterior, theta, x = quick
    theta, x = theta[:5].clone().requires_grad_(), x[:1].clone().requires_grad_()
    log_prob = posterior.log_prob(theta, x=x, norm_posterior=False, track_gradients=True)
    for gradient in torch.autograd.grad(log_prob.sum(), (theta, x)):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_a_second_round():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    build_fn = partial(build_iresnet, num_blocks=2, hidden_features=16)
    inference = NPE(prior, density_estimator=build_fn, show_progress_bars=False)
    observed = torch.tensor([0.2, -0.3])
    proposal = prior
    for _ in range(2):
        theta = proposal.sample((200,))
        x = theta + 0.2 * torch.randn(200, 2)
        inference.append_simulations(theta, x, proposal=proposal)
        inference.train(training_batch_size=100, num_atoms=5, max_num_epochs=2)
        proposal = inference.build_posterior().set_default_x(observed)
    assert math.isfinite(inference.summary["best_validation_loss"][-1])
    assert proposal.prior.support.check(draw(proposal, 100, observed)).all()


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
    build_fn = partial(build_iresnet, num_blocks=3, hidden_features=32)
    epochs = [25, 10, 10]
    return fitted(prior, theta, measured(theta), build_fn, epochs=epochs, rate=5e-3, batch=500)


# A third of all theta are farther out than the last.
TRUTHS = [[0.0, 0.0, 0.0], [1.0, -0.5, 0.5], [-1.0, 1.0, 1.0], [0.5, 1.5, -1.0]]


@pytest.mark.slow
@pytest.mark.parametrize("truth", TRUTHS)
def test_mean_covariance_and_density_of_a_gaussian_posterior(linear, truth):
    count = 4000
    x = measured(torch.tensor([truth]))[0]
    exact = gaussian_posterior(x)
    # In coordinates in which the exact posterior is standard normal.
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
def test_the_mode_of_a_gaussian_posterior(linear):
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
    """Of the exact posterior: what a crescent leaves of x is (-abs(q), s), of either sign of q."""
    rest = x - crescent(count)
    q = rest[:, 0] * torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    s = rest[:, 1]
    return torch.stack([q - s, q + s], -1) / math.sqrt(2)


def moons_log_prob(theta, x):
    """Of the exact posterior, where both crescents are inside the prior's box."""
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
    build_fn = partial(build_iresnet, num_blocks=6)
    epochs = [25, 12, 12]
    return fitted(prior, theta, two_moons(theta), build_fn, epochs=epochs, rate=5e-3, batch=250)


MOONS = [[0.0, 0.0], [-0.2, 0.3], [-0.4, -0.2]]


@pytest.mark.parametrize("x", MOONS)
def test_the_exact_posterior_of_two_moons(x):
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
def test_density_and_samples_of_two_moons(moons, x):
    x = torch.tensor(x)
    reference, samples = moons_sample(2000, x), draw(moons, 2000, x)
    gap = moons_log_prob(reference, x) - moons.log_prob(reference, x=x, norm_posterior=False)
    score = c2st(samples, reference)
    upper = (samples.sum(-1) > 0).float().mean()
    print(f"KL {gap.mean():.3f} c2st {float(score):.3f} share of one moon {upper:.3f}")
    # At the first x the prior is 5.0 nats away, the Gaussian of the right covariance 2.7.
    assert gap.mean() < 0.15
    assert score < 0.57
    assert abs(upper - 0.5) < 0.05


# --- Calibration ---------------------------------------------------------------------------------


class Misscaled:
    """The draws of a posterior, drawn in towards their mean, or away from it, and shifted."""

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
    # Ranks are integers, and are compared with a continuous distribution.
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
    torch.manual_seed(1)  # not the draws it was trained on
    theta = posterior.prior.sample((1000,))
    x = PROBLEMS[name](theta)
    assert is_calibrated(calibration(posterior, theta, x))


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "shift"), [(0.7, 0.0), (1.5, 0.0), (1.0, 0.3)])
def test_the_check_of_calibration_sees_what_is_wrong(linear, factor, shift):
    torch.manual_seed(1)
    theta = linear.prior.sample((1000,))
    result = calibration(Misscaled(linear, factor, shift), theta, measured(theta))
    assert (result["ks_pvals"] < 1e-3).all()
    assert not is_calibrated(result)


class ExactMoons:
    """The exact posterior of two moons, as far as ``run_sbc`` asks for it."""

    def sample_batched(self, shape, x, **_):
        # Part of a crescent may be outside the box, or have no q.
        samples = torch.stack([moons_sample(50 * shape[0], each) for each in x], 1)
        inside = (samples.abs() <= 1).all(-1) & moons_log_prob(samples, x).isfinite()
        assert (inside.sum(0) >= shape[0]).all()
        kept = inside.byte().argsort(stable=True, dim=0, descending=True)[: shape[0]]
        return samples.gather(0, kept[..., None].expand(*kept.shape, 2))


def test_the_check_of_calibration_passes_the_exact_posterior_of_two_moons():
    torch.manual_seed(1)
    theta = 2 * torch.rand(1000, 2) - 1
    assert is_calibrated(calibration(ExactMoons(), theta, two_moons(theta)))
