"""Ways of inverting a trained flow: this project's solvers, plain iteration, normflows."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch
from nflows.flows import Flow
from normflows.flows.residual import iResBlock as NormflowsBlock
from torch import Tensor, nn

from pyro_iresnet import IResNetTransform, cached
from pyro_iresnet.cached import map_of
from pyro_iresnet.inverse import Solver, solve_map
from pyro_iresnet.operators import ContractionMap

# Inverts a block at y; returns x, and the evaluations of g for each sample.
Invert = Callable[[IResNetTransform, ContractionMap, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Found:
    """Result of an inversion of the whole flow.

    Arguments:
        x: the values.
        evaluations: evaluations of ``g`` in all blocks, the mean over samples.
        serial: evaluations of ``g`` for a sample that is the slowest in every block.
        longest: the most evaluations of one sample in one block.
    """

    x: Tensor
    evaluations: float
    serial: int
    longest: int

    def error(self, truth: Tensor) -> Tensor:
        return (self.x.double() - truth).norm(dim=1)


@torch.no_grad()
def invert(flow: Flow, z: Tensor, block: Invert) -> Found:
    """Invert a flow with ``block`` for each of its residual blocks."""
    x, total, serial, longest = z, torch.zeros(len(z)), 0, 0
    with cached(flow):
        for transform in reversed(flow._transform._transforms):
            if isinstance(transform, IResNetTransform):
                x, count = block(transform, map_of(transform.block.contraction), x)
                total += count
                serial += int(count.max())
                longest = max(longest, int(count.max()))
            else:
                x = transform.inverse(x)[0]
    return Found(x, float(total.mean()), serial, longest)


def by_solver(solver: Solver, rtol: float | None = None) -> Invert:
    """Invert by a solver of this project."""

    def block(transform: IResNetTransform, g: ContractionMap, y: Tensor) -> tuple[Tensor, Tensor]:
        solution = solve_map(g, y, transform.block.event_dim, solver, rtol=rtol)
        return solution.value, solution.stats.evaluations

    return block


def by_iteration(tolerance: float) -> Invert:
    """Iterate ``x <- y - g(x)`` until a step is below the tolerance, for each sample by itself.

    A sample also ends after ten steps in a row that do not shrink: rounding hides the rest.
    """

    def block(transform: IResNetTransform, g: ContractionMap, y: Tensor) -> tuple[Tensor, Tensor]:
        x, count = y.clone(), torch.zeros(len(y))
        rows = torch.arange(len(y))
        least, age = torch.full((len(y),), torch.inf, dtype=y.dtype), torch.zeros(len(y))
        while len(rows):
            new = y[rows] - g(x[rows])
            step = (new - x[rows]).norm(dim=1)
            x[rows] = new
            count[rows] += 1
            age = torch.where(step < least, 0, age + 1)
            least = torch.minimum(step, least)
            moves = (step > tolerance) & (age < 10)
            rows, least, age = rows[moves], least[moves], age[moves]
        return x, count

    return block


class _Counted(nn.Module):
    """Network of normflows made of ``g`` with its acting weights; counts its calls."""

    def __init__(self, g: ContractionMap) -> None:
        super().__init__()
        self.g, self.calls = g, 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.g(x)


def by_normflows(tolerance: float) -> Invert:
    """Iterate as normflows does, on the trained network of this project."""

    def block(transform: IResNetTransform, g: ContractionMap, y: Tensor) -> tuple[Tensor, Tensor]:
        net = _Counted(g)
        x = NormflowsBlock(net)._inverse_fixed_point(y, atol=tolerance, rtol=tolerance)
        return x, torch.full((len(y),), float(net.calls))

    return block


# Iterations in one block after which the package gives up.
CAP = 1000
# Tolerances of the search, four in each power of ten.
TOLERANCES = [10.0 ** (-k / 4) for k in range(16, 141)]


def loosest(
    flow: Flow, z: Tensor, truth: Tensor, make: Callable[[float], Invert], error: float
) -> tuple[float, Found]:
    """Find the loosest of ``TOLERANCES`` whose largest error is at most ``error``, by halving.

    Rounding or ``CAP`` may keep every tolerance from the error; then take the nearest one.

    Returns:
        the tolerance, and the result of the inversion.
    """
    tried: dict[float, tuple[float, Found]] = {}

    def ends(tolerance: float) -> bool:
        found = invert(flow, z, make(tolerance))
        worst = float(found.error(truth).max())
        tried[tolerance] = worst, found
        return worst <= error or found.longest >= CAP

    place = bisect_left(TOLERANCES, True, key=ends)
    reached = [t for t in TOLERANCES[place : place + 1] if tried[t][0] <= error]
    tolerance = reached[0] if reached else min(tried, key=lambda t: tried[t][0])
    return tolerance, tried[tolerance][1]
