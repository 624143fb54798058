"""The estimator for sbi's NPE, and the examples of ``docs/how-to/sbi.md``."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

pytest.importorskip("sbi", reason="needs the extra sbi")

from pyro_iresnet.activations import Sine
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.options import BlockOptions
from pyro_iresnet.sbi import iresnet_builder

from .recipe import EXAMPLES, NPE, draw, fitted

BoxUniform = pytest.importorskip("sbi.utils").BoxUniform


pytestmark = [
    pytest.mark.filterwarnings("ignore:Maximum number of epochs"),
    pytest.mark.filterwarnings("ignore:Capping max_sampling_batch_size"),
]


def test_runs_examples():
    names = {}
    for i, code in enumerate(EXAMPLES):
        exec(compile(code, f"docs/how-to/sbi.md, example {i}", "exec"), names)
    assert names["samples"].shape == (100, 5, 2)


def test_refuses_unknown_keyword():
    with pytest.raises(ArgumentTypeError, match="Did you mean 'hidden_features'"):
        iresnet_builder(hidden_feature=8)


def test_pickles():
    build = pickle.loads(pickle.dumps(iresnet_builder(2, hidden_features=8)))
    net = build(torch.randn(20, 2), torch.randn(20, 3))
    assert net.condition_shape == (3,)


@pytest.mark.parametrize(
    ("options", "highest"),
    [
        ({}, 3.0),
        ({"activation": partial(Sine, frequencies=(0.5, 7.0))}, 7.0),
        ({"options": BlockOptions(lipschitz=0.9)}, 3.0),
        ({"options": [BlockOptions(activation=partial(Sine, frequencies=(0.5, 7.0)))]}, 7.0),
    ],
)
def test_frequencies(options, highest):
    net = iresnet_builder(2, **options)(torch.randn(20, 2), torch.randn(20, 3))
    found = {m.frequencies[1] for m in net.modules() if isinstance(m, Sine)}
    assert found == {highest}


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"embedding_net": nn.Flatten}, "embedding_net to be an object"),
        ({"num_blocks": 2.5}, "num_blocks"),
        ({"lipschitz": 2}, "lipschitz"),
        ({"hidden_features": "wide"}, "hidden_features"),
        ({"norm": 3, "options": BlockOptions()}, "norm"),
        ({"likelihood": 1}, "likelihood"),
    ],
)
def test_refuses_at_the_call(wrong, name):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=name):
        iresnet_builder(**wrong)


def test_refuses_series_without_embedding():
    with pytest.raises(ArgumentError, match="embedding_net"):
        iresnet_builder()(torch.randn(20, 2), torch.randn(20, 3, 4))


def test_ignores_two_rows():
    theta, x = 5 + 3 * torch.randn(500, 2), torch.randn(500, 3)
    net = iresnet_builder()(theta, x)
    start = copy.deepcopy(net.state_dict())
    net.log_prob(theta[None, :2], condition=x[:2])  # as sbi does before training
    assert all(torch.equal(value, start[name]) for name, value in net.state_dict().items())
    net.loss(theta, x)
    noise = net.net.transform_to_noise(theta, x)
    torch.testing.assert_close(noise.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(noise.std(0), torch.ones(2), atol=1e-3, rtol=0)


def test_ignores_units():
    theta, x = torch.randn(500, 2), torch.randn(500, 3)
    units, location = torch.tensor([1e-4, 1e4]), torch.tensor([1e-3, -1e5])
    torch.manual_seed(1)
    plain = iresnet_builder()(theta, x).loss(theta, x)
    torch.manual_seed(1)
    other_theta, other_x = location + units * theta, 1e6 * x
    scaled = iresnet_builder()(other_theta, other_x).loss(other_theta, other_x)
    torch.testing.assert_close(scaled, plain + units.log().sum(), atol=1e-3, rtol=1e-3)


SERIES = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 5))


@pytest.fixture(scope="module")
def quick(_as_sbi_has_it):
    """Train briefly with an embedding net over four points. Return posterior and data."""
    torch.manual_seed(0)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta = prior.sample((400,))
    x = theta[:, None] + 0.5 * torch.randn(400, 4, 2)
    build_fn = iresnet_builder(
        num_blocks=2, hidden_features=16, embedding_net=copy.deepcopy(SERIES)
    )
    return fitted(prior, theta, x, build_fn, epochs=[3], rate=5e-3, batch=100), theta, x


def test_deterministic_float32(quick):
    posterior, theta, x = quick
    assert all(p.dtype == torch.float32 for p in posterior.posterior_estimator.parameters())
    first, second = (posterior.log_prob(theta[:50], x=x[0], norm_posterior=False) for _ in range(2))
    assert first.dtype == torch.float32
    assert torch.equal(first, second)


def test_trains_embedding_net(quick):
    posterior, theta, x = quick
    (_, trained) = posterior.posterior_estimator.embedding_net[0]
    assert any(
        not torch.equal(p, q)
        for p, q in zip(trained.parameters(), SERIES.parameters(), strict=True)
    )
    one, other = (posterior.log_prob(theta[:5], x=x[i], norm_posterior=False) for i in (0, 1))
    assert not torch.allclose(one, other)


def test_density_of_samples(quick):
    posterior, _, x = quick
    net = posterior.posterior_estimator
    samples, log_prob = net.sample_and_log_prob(torch.Size([200]), condition=x[:1])
    torch.testing.assert_close(net.log_prob(samples, x[:1]), log_prob, atol=1e-4, rtol=1e-4)


def test_batched_observations(quick):
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
def test_equal_copies(quick, copied):
    posterior, theta, x = quick
    other = copied(posterior)
    log_probs = [p.log_prob(theta[:20], x=x[0], norm_posterior=False) for p in (posterior, other)]
    assert torch.equal(*log_probs)
    samples = []
    for each in (posterior, other):
        torch.manual_seed(3)
        samples.append(draw(each, 20, x[0]))
    assert torch.equal(*samples)


def test_gradients(quick):
    posterior, theta, x = quick
    theta, x = theta[:5].clone().requires_grad_(), x[:1].clone().requires_grad_()
    log_prob = posterior.log_prob(theta, x=x, norm_posterior=False, track_gradients=True)
    for gradient in torch.autograd.grad(log_prob.sum(), (theta, x)):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_second_round():
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    build_fn = iresnet_builder(num_blocks=2, hidden_features=16)
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
