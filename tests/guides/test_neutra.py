"""NeuTra through the automatic guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    HMC,
    MCMC,
    NUTS,
    SVI,
    Trace_ELBO,
)
from pyro.infer.autoguide import AutoNormal, AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam

from pyro_iresnet import (
    AutoIResNet,
    ByMode,
    Exact,
    Roulette,
    actnorm,
    cached,
    conditional_iresnet,
    iresnet,
    iresnet_stack,
)
from pyro_iresnet._modules import modules_of
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
        pyro.sample("z", dist.Normal(torch.zeros(60), 1.0).to_event(1))

    guide = AutoIResNet(model, 2)
    guide()
    with pytest.raises(ArgumentError, match=r"guide\.eval\(\)"):
        NeuTraReparam(guide).reparam(model)()
    guide.eval()
    NeuTraReparam(guide).reparam(model)()
    exact = AutoIResNet(model, 2, logdet=Exact())
    exact()
    NeuTraReparam(exact).reparam(model)()


DIM = 9


def ten():
    pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))


def sample(kernel, model):
    chain = MCMC(kernel(model), num_samples=1, warmup_steps=1, disable_progbar=True)
    chain.run()
    return chain.get_samples()


FLOWS = {
    "block": lambda: [iresnet(DIM, hidden_dims=[8])],
    "inverse": lambda: [iresnet(DIM, hidden_dims=[8]).inv],
    "uncached": lambda: [iresnet(DIM, hidden_dims=[8]).with_cache(0)],
    "stack": lambda: [iresnet_stack(DIM, 2, hidden_dims=[8])],
    "list": lambda: [iresnet(DIM, hidden_dims=[8]), actnorm(DIM)],
    "conditional": lambda: [conditional_iresnet(DIM, 2, hidden_dims=[8]).condition(torch.zeros(2))],
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("kernel", [NUTS, lambda m: HMC(m, num_steps=1)], ids=["nuts", "hmc"])
def test_refuses_prior_with_random_density(name, kernel):
    flows = FLOWS[name]()

    def model():
        base = dist.Normal(torch.zeros(DIM), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, flows))

    # Outside of a sampler a drawn density is right.
    assert poutine.trace(model).get_trace().log_prob_sum().isfinite()
    # Pyro adds the name of the site, in an error of its own.
    with pytest.raises(ValueError, match=r"drawn by Roulette.*HMC.*transform\.eval\(\)") as caught:
        sample(kernel, model)
    assert isinstance(caught.value.__cause__, ArgumentError)
    for module in modules_of(flows):
        module.training = False
    assert sample(kernel, model)["z"].shape == (1, DIM)


def test_refuses_random_density_of_foreign_guide():
    guide = AutoNormalizingFlow(ten, lambda dim: iresnet(dim, hidden_dims=[8]))
    svi = SVI(ten, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    svi.step()
    model = NeuTraReparam(guide).reparam(ten)
    with pytest.raises(ArgumentError, match="drawn by Roulette"):
        sample(NUTS, model)
    outer = AutoNormal(model)
    SVI(model, outer, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step()
    guide.eval()
    assert sample(NUTS, model)["z_shared_latent"].shape == (1, DIM)
    always = AutoNormalizingFlow(ten, lambda dim: iresnet(dim, hidden_dims=[8], logdet=Roulette()))
    always()
    always.eval()
    with pytest.raises(ArgumentError, match="drawn by Roulette"):
        sample(NUTS, NeuTraReparam(always).reparam(ten))


def test_samples_through_train_mode_map():
    # A map without a density may be in train mode.
    logdet = ByMode(train=Roulette(), evaluate=Exact())
    flow = iresnet(DIM, hidden_dims=[8], logdet=logdet)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        pyro.sample("obs", dist.Normal(flow(z), 1.0).to_event(1), obs=torch.zeros(DIM))

    assert sample(NUTS, model)["z"].shape == (1, DIM)
