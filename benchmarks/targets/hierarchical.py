"""Hierarchical logistic regression: 300 rows, 3 groups, 8 predictors."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

ROWS, GROUPS, PREDICTORS = 300, 3, 8


def _data() -> tuple[Tensor, Tensor, Tensor]:
    """Draw predictors, groups and outcomes, in float64."""
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(ROWS, PREDICTORS, **options)
    group = torch.arange(ROWS) % GROUPS
    slopes = torch.randn(PREDICTORS, **options) + 0.5 * torch.randn(GROUPS, PREDICTORS, **options)
    chance = (x * slopes[group]).sum(-1).sigmoid()
    return x, group, (torch.rand(ROWS, **options) < chance).double()


X, GROUP, OUTCOME = _data()


def hierarchical(varying: int) -> Callable[[], None]:
    """Make the model with ``8 + 4 * varying`` coordinates.

    Arguments:
        varying: the number of predictors whose slopes differ between the groups.
    """

    def model() -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(PREDICTORS), 2.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(torch.ones(varying)).to_event(1))
        with pyro.plate("groups", GROUPS):
            apart = pyro.sample("apart", dist.Normal(0.0, scale).to_event(1))
        logits = (X * slope).sum(-1) + (X[:, :varying] * apart[..., GROUP, :]).sum(-1)
        with pyro.plate("rows", ROWS):
            pyro.sample("outcome", dist.Bernoulli(logits=logits), obs=OUTCOME)

    return model
