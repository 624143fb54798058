"""Plain computations that the results of the package are compared with."""

import pyro.distributions as dist
import torch

from . import zoo


def normal(dim=zoo.DIM):
    """Return the standard normal distribution of a vector."""
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


def distance(a, b, event_dim=1):
    """Return the Euclidean distance of each pair of events."""
    return (a - b).flatten(a.dim() - event_dim).norm(dim=-1)


def jacobians(function, x, context=None):
    """Differentiate a map of rows by one backward pass, shape ``(n, D, D)``."""
    size = x[0].numel()
    copies = x.detach().repeat_interleave(size, 0).requires_grad_()
    extra = () if context is None else (context.repeat_interleave(size, 0),)
    units = torch.eye(size).repeat(len(x), 1).reshape(copies.shape)
    (rows,) = torch.autograd.grad(function(copies, *extra), copies, units)
    return rows.reshape(len(x), size, size)
