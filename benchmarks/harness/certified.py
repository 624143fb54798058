"""True errors of inverses beside their certified bounds."""

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import reduce

import torch
from torch import Tensor

from pyro_iresnet import Newton
from pyro_iresnet.blocks import Block

# A truth must solve the equation to this relative error, or it tells nothing.
SOLVED = 1e-8


@dataclass(frozen=True)
class Checked:
    """Inversions, and their errors over their bounds.

    Arguments:
        samples: the number of inversions.
        reported: samples whose solution says that the inverse failed.
        untold: samples without a truth to compare with.
        broken: samples that are said to be solved, and whose error exceeds the bound.
        ratio: the largest error over its bound.
        error: the largest error, over the larger of 1 and the norm of x.
    """

    samples: int = 0
    reported: int = 0
    untold: int = 0
    broken: int = 0
    ratio: float = 0.0
    error: float = 0.0

    def __add__(self, other: "Checked") -> "Checked":
        return Checked(
            self.samples + other.samples,
            self.reported + other.reported,
            self.untold + other.untold,
            self.broken + other.broken,
            max(self.ratio, other.ratio),
            max(self.error, other.error),
        )

    def as_json(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


def together(found: Iterable[Checked]) -> Checked:
    """Add counts, and take the largest of the errors."""
    return reduce(Checked.__add__, found, Checked())


@torch.no_grad()
def check_inverse(block: Block, y: Tensor) -> Checked:
    """Invert ``y`` by the block's own solver; compare with the solution in double precision.

    The truth is the solution of the same parameters in float64 by ``Newton()`` to the floor of
    the arithmetic. Its own bound is granted. A truth counts if the block carries it back to
    ``y``.
    """
    found = block.solve(y, throw=False)
    exact = copy.deepcopy(block).double()
    exact.solver = Newton(rtol=0.0)
    target = y.double()
    truth = exact.solve(target, throw=False)
    dims = tuple(range(-block.event_dim, 0))
    size = target.norm(dim=dims)
    missed = (exact(truth.value) - target).norm(dim=dims)
    known = truth.converged & (missed <= SOLVED * (1 + size + truth.value.norm(dim=dims)))
    told = found.converged & known
    error = (found.value.double() - truth.value).norm(dim=dims)[told]
    bound = (found.stats.error_bound.double() + truth.stats.error_bound)[told]
    scale = truth.value.norm(dim=dims)[told].clamp(min=1.0)
    return Checked(
        samples=found.converged.numel(),
        reported=int((~found.converged).sum()),
        untold=int((found.converged & ~known).sum()),
        # A comparison with NaN is False, and an error of NaN breaks every bound.
        broken=int((~(error <= bound)).sum()),
        ratio=_largest(error / bound),
        error=_largest(error / scale),
    )


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def promised(blocks: Iterable[Block]) -> float:
    """Return the largest proven bound less the constant that its block promises."""
    excess = [float(b.lipschitz_bound()) - b.contraction.lipschitz for b in blocks]
    # A maximum of Python loses NaN.
    return math.nan if any(map(math.isnan, excess)) else max(excess)
