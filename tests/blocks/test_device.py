"""A CUDA device computes the numbers of the processor, to rounding."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam

from pyro_iresnet import AutoIResNet, Exact, IResNetTransform, ResidualBlock, Roulette
from pyro_iresnet.hosts.nflows import IResNetComposite, PatientActNorm

from .. import zoo

DEVICE = "cuda"
pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BLOCKS = {
    **{name: {"contraction": make} for name, make in zoo.CONTRACTIONS.items()},
    **{name: {"contraction": zoo.dense, **options} for name, options in zoo.COORDINATES.items()},
}


def agree(found, expected, **tolerance):
    """Compare tensors of the device with those of the processor."""
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == DEVICE
        torch.testing.assert_close(one.cpu(), other, **tolerance)


def moved(module):
    return copy.deepcopy(module).to(DEVICE)


def with_gradients(module, x):
    """Return outputs, log-determinants, and the gradients in the inputs and in all parameters."""
    x = x.clone().requires_grad_()
    y, logdet = module(x)
    loss = y.square().sum() - logdet.sum()
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [y.detach(), logdet.detach(), *(g for g in found if g is not None)]


class Evaluated(torch.nn.Module):
    """Block as a module of its outputs and log-determinants."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block.forward_and_log_det(x)


@pytest.mark.parametrize("name", BLOCKS)
def test_values_and_gradients(name):
    options = dict(BLOCKS[name])
    block = ResidualBlock(options.pop("contraction")(), logdet=Exact(), **options)
    module = Evaluated(zoo.bent(block))
    x = torch.randn(6, *zoo.event_shape(name))
    agree(with_gradients(moved(module), x.to(DEVICE)), with_gradients(module, x))


@pytest.mark.parametrize("name", zoo.SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse(name, dtype):
    block = zoo.block(solver=zoo.SOLVERS[name]).to(dtype)
    y = torch.randn(50, zoo.DIM, dtype=dtype)
    expected, found = block.solve(y), moved(block).solve(y.to(DEVICE))
    assert found.value.device.type == DEVICE
    apart = (found.value.cpu() - expected.value).norm(dim=1)
    bounds = found.stats.error_bound.cpu() + expected.stats.error_bound
    assert (apart <= bounds).all()


def test_gradient_of_inverse():
    block = zoo.block()
    y = torch.randn(7, zoo.DIM)

    def gradient(block, y):
        y = y.clone().requires_grad_()
        value = block.inverse(y).square().sum()
        return torch.autograd.grad(value, [y, *block.parameters()], allow_unused=True)

    pairs = zip(gradient(moved(block), y.to(DEVICE)), gradient(block, y), strict=True)
    found, expected = zip(*(p for p in pairs if p[1] is not None), strict=True)
    agree(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("estimator", [Roulette(), Roulette(control_variate=None)], ids=str)
def test_unbiased_draws(estimator):
    """Compare the means of many draws, of the value and of its gradient, with the exact ones."""
    dim, draws = 12, 20_000
    block = moved(ResidualBlock(zoo.dense(dim)))
    # Two rows, since the control variate of equal Jacobians is exact.
    x = torch.randn(2, dim, device=DEVICE)

    def value_and_gradient(estimator, rows):
        block.logdet = estimator
        leaf = x.repeat(rows, 1).requires_grad_()
        value = block.forward_and_log_det(leaf)[1]
        both = [value.detach()[:, None], *torch.autograd.grad(value.sum(), leaf)]
        return torch.cat(both, dim=1).reshape(rows, -1)

    exact = value_and_gradient(Exact(), 1)[0]
    torch.manual_seed(0)
    found = value_and_gradient(estimator, draws)
    assert found.device.type == DEVICE
    error = found.std(0) / draws**0.5
    assert ((found.mean(0) - exact).abs() <= 5 * error + 1e-12).all()
    assert error.min() > 0
    assert error.max() < 0.05


@pytest.mark.parametrize("norm", zoo.NORMS)
def test_norms_together(norm):
    """Normalise the weights of several blocks in one call."""
    parts = []
    for _ in range(3):
        block = IResNetTransform.from_block(ResidualBlock(zoo.dense(norm=zoo.NORMS[norm])))
        parts += [PatientActNorm(zoo.DIM), block]
    composite = IResNetComposite(parts)
    x = torch.randn(20, zoo.DIM)
    composite(x)
    agree(with_gradients(moved(composite), x.to(DEVICE)), with_gradients(composite, x))


def test_start_of_flow():
    """Start a flow from a batch on the device, train it one step, and draw from it."""
    transform = IResNetComposite([PatientActNorm(20), IResNetTransform(20)])
    flow = Flow(transform, StandardNormal([20])).to(DEVICE)
    optimizer = torch.optim.Adam(flow.parameters())
    (-flow.log_prob(torch.randn(64, 20, device=DEVICE)).mean()).backward()
    optimizer.step()
    flow.eval()
    with torch.no_grad():
        draws = flow.sample(5)
        assert draws.device.type == DEVICE
        assert flow.log_prob(draws).isfinite().all()


def test_guide_step():
    """Fit a guide whose model lives on the device; the loss falls."""
    with torch.device(DEVICE):
        data = torch.tensor([0.5, 1.0, 1.5])

        def model():
            x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
            scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()), 0.5))
            with pyro.plate("data", 3):
                pyro.sample("obs", dist.Normal(x**2, scale), obs=data)

        guide = AutoIResNet(model, 2, hidden_dims=[8], init="plain", init_scale=1.0)
        elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(model, guide, ClippedAdam({"lr": 1e-2}), elbo)
        losses = torch.tensor([svi.step() for _ in range(100)], device="cpu")
        assert all(p.device.type == DEVICE for p in guide.parameters())
        assert losses[-20:].mean() < losses[:20].mean()
        assert guide()["x"].device.type == DEVICE
