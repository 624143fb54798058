"""Weights, evidence and k-hat of a guide."""

import math
from functools import partial

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoGuideList,
    AutoNormal,
)

from pyro_iresnet.diagnostics import KHatWarning, psis
from pyro_iresnet.errors import ArgumentError

from .models import EVIDENCE, GUIDES, MEAN, SCALE, SHAPES, Y, gaussian, model, narrow, plated, wide


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_exact_guide(dtype):
    torch.set_default_dtype(dtype)
    result = psis(gaussian, model, Y.to(dtype))
    assert result.k_hat == -math.inf
    precise = dtype == torch.float64
    assert result.ess == pytest.approx(4000, abs=1e-6 if precise else 1e-2)
    assert result.log_evidence == pytest.approx(EVIDENCE, abs=1e-10 if precise else 1e-5)
    assert result.elbo == pytest.approx(EVIDENCE, abs=1e-10 if precise else 1e-5)
    assert result.log_evidence_error < (1e-8 if precise else 1e-4)
    assert result.log_weights.dtype == result.smoothed_log_weights.dtype == torch.float64
    assert result.draws["z"].dtype == dtype
    assert "good" in str(result)


@pytest.mark.usefixtures("quiet")
def test_stated_errors():
    evidence, elbo = [], []
    kl = math.log(SCALE / 0.7) + (0.7**2 + 0.2**2) / (2 * SCALE**2) - 0.5
    for _ in range(100):
        result = psis(wide, model, num_samples=500)
        evidence.append((result.log_evidence - EVIDENCE) / result.log_evidence_error)
        elbo.append((result.elbo - (EVIDENCE - kl)) / result.elbo_error)
    for errors in (evidence, elbo):
        rms = torch.tensor(errors).square().mean().sqrt()
        assert 0.8 < rms < 1.2


@pytest.mark.usefixtures("quiet")
def test_weights_and_joint():
    result = psis(wide, model, num_samples=1000)
    weights = result.smoothed_log_weights.exp()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert result.ess == pytest.approx(float(1 / weights.square().sum()))
    joint = dist.Normal(0.0, 1.0).log_prob(result.draws["z"])
    joint = joint + dist.Normal(result.draws["z"][:, None], 1.0).log_prob(Y).sum(1)
    torch.testing.assert_close(result.log_joint, joint)
    guide = dist.Normal(MEAN + 0.2, 0.7).log_prob(result.draws["z"])
    torch.testing.assert_close(result.log_weights, joint - guide)
    _, k_hat = arviz.psislw(result.log_weights.numpy())
    assert result.k_hat == float(k_hat)


@pytest.mark.usefixtures("quiet")
def test_resampled_posterior():
    result = psis(wide, model)
    draws = result.resample(20_000)["z"]
    assert float(draws.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(draws.std()) == pytest.approx(SCALE, abs=0.03)
    # Systematic resampling alone would sort the draws.
    assert abs(float(torch.corrcoef(torch.stack([draws[1:], draws[:-1]]))[0, 1])) < 0.05
    counts = torch.bincount(result.indices(5000), minlength=4000)
    assert ((counts - 5000 * result.smoothed_log_weights.exp()).abs() <= 1 + 1e-9).all()
    assert result.resample(1)["z"].shape == (1,)
    with pytest.raises(ArgumentError, match="num_samples to be at least 1; got 0"):
        result.resample(0)


def test_warns_of_bad_guide():
    with pytest.warns(KHatWarning) as caught:
        result = psis(narrow, model)
    assert result.k_hat > 0.7
    (warning,) = caught
    assert f"k-hat is {result.k_hat:.2f}, above 0.7" in str(warning.message)
    assert "Train for more steps" in str(warning.message)
    assert warning.filename == __file__
    assert "fails" in str(result)


def test_warns_of_few_draws():
    # Bounded weights have a short tail. In ten dimensions few draws are likely.
    def many():
        pyro.sample("z", dist.Normal(torch.zeros(10), 1.0).to_event(1))

    def guide():
        pyro.sample("z", dist.Normal(torch.zeros(10), 1.5).to_event(1))

    with pytest.warns(KHatWarning, match=r"effective sample size is \d\.\d of 30 draws"):
        result = psis(guide, many, num_samples=30)
    assert result.k_hat <= 0.7


@pytest.mark.usefixtures("quiet")
def test_no_weight_outside_support():
    def positive():
        z = pyro.sample("z", dist.HalfNormal(torch.ones(()), validate_args=False))
        pyro.factor("unused", torch.zeros_like(z))

    result = psis(partial(gaussian, loc=0.0, scale=1.0), positive, num_samples=1000)
    outside = int((result.draws["z"] < 0).sum())
    assert 0 < outside == int(result.log_weights.isinf().sum())
    assert f"{outside} draws lie outside" in str(result)
    assert (result.resample(1000)["z"] >= 0).all()
    assert result.log_evidence == pytest.approx(0.0, abs=0.1)
    assert result.elbo == -math.inf
    assert result.elbo_error == math.inf


@pytest.mark.usefixtures("quiet")
def test_discrete_sites():
    def coin():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.2))

    result = psis(lambda: pyro.sample("z", dist.Bernoulli(torch.tensor(0.4))), coin)
    density = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(torch.tensor(0.2))
    exact = float(torch.logsumexp(density, 0)) - math.log(2)
    assert result.log_evidence == pytest.approx(exact, abs=4 * result.log_evidence_error)
    assert result.k_hat < 0.5


@pytest.mark.filterwarnings("ignore::pyro_iresnet.diagnostics.KHatWarning")
@pytest.mark.parametrize("batch_size", [None, 20, 1])
@pytest.mark.parametrize("name", GUIDES)
def test_shapes_of_draws(name, batch_size):
    guide = GUIDES[name](plated)
    result = psis(guide, plated, 1.5, offset=0.2, num_samples=50, batch_size=batch_size)
    assert {k: tuple(v.shape) for k, v in result.draws.items()} == {
        k: (50, *shape) for k, shape in SHAPES.items()
    }
    for s in (0, 49):
        data = {k: v[s] for k, v in result.draws.items()}
        trace = poutine.trace(poutine.condition(plated, data)).get_trace(1.5, offset=0.2)
        assert float(result.log_joint[s]) == pytest.approx(float(trace.log_prob_sum()))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", GUIDES)
def test_same_evidence_of_guides(name):
    options = {} if name == "flow" else {"init_scale": 0.8}
    result = psis(GUIDES[name](model, **options), model, max_plate_nesting=3)
    assert result.draws["z"].shape == (4000,)
    assert result.log_evidence_error < 0.05
    assert result.log_evidence == pytest.approx(EVIDENCE, abs=4 * result.log_evidence_error)


@pytest.mark.usefixtures("quiet")
def test_guides_for_parts():
    def two():
        pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("rows", 2):
            pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))

    guide = AutoGuideList(two)
    guide.append(AutoNormal(poutine.block(two, expose=["a"]), init_scale=1.0))
    guide.append(AutoNormal(poutine.block(two, expose=["b"]), init_scale=1.0))
    result = psis(guide, two, num_samples=2000)
    assert result.draws["b"].shape == (2000, 2)
    assert result.log_evidence == pytest.approx(0.0, abs=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_warns_of_far_draw(dtype):
    torch.set_default_dtype(dtype)

    def model():
        pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))

    def guide():
        pyro.sample("a", dist.Cauchy(torch.zeros(()), 1.0))
        pyro.sample("b", dist.Normal(torch.zeros(()), 0.3))

    torch.manual_seed(0)
    with pytest.warns(KHatWarning):
        assert psis(guide, model).k_hat > 0.7


def test_warns_with_many_data():
    torch.set_default_dtype(torch.float32)
    data = 3 + 0.02 * torch.randn(2000)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 10.0))
        with pyro.plate("rows", 2000):
            pyro.sample("y", dist.Normal(z, 0.02), obs=data)

    def guide():
        pyro.sample("z", dist.Normal(data.mean(), 0.35 * 0.02 / 2000**0.5))

    torch.manual_seed(0)
    with pytest.warns(KHatWarning):
        assert psis(guide, model).k_hat > 0.5
