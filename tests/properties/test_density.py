"""Densities of random flows: they integrate to 1, and samples follow them.

The density is taken by quadrature, so activations are smooth. The false-alarm rates hold for a draw
of seeds; the seeds are fixed, so a test passes always or never.
"""

import math

import pyro.distributions as dist
import torch
from hypothesis import strategies as st

from pyro_iresnet import Anderson, Exact, InverseIResNet, IResNet
from pyro_iresnet.hosts.pyro import Stack

from .strategies import SLOW, flows, holds_for

# Fewer than this many checks in a run of the slow variants, with a false-alarm rate of RATE in all.
CHECKS = SLOW * 1000
RATE = 1e-6
LOG = math.log(2 * CHECKS / RATE)
DRAWS = 50_000

# Each tail of a standard normal beyond this has less than 1e-9 of the mass.
TAIL = 6.0


def flow_of(transforms, dim):
    base = dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)
    return dist.TransformedDistribution(base, transforms)


def deviation(variance, largest):
    """Bound the sum of DRAWS centred variables, but for the rate of one check (Bernstein).

    ``variance`` is that of the sum, and ``largest`` bounds the size of each variable.
    """
    third = LOG * largest / 3
    return third + math.sqrt(third**2 + 2 * LOG * variance)


def slopes(flow):
    """Return the least and the largest slope of a block, by its theorem."""
    bound = flow.network.lipschitz
    if flow.block == "cayley":
        return (1 - bound) / (1 + bound), (1 + bound) / (1 - bound)
    return 1 - bound, 1 + bound


def grid(ends, count):
    """Return the middles of the cells of a grid, shape ``(count^D, D)``, and the size of a cell."""
    axes = [low + (torch.arange(count) + 0.5) * ((high - low) / count) for low, high in ends]
    size = math.prod(float(high - low) / count for low, high in ends)
    return torch.cartesian_prod(*axes).reshape(-1, len(ends)), size


CELLS = {1: 8192, 2: 192}
VECTORS = ("dense", "sum")
PLAIN = {
    "kinds": VECTORS,
    "coordinates": ("none",),
    "scales": (1.0,),
    "largest": 0.5,
    "conditional": False,
    "smooth": True,
}


@holds_for(30, flow=flows(dims=(1, 2), **PLAIN), outward=st.booleans())
def test_mass_of_density(flow, outward):
    """The midpoint rule, on a box that holds all but 1e-8 of the mass.

    The box holds the image of the base's box by the bi-Lipschitz bounds. A cell is at most 0.1
    wide in two dimensions, where the rule is exact to many digits for densities whose features
    are wider than a few cells; the tolerance allows for features as narrow as two cells.
    """
    block = flow.make(logdet=Exact(), solver=Anderson(rtol=1e-8))
    dim = flow.network.event[0]
    transform = IResNet(block) if outward else IResNet(block).inv
    least, most = slopes(flow)
    with torch.no_grad():
        middle = transform(torch.zeros(1, dim))[0]
        reach = TAIL * (most if outward else 1 / least)
        x, cell = grid([(m - reach, m + reach) for m in middle], CELLS[dim])
        mass = float(flow_of([transform], dim).log_prob(x).exp().sum() * cell)
    assert abs(mass - 1) <= 1e-3


@holds_for(10, flow=flows(dims=(1, 2), **PLAIN), implicit=st.booleans())
def test_samples_in_boxes(flow, implicit):
    """Counts of samples in boxes against the mass of each box, by Bernstein's inequality.

    The false-alarm rate of all boxes of all examples together is at most 1e-6.
    """
    options = {"logdet": Exact(), "solver": Anderson(rtol=1e-8)}
    block, dim = flow.make(**options), flow.network.event[0]
    parts = [InverseIResNet(block), IResNet(flow.make(**options))] if implicit else [IResNet(block)]
    target = flow_of([Stack(parts)], dim)
    boxes, inner = {1: 6, 2: 3}[dim], {1: 200, 2: 24}[dim]
    with torch.no_grad():
        samples = target.sample((DRAWS,))
        middle = samples.mean(0)
        ends = [(m - 2.0, m + 2.0) for m in middle.tolist()]
        x, cell = grid(ends, boxes * inner)
        density = target.log_prob(x).exp()
        width = 4.0 / boxes
        index = ((samples - middle + 2.0) / width).floor().long()
        inside = ((index >= 0) & (index < boxes)).all(-1)
        of_cell = ((x - middle + 2.0) / width).floor().long()
        powers = boxes ** torch.arange(dim)
        counts = torch.bincount((index[inside] * powers).sum(-1), minlength=boxes**dim)
        mass = torch.zeros(boxes**dim)
        mass.index_add_(0, (of_cell * powers).sum(-1), density * cell)
    for count, p in zip(counts.tolist(), mass.tolist(), strict=True):
        # Quadrature adds its error to that of chance.
        allowed = deviation(DRAWS * p * (1 - p), 1.0) + 1e-3 * DRAWS * p
        assert abs(count - DRAWS * p) <= allowed


@holds_for(12, flow=flows(dims=(1, 4), **{**PLAIN, "largest": 0.4, "smooth": False}))
def test_importance_weights(flow):
    """The mean of p / q over samples of q is 1, for a normal p that q dominates.

    By the slopes of the block, q is at least a multiple of p, so that the weights are bounded and
    Bernstein's inequality holds. The false-alarm rate of all examples together is at most 1e-6.
    """
    block, dim = flow.make(), flow.network.event[0]
    least, most = slopes(flow)
    with torch.no_grad():
        q = flow_of([IResNet(block)], dim)
        centre = block(torch.zeros(1, dim))[0]
        # |z| <= |y - centre| / least, so p / q is largest where both are at their centre.
        p = dist.Normal(centre, least).to_event(1)
        largest = (most / least) ** dim
        y = q.sample((DRAWS,))
        # Another tensor, so that no memory spares the inverse.
        weights = (p.log_prob(y) - q.log_prob(y.clone())).exp()
    assert float(weights.max()) <= largest * (1 + 1e-6)
    # E[w] = 1 and w <= largest, so E[w^2] <= largest.
    off = abs(float(weights.sum()) - DRAWS)
    assert off <= deviation(DRAWS * (largest - 1), largest)
