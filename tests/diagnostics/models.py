"""Models and guides for the tests of the diagnostics."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import (
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoNormalMessenger,
)

from pyro_iresnet import iresnet_stack

Y = torch.tensor([0.5, 1.5, -0.3], dtype=torch.float64)
MEAN, SCALE = float(Y.sum()) / 4, 0.5
EVIDENCE = float(
    dist.MultivariateNormal(
        torch.zeros(3, dtype=torch.float64),
        torch.eye(3, dtype=torch.float64) + torch.ones(3, 3, dtype=torch.float64),
    ).log_prob(Y)
)


def model(y=Y):
    """Model ``z ~ N(0, 1)``, ``y_i ~ N(z, 1)``. The posterior is ``N(sum y / 4, 1 / 4)``."""
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def gaussian(y=Y, loc=MEAN, scale=SCALE):
    pyro.sample("z", dist.Normal(torch.tensor(loc), scale))


wide = partial(gaussian, loc=MEAN + 0.2, scale=0.7)
narrow = partial(gaussian, loc=MEAN + 1.5, scale=0.1)


def plated(scale, *, offset):
    """Model with scalars, plates, nested plates, a gap between plates, and events."""
    a = pyro.sample("a", dist.Normal(torch.tensor(offset), scale))
    v = pyro.sample("v", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    outer = pyro.plate("outer", 4, dim=-1)
    inner = pyro.plate("inner", 2, dim=-3)
    with outer:
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.deterministic("b2", 2 * b)
        c = pyro.sample("c", dist.Dirichlet(torch.ones(5)))
    with inner, outer:
        pyro.sample("d", dist.Normal(b + v.sum(-1), 1.0))
    with inner:
        e = pyro.sample("e", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        pyro.deterministic("e2", e.exp(), event_dim=1)
    with outer:
        pyro.sample("y", dist.Normal(b + c[..., 0], 1.0), obs=torch.zeros(4))
        pyro.sample("w", dist.Normal(c, 1.0).to_event(1), obs=torch.zeros(5))
    pyro.deterministic("constant", torch.arange(3.0))
    pyro.factor("factor", -a.abs())


SHAPES = {
    "a": (),
    "v": (3,),
    "b": (4,),
    "c": (4, 5),
    "d": (2, 1, 4),
    "e": (2, 1, 1, 2),
}
DERIVED = {"b2": (4,), "e2": (2, 1, 1, 2), "constant": (3,)}
GUIDES = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "messenger": AutoNormalMessenger,
    "flow": lambda m: AutoNormalizingFlow(m, partial(iresnet_stack, num_blocks=1, hidden_dims=[8])),
}
