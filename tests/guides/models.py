"""Models for the tests of the automatic guide."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import (
    SVI,
    Trace_ELBO,
)

DATA = torch.tensor([0.5, 1.0, 1.5]).double()


def banana(data=DATA):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    y = pyro.sample("y", dist.Normal(x**2, 0.3))
    with pyro.plate("data", 3):
        pyro.sample("obs", dist.Normal(y, 1.0), obs=data)


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("coordinates", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


LOC = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
TRIL = torch.tensor([[1e-3, 0.0, 0.0], [0.3, 1.0, 0.0], [-0.2, 2.0, 0.5]]).double()


def gaussian():
    pyro.sample("z", dist.MultivariateNormal(LOC, scale_tril=TRIL))


def constrained():
    pyro.sample("simplex", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.sample("share", dist.Beta(2.0, 3.0))
    with pyro.plate("rows", 4):
        pyro.sample("effect", dist.Normal(0.0, scale))


def step(guide, model=banana, steps=3, elbo=None):
    elbo = elbo or Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), elbo)
    return [svi.step() for _ in range(steps)]
