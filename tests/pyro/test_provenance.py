"""Provenance of Pyro's tensors through transforms: the sites that a value depends on."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform, conditional_affine_autoregressive
from pyro.infer import SVI, TraceGraph_ELBO
from pyro.infer.inspect import get_dependencies, get_model_relations
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance

from pyro_iresnet import (
    AutoIResNet,
    Exact,
    actnorm,
    conditional_iresnet,
    conditional_iresnet_stack,
    iresnet,
    iresnet_stack,
)
from pyro_iresnet.hosts.pyro import ConditionalStack, LinearAutoregressive, Stack

from ..truth import normal

SITES = frozenset({"site"})
X = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)

FLOWS = {
    "block": lambda: iresnet(2),
    "cayley": lambda: iresnet(2, block="cayley"),
    "stack": lambda: iresnet_stack(2, 3),
    "guide_map": lambda: LinearAutoregressive(2),
    "foreign": lambda: Stack([iresnet(2), AffineTransform(1.0, 2.0), iresnet(2), iresnet(2)]),
    "foreign_inverse": lambda: Stack([iresnet(2).inv, AffineTransform(1.0, 2.0), actnorm(2)]),
}
CONDITIONAL = {
    "block": lambda: conditional_iresnet(2, 3),
    "cayley": lambda: conditional_iresnet(2, 3, block="cayley"),
    "stack": lambda: conditional_iresnet_stack(2, 3, 2),
    "foreign": lambda: ConditionalStack(
        [conditional_affine_autoregressive(2, 3), iresnet(2), iresnet(2)]
    ),
}


def ends(transform, x):
    """Return the outputs of both directions, and their log-determinants."""
    y, back = transform(x), transform.inv(x)
    inverse = transform.inv
    return y, back, transform.log_abs_det_jacobian(x, y), inverse.log_abs_det_jacobian(x, back)


def check(found, expected):
    for value, truth in zip(found, expected, strict=True):
        assert get_provenance(value) == SITES
        torch.testing.assert_close(detach_provenance(value), truth)


@pytest.mark.parametrize("name", FLOWS)
def test_of_points(name):
    transform = FLOWS[name]().eval()
    check(ends(transform, ProvenanceTensor(X, SITES)), ends(transform, X))


@pytest.mark.parametrize("name", CONDITIONAL)
def test_of_context(name):
    family, context = CONDITIONAL[name]().eval(), torch.randn(3)
    expected = ends(family.condition(context), X)
    check(ends(family.condition(ProvenanceTensor(context, SITES)), X), expected)


def test_starts_actnorms():
    torch.manual_seed(0)
    flow, plain = iresnet_stack(2, 2), iresnet_stack(2, 2)
    plain.load_state_dict(flow.state_dict())
    x = torch.randn(50, 2)
    check([flow(ProvenanceTensor(x, SITES))], [plain(x)])


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_dependencies_of_model(direction):
    flow = iresnet_stack(2, 2).eval()

    def model(transform):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        base = dist.Normal(torch.zeros(2), scale).to_event(1)
        z = pyro.sample("z", dist.TransformedDistribution(base, [transform]))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))

    ours = flow if direction == "forward" else flow.inv
    assert get_dependencies(model, (ours,)) == get_dependencies(model, (AffineTransform(1.0, 2.0),))


def test_relations_of_guide():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(1.0))

    guide = AutoIResNet(model, num_blocks=1)
    guide()
    assert "x" in get_model_relations(guide)["sample_sample"]


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_trace_graph_gradient(direction):
    """The graph of dependencies leaves no term out: the mean gradient is the exact one."""
    torch.manual_seed(0)
    transform = conditional_iresnet(2, 3, hidden_dims=[8], logdet=Exact())
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    transform.eval().requires_grad_(False)
    parts = [transform if direction == "forward" else transform.inv]
    family = dist.ConditionalTransformedDistribution(normal(2), parts)
    logits = torch.zeros(3, requires_grad=True)
    x = torch.tensor([1.0, -2.0])

    def density(k):
        return family.condition(3 * torch.eye(3)[k]).log_prob(x)

    def model():
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("x", family.condition(3 * torch.eye(3)[k]), obs=x)

    def guide():
        pyro.sample("k", dist.Categorical(logits=logits))

    # Of a uniform guide and a uniform prior the loss varies by the likelihood alone.
    likelihoods = torch.stack([density(k) for k in range(3)])
    exact = -(likelihoods - likelihoods.mean()) / 3
    gradients = []
    for _ in range(300):
        TraceGraph_ELBO().loss_and_grads(model, guide)
        gradients.append(logits.grad.clone())
        logits.grad = None
    found = torch.stack(gradients)
    error = (found.mean(0) - exact).abs()
    assert exact.abs().max() > 0.1
    assert (error < 4 * found.std(0) / 300**0.5 + 1e-6).all()


def test_trains_by_trace_graph():
    family = dist.ConditionalTransformedDistribution(normal(2), [conditional_iresnet(2, 3).inv])

    def model():
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("x", family.condition(torch.eye(3)[k]), obs=torch.ones(2))

    def guide():
        pyro.sample("k", dist.Categorical(logits=pyro.param("w", torch.zeros(3))))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceGraph_ELBO())
    assert torch.tensor(svi.step()).isfinite()
