"""NeuTra through the automatic guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
)
from pyro.infer.reparam import NeuTraReparam

from pyro_iresnet import AutoIResNet, Exact, cached
from pyro_iresnet.errors import (
    ArgumentError,
)

from .models import LOC, TRIL, banana, gaussian, step


def test_density_of_model():
    guide = AutoIResNet(banana, 2)
    step(guide)
    guide.eval()
    neutra = NeuTraReparam(guide)
    model = neutra.reparam(banana)
    z = torch.randn(2)
    traced = poutine.trace(poutine.condition(model, {"x_shared_latent": z})).get_trace()
    latent = guide.transform(z)
    values = {"x": latent[0], "y": latent[1]}
    trace = poutine.trace(poutine.condition(banana, values)).get_trace()
    logdet = guide.transform.log_abs_det_jacobian(z, latent)
    torch.testing.assert_close(traced.log_prob_sum(), trace.log_prob_sum() + logdet)


@pytest.mark.slow
def test_nuts_samples_posterior():
    guide = AutoIResNet(gaussian, 2, init="laplace")
    guide()
    guide.eval()
    neutra = NeuTraReparam(guide)
    kernel = NUTS(neutra.reparam(gaussian))
    chain = MCMC(kernel, num_samples=150, warmup_steps=50, disable_progbar=True)
    with cached(guide):
        chain.run()
    found = neutra.transform_sample(chain.get_samples()["z_shared_latent"])["z"].detach()
    scale = TRIL.square().sum(1).sqrt()
    assert ((found.mean(0) - LOC) / scale).abs().max() < 0.4
    assert (found.std(0) / scale - 1).abs().max() < 0.4
    assert not chain.diagnostics()["divergences"]["chain 0"]


def test_refuses_random_density():
    def model():
        pyro.sample("z", dist.Normal(torch.zeros(40), 1.0).to_event(1))

    guide = AutoIResNet(model, 2)
    guide()
    with pytest.raises(ArgumentError, match=r"guide\.eval\(\)"):
        NeuTraReparam(guide).reparam(model)()
    guide.eval()
    NeuTraReparam(guide).reparam(model)()
    exact = AutoIResNet(model, 2, logdet=Exact())
    exact()
    NeuTraReparam(exact).reparam(model)()
