import pyro.distributions as dist
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, InverseTransform

from pyro_iresnet import InverseIResNet, IResNet, IResNetTransform, implicit_stack, iresnet_stack
from pyro_iresnet.errors import ArgumentError, ArgumentTypeError
from pyro_iresnet.hosts.pyro import ActNorm


def fit(parameters, loss, *, steps, lr=2e-2):
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return float(value.detach())


def test_fits_steep_slope():
    x = torch.linspace(-1, 1, 101)[:, None]

    def error(make):
        stack = make(1, 2, [32], lipschitz=0.9, between=None)
        fit(stack.parameters(), lambda: (stack(x) - 6 * x).square().mean(), steps=300)
        return float((stack(x) - 6 * x).detach().abs().max())

    # Two plain blocks have a slope of at most 1.9^2. One end misses the target by the rest.
    assert error(iresnet_stack) >= 6 - 1.9**2
    assert error(implicit_stack) < 0.5


def narrow(n):
    return torch.randn(n, 2) * torch.tensor([0.1, 1.0])


# Entropy of the narrow data. Plain blocks stretch by at most 3.61, the data need 10.
ENTROPY = 2 * 1.4189 + torch.tensor(0.1).log().item()


@pytest.mark.parametrize("framework", ["pyro", "nflows"])
def test_trains_density(framework):
    if framework == "pyro":
        stack = implicit_stack(2, 2, [16], lipschitz=0.9, between=None)
        base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        flow, module = dist.TransformedDistribution(base, [stack.inv]), stack
    else:
        block = IResNetTransform(2, [16], lipschitz=0.9)
        inverse = InverseTransform(IResNetTransform(2, [16], lipschitz=0.9))
        flow = module = Flow(CompositeTransform([block, inverse]), StandardNormal([2]))
    data = narrow(200)
    before = -float(flow.log_prob(data).detach().mean())
    after = fit(module.parameters(), lambda: -flow.log_prob(data).mean(), steps=150)
    assert before > ENTROPY + 0.7
    assert after < ENTROPY + 0.25
    module.eval()
    with torch.no_grad():
        samples = flow.sample((1000,)) if framework == "pyro" else flow.sample(1000)
    torch.testing.assert_close(samples.std(0), torch.tensor([0.1, 1.0]), rtol=0.25, atol=0)


def test_kinds_of_parts():
    stack = implicit_stack(3, 3)
    kinds = [type(part) for part in stack.parts]
    assert kinds == [ActNorm, IResNet, ActNorm, InverseIResNet, ActNorm, IResNet, ActNorm]
    bare = implicit_stack(3, 2, between=None)
    assert [type(part) for part in bare.parts] == [IResNet, InverseIResNet]
    assert len(list(bare.parameters())) == sum(len(list(p.parameters())) for p in bare.parts)


@pytest.mark.parametrize("make", [implicit_stack, iresnet_stack])
def test_refuses_wrong_arguments(make):
    with pytest.raises(ArgumentError, match="num_blocks to be at least 1"):
        make(2, 0)
    with pytest.raises(ArgumentTypeError, match="between to be a callable"):
        make(2, between=ActNorm(2).log_scale)
