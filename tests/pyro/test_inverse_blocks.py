import pyro.distributions as dist
import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, InverseTransform

from pyro_iresnet import InverseIResNet, IResNet, IResNetTransform, iresnet
from pyro_iresnet.hosts.pyro import Stack

# Entropy of the narrow data. Two blocks with L = 0.9 stretch by at most 3.61, the data need 10.
ENTROPY = 2 * 1.4189 + torch.tensor(0.1).log().item()


def pyro_flow():
    first, second = (iresnet(2, [16], lipschitz=0.9).block for _ in range(2))
    stack = Stack([IResNet(first), InverseIResNet(second)])
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    return dist.TransformedDistribution(base, [stack.inv]), stack


def nflows_flow():
    block = IResNetTransform(2, [16], lipschitz=0.9)
    inverse = InverseTransform(IResNetTransform(2, [16], lipschitz=0.9))
    flow = Flow(CompositeTransform([block, inverse]), StandardNormal([2]))
    return flow, flow


@pytest.mark.parametrize("make", [pyro_flow, nflows_flow])
def test_trains_density(make):
    flow, module = make()
    data = torch.randn(200, 2) * torch.tensor([0.1, 1.0])
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-2)
    losses = []
    for _ in range(150):
        loss = -flow.log_prob(data).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > ENTROPY + 0.7
    assert losses[-1] < ENTROPY + 0.25
    module.eval()
    with torch.no_grad():
        samples = flow.sample(1000) if make is nflows_flow else flow.sample((1000,))
    torch.testing.assert_close(samples.std(0), torch.tensor([0.1, 1.0]), rtol=0.25, atol=0)
