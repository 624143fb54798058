"""Path gradients of the automatic guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
)

from pyro_iresnet import AutoIResNet, Roulette
from pyro_iresnet.coordinates import Asinh, DiagonalScale, TriangularScale
from pyro_iresnet.errors import (
    HigherOrderError,
)
from pyro_iresnet.options import BlockOptions

from .models import LOC, TRIL, banana, funnel


def gradients(model, guide, particles=1):
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    guide.zero_grad()
    loss = elbo.differentiable_loss(model, guide)
    loss.backward()
    found = [p.grad.flatten() for p in guide.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found)


def bent(model, **options):
    pyro.clear_param_store()
    torch.manual_seed(4)
    guide = AutoIResNet(model, 2, hidden_dims=[8], init="plain", init_scale=1.0, **options)
    guide()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in guide.parameters():
            p.add_(0.3 * torch.randn_like(p).tril() if p.dim() == 2 else 0.3 * torch.randn_like(p))
    return guide


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"coordinates": TriangularScale()},
        {"options": [BlockOptions(coordinates=(Asinh(), DiagonalScale())), BlockOptions()]},
        {"coordinates": None},
        {"block": "cayley"},
    ],
    ids=str,
)
def test_gradient_at_fixed_parameters(options):
    guide = bent(funnel, **options)
    posterior = guide.get_posterior()
    x = posterior.rsample((6,))
    entropy = posterior.score_parts(x).entropy_term
    torch.testing.assert_close(entropy, posterior.log_prob(x.detach().clone()))
    slope = torch.autograd.grad(entropy.sum(), x)[0]
    z = x.detach().clone().requires_grad_()
    expected = torch.autograd.grad(posterior.log_prob(z).sum(), z)[0]
    torch.testing.assert_close(slope, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("logdet", [None, Roulette()])
def test_unbiased_gradient(logdet):
    guide = bent(banana, logdet=logdet)
    found = {}
    for path in (False, True):
        guide.path_gradients = path
        draws = [gradients(banana, guide, 200)[1] for _ in range(100)]
        found[path] = torch.stack(draws)
    means = [draws.mean(0) for draws in found.values()]
    error = sum(draws.var(0) / len(draws) for draws in found.values()).sqrt()
    z = (means[0] - means[1]) / error.clamp(min=1e-12)
    assert z.abs().max() < 5


def test_no_noise_at_posterior():
    def model():
        pyro.sample("z", dist.MultivariateNormal(LOC, scale_tril=TRIL))

    guide = AutoIResNet(model, 1, init="laplace")
    guide()
    with torch.no_grad():
        for p in guide.transform.parts[0].block.contraction.layers[-1].parameters():
            p.zero_()
    _, path = gradients(model, guide, 5)
    guide.path_gradients = False
    _, score = gradients(model, guide, 5)
    assert path.abs().max() < 1e-7
    assert score.abs().max() > 1e-2


def test_refuses_second_derivative():
    guide = bent(banana)
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    log_scale = guide.transform.parts[-1].log_scale
    loss = elbo.differentiable_loss(banana, guide)
    first = torch.autograd.grad(loss, log_scale, create_graph=True)[0]
    with pytest.raises(HigherOrderError, match="path_gradients=False"):
        torch.autograd.grad(first.sum(), log_scale)


def test_same_loss():
    losses = []
    for path in (False, True):
        guide = bent(funnel, path_gradients=path)
        torch.manual_seed(7)
        losses.append(gradients(funnel, guide, 16)[0])
    assert losses[0] == pytest.approx(losses[1])


def test_same_renyi_gradient():
    found = []
    for path in (False, True):
        guide = bent(funnel, path_gradients=path)
        torch.manual_seed(7)
        elbo = RenyiELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
        guide.zero_grad()
        elbo.loss_and_grads(funnel, guide)
        found.append([p.grad.clone() for p in guide.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
