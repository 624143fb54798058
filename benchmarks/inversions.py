"""Ways of inverting a trained flow: this project's solvers, plain iteration, the packages."""

from collections.abc import Callable
from dataclasses import dataclass

import flowcon.transforms
import torch
from nflows.flows import Flow
from normflows.flows.residual import iResBlock as NormflowsBlock
from torch import Tensor, nn

from pyro_iresnet import IResNetTransform, Solver, cached, solve
from pyro_iresnet.caching import acting_of
from pyro_iresnet.linearization import Acting

# A call of a block's inverse on y: x, the evaluations of g of each sample.
Invert = Callable[[IResNetTransform, Acting, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Found:
    """What an inversion of the whole flow gave.

    Arguments:
        x: the values.
        evaluations: of ``g`` for each sample, all blocks together, in the mean.
        serial: the same for a sample that is the slowest in every block.
        longest: those of one sample in one block.
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
                x, count = block(transform, acting_of(transform.block.contraction), x)
                total += count
                serial += int(count.max())
                longest = max(longest, int(count.max()))
            else:
                x = transform.inverse(x)[0]
    return Found(x, float(total.mean()), serial, longest)


def by_solver(solver: Solver, rtol: float | None = None) -> Invert:
    """This project's."""

    def block(transform: IResNetTransform, g: Acting, y: Tensor) -> tuple[Tensor, Tensor]:
        solution = solve(transform.block.contraction, y, solver, rtol=rtol, acting=g)
        return solution.value, solution.stats.evaluations

    return block


def by_iteration(tolerance: float) -> Invert:
    """``x <- y - g(x)`` until a step is below the tolerance, for each sample by itself.

    Or until its steps have stopped shrinking, ten times in a row: the end of the arithmetic.
    """

    def block(transform: IResNetTransform, g: Acting, y: Tensor) -> tuple[Tensor, Tensor]:
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
    """``g`` with its acting weights, as a network of another package, which counts its calls."""

    def __init__(self, g: Acting) -> None:
        super().__init__()
        self.g, self.calls = g, 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.g(x)


def by_package(wrap: Callable[[nn.Module], nn.Module], tolerance: float) -> Invert:
    """The iteration of a published package, on this project's trained network."""

    def block(transform: IResNetTransform, g: Acting, y: Tensor) -> tuple[Tensor, Tensor]:
        net = _Counted(g)
        inverse = wrap(net)._inverse_fixed_point
        x = inverse(y, atol=tolerance, rtol=tolerance)
        return x, torch.full((len(y),), float(net.calls))

    return block


PACKAGES = {"normflows": NormflowsBlock, "flowcon": flowcon.transforms.iResBlock}


# Where the packages give up, in each block.
CAP = 1000


def loosest(flow: Flow, z: Tensor, truth: Tensor, make: Callable[[float], Invert], error: float):
    """The loosest tolerance of a grid whose largest error is at most ``error``, and what it gave.

    In float32 none may reach it: then the one that comes nearest.
    """
    tried = {}
    for k in range(10, 70):
        tolerance = 10.0 ** (-k / 2)
        found = invert(flow, z, make(tolerance))
        worst = float(found.error(truth).max())
        tried[worst] = tolerance, found
        if worst <= error:
            return tolerance, found
        if len(tried) > 3 and worst > 0.9 * min(w for w in tried if w != worst):
            break
        if found.longest >= CAP:
            break
    return tried[min(tried)]
