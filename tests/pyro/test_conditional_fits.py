"""Fits of conditional densities and of amortised guides."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.distributions import VonMises

from pyro_iresnet import cached, conditional_iresnet, conditional_iresnet_stack, iresnet_stack
from pyro_iresnet.hosts.pyro import ConditionalStack

from .test_conditional import contexts, family


class Gaussian:
    """Normal points. Mean and scale depend on ``c``."""

    batch, steps, options = 128, 100, {"num_blocks": 3, "hidden_dims": [32]}

    @classmethod
    def draw(cls, n):
        c = torch.randn(n, 1)
        return cls.given(c).sample(), c

    @classmethod
    def log_prob(cls, y, c):
        return cls.given(c).log_prob(y)

    @staticmethod
    def given(c):
        mean, scale = [(2 * c).sin(), c], [(c / 2).exp(), 0.5 + c.abs()]
        return dist.Normal(torch.cat(mean, -1), torch.cat(scale, -1)).to_event(1)


class Ring:
    """Ring of radius 2. Two dense angles turn with ``c``."""

    batch, steps, options = 256, 600, {"num_blocks": 6, "hidden_dims": [32]}
    radius, angle = dist.Normal(2.0, 0.2), (0.0, 2.0)

    @classmethod
    def draw(cls, n):
        c = 2 * torch.rand(n, 1) - 1
        angle = VonMises(*map(torch.tensor, cls.angle)).sample((n,)) / 2
        angle = angle + c[:, 0] + math.pi * torch.randint(2, (n,))
        r = cls.radius.sample((n,))
        return torch.stack([r * angle.cos(), r * angle.sin()], -1), c

    @classmethod
    def log_prob(cls, y, c):
        r, angle = y.norm(dim=-1), torch.atan2(y[:, 1], y[:, 0])
        of_angle = VonMises(*map(torch.tensor, cls.angle)).log_prob(2 * (angle - c[:, 0]))
        return of_angle + cls.radius.log_prob(r) - r.log()


def fitted_density(target):
    stack = conditional_iresnet_stack(2, 1, **target.options)
    flow = family(stack.inv, dim=2)
    optimizer = torch.optim.Adam(stack.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=target.steps)
    for _ in range(target.steps):
        y, c = target.draw(target.batch)
        with cached(flow):
            loss = -flow.condition(c).log_prob(y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return flow


# Tolerance of the mean of log p - log q. A Gaussian at each c misses the ring by over 1 nat.
@pytest.mark.parametrize(
    ("target", "tolerance"),
    [(Gaussian, 0.08), pytest.param(Ring, 0.12, marks=pytest.mark.slow)],
)
def test_density_reaches_entropy(target, tolerance):
    flow = fitted_density(target)
    y, c = target.draw(4000)
    with torch.no_grad():
        true, found = target.log_prob(y, c), flow.condition(c).log_prob(y)
        swapped = flow.condition(c.flip(0)).log_prob(y)
    assert -0.02 < (true - found).mean() < tolerance
    assert (found - swapped).mean() > 0.5


# Linear decoder. The posterior is a Gaussian with correlation -0.88.
DECODER, NOISE = torch.tensor([[1.0, 0.8], [0.9, 1.0], [-0.7, -0.6]], dtype=torch.float64), 0.5
ROWS, SUBSAMPLE = 200, 50


class FlowEncoder(nn.Module):
    """Guide of ``z`` given ``x``. An encoder makes the context of a flow."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 8))
        self.flow = conditional_iresnet_stack(2, 8, 2, [16])

    def forward(self, x):
        return family(self.flow, dim=2).condition(self.encoder(x))


class NormalEncoder(nn.Module):
    """Guide without correlations."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_scale = nn.Linear(3, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return dist.Normal(self.mean(x), self.log_scale.exp()).to_event(1)


class Autoencoder:
    """Model and guide over a plate of subsampled data."""

    def __init__(self, encoder):
        self.data = torch.randn(ROWS, 2) @ DECODER.T + NOISE * torch.randn(ROWS, 3)
        self.encoder = encoder

    def plate(self, size):
        return pyro.plate("data", ROWS, subsample_size=size)

    def model(self, size=SUBSAMPLE):
        with self.plate(size) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = z @ DECODER.T
            pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=self.data[rows])

    def guide(self, size=SUBSAMPLE):
        pyro.module("encoder", self.encoder)
        with self.plate(size) as rows:
            pyro.sample("z", self.encoder(self.data[rows]))

    def elbo(self, particles, **options):
        return Trace_ELBO(num_particles=particles, max_plate_nesting=1, **options)

    def fit(self, steps):
        optimizer = pyro.optim.ClippedAdam({"lr": 3e-2, "lrd": 0.03 ** (1 / steps)})
        svi = SVI(self.model, self.guide, optimizer, self.elbo(2, vectorize_particles=True))
        return [svi.step() for _ in range(steps)]

    @torch.no_grad()
    def gap(self):
        """Compute the log evidence minus the ELBO, in nats per row."""
        noise = NOISE**2 * torch.eye(3)
        marginal = dist.MultivariateNormal(torch.zeros(3), DECODER @ DECODER.T + noise)
        loss = self.elbo(100, vectorize_particles=True).loss(self.model, self.guide, ROWS)
        return (marginal.log_prob(self.data).sum() + loss) / ROWS


def test_guide_reaches_evidence():
    flow, normal = Autoencoder(FlowEncoder()), Autoencoder(NormalEncoder())
    losses = flow.fit(150)
    assert sum(losses[-10:]) < sum(losses[:10])
    pyro.clear_param_store()
    normal.fit(150)
    with pyro.validation_enabled():
        gaps = flow.gap(), normal.gap()
    assert -0.02 < gaps[0] < 0.1
    assert gaps[1] > 0.5


@pytest.mark.parametrize("vectorize", [True, False])
def test_every_particle_mode(vectorize):
    autoencoder = Autoencoder(FlowEncoder())
    elbo = autoencoder.elbo(3, vectorize_particles=vectorize)
    svi = SVI(autoencoder.model, autoencoder.guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    with pyro.validation_enabled():
        losses = [svi.step() for _ in range(3)]
    assert torch.tensor(losses).isfinite().all()
    names = [name for name, _ in autoencoder.encoder.named_parameters()]
    assert sorted(pyro.get_param_store().keys()) == sorted(f"encoder$$${n}" for n in names)


def test_two_contexts():
    transform = ConditionalStack([conditional_iresnet(2, 3), *iresnet_stack(2, 1).parts]).inv
    flow, data, groups = family(transform, dim=2), torch.randn(2, 4, 2), contexts(2, 4)

    def model():
        pyro.module("flow", transform)
        for i, (rows, context) in enumerate(zip(data, groups, strict=True)):
            with pyro.plate(f"group_{i}", 4):
                pyro.sample(f"x_{i}", flow.condition(context), obs=rows)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    for i, (rows, context) in enumerate(zip(data, groups, strict=True)):
        expected = flow.condition(context).log_prob(rows)
        torch.testing.assert_close(trace.nodes[f"x_{i}"]["log_prob"], expected)
