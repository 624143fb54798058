"""The estimator for sbi's NLE."""

import pickle

import pytest
import torch
from torch.distributions import MultivariateNormal

pytest.importorskip("sbi", reason="needs the extra sbi")

from sbi.inference import NLE, NPE

from pyro_iresnet.errors import ArgumentError
from pyro_iresnet.sbi import iresnet_builder

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs")
NOISE, SHIFT = 0.3, 100.0


def mixing(count):
    return torch.tensor([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])[:count]


def data(count, rows=2000):
    theta = torch.randn(rows, 2)
    return theta, SHIFT + theta @ mixing(count).T + NOISE * torch.randn(rows, count)


def inference(kind, **options):
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    build = pickle.loads(pickle.dumps(iresnet_builder(2, hidden_features=16, **options)))
    return kind(prior, density_estimator=build, show_progress_bars=False)


@pytest.mark.parametrize("count", [2, 3])
def test_likelihood(count):
    torch.manual_seed(0)
    made = inference(NLE, likelihood=True)
    net = made.append_simulations(*data(count)).train(
        training_batch_size=100, learning_rate=1e-2, max_num_epochs=15
    )
    theta, x = data(count)
    precision = torch.eye(count) / NOISE**2
    exact = MultivariateNormal(SHIFT + theta @ mixing(count).T, precision_matrix=precision)
    with torch.no_grad():
        gap = exact.log_prob(x) - net.eval().log_prob(x, condition=theta)[0]
    assert gap.mean() < 0.4
    posterior = made.build_posterior(sample_with="importance")
    samples = posterior.sample((2000,), x=x[:1], show_progress_bars=False)
    within = torch.eye(2) + mixing(count).T @ mixing(count) / NOISE**2
    mean = torch.linalg.solve(within, mixing(count).T @ (x[0] - SHIFT) / NOISE**2)
    assert ((samples.mean(0) - mean).abs() < 0.15).all()


@pytest.mark.parametrize(("kind", "likelihood"), [(NLE, False), (NPE, True)])
def test_refuses_the_other_trainer(kind, likelihood):
    made = inference(kind, likelihood=likelihood).append_simulations(*data(2, 200))
    with pytest.raises(ArgumentError, match=rf"iresnet_builder\(likelihood={not likelihood}\)"):
        made.train(max_num_epochs=1)


@pytest.mark.parametrize("likelihood", [False, True])
def test_takes_other_rows(likelihood):
    theta, x = data(2, 100)
    net = iresnet_builder(1, hidden_features=8, likelihood=likelihood)(theta, x)
    other = data(2, 100)[:: -1 if likelihood else 1]
    assert net.loss(*other).isfinite().all()
