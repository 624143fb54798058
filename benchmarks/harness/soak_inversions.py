"""Inversions of blocks of many kinds, each compared with its certified bound."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pyro_iresnet import Anderson, FixedPoint, IResNetError, Newton
from pyro_iresnet.blocks import Block
from pyro_iresnet.coordinates import Asinh, Coordinates, DiagonalScale, TriangularScale
from pyro_iresnet.options import BlockOptions
from pyro_iresnet.solvers import Solver

from .certified import Checked, check_inverse

BATCH = 500
SOLVERS: dict[str, Solver] = {
    "FixedPoint()": FixedPoint(),
    "Anderson()": Anderson(),
    "Newton()": Newton(),
}
COORDINATES: dict[str, Coordinates | tuple[Coordinates, ...] | None] = {
    "none": None,
    "diagonal": DiagonalScale(),
    "triangular": TriangularScale(),
    "asinh, triangular": (Asinh(0.5), TriangularScale()),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
KINDS = ("residual", "cayley")
DIMS = (2, 5, 20)
WEIGHTS = ("random", "trained")
# Steps of the training of a trained block, its rate, and the factor on the weights of a random one.
STEPS, RATE, GAIN = 100, 1e-2, 4.0


@dataclass(frozen=True)
class Cell:
    """Kind of inversion; the names are those of the tables above."""

    dtype: str
    solver: str
    coordinates: str
    kind: str
    dim: int
    weights: str

    @property
    def name(self) -> str:
        """The name of the cell in a file of runs."""
        return ", ".join(map(str, vars(self).values()))


def cells() -> list[Cell]:
    """List all combinations."""
    names = DTYPES, SOLVERS, COORDINATES, KINDS, DIMS, WEIGHTS
    return [Cell(*each) for each in itertools.product(*names)]


def block_of(cell: Cell) -> Block:
    """Make a block, in eval mode: far from the identity, or trained on a bent density."""
    options = BlockOptions(
        block=cell.kind,
        hidden_dims=[16, 16],
        coordinates=COORDINATES[cell.coordinates],
        solver=SOLVERS[cell.solver],
    )
    block = options.build(cell.dim)
    if cell.weights == "trained":
        _train(block, cell.dim)
    else:
        with torch.no_grad():
            for name, parameter in block.named_parameters():
                if name.endswith("weight"):
                    parameter.mul_(GAIN)
                else:
                    parameter.add_(0.5 * torch.randn_like(parameter))
    return block.to(DTYPES[cell.dtype]).eval()


def _train(block: Block, dim: int) -> None:
    optimizer = torch.optim.Adam(block.parameters(), lr=RATE)
    for _ in range(STEPS):
        x = torch.randn(64, dim)
        x = torch.cat([x[:, :1], x[:, 1:] + x[:, :1].square() - 1], 1)
        y, log_det = block.forward_and_log_det(x)
        optimizer.zero_grad()
        (y.square().sum(1) / 2 - log_det).mean().backward()
        optimizer.step()


def invert(cell: Cell, samples: int, seed: int) -> Checked:
    """Invert points of norms over six orders of magnitude, ``BATCH`` for each fresh block.

    A trained block is trained once for a cell. A block that refuses to be inverted has reported.
    """
    torch.manual_seed(seed)
    found, block = Checked(), None
    for count in _batches(samples):
        if block is None or cell.weights == "random":
            block = block_of(cell)
        size = 10 ** (6 * torch.rand(count, 1, dtype=torch.float64) - 3)
        y = (size * torch.randn(count, cell.dim, dtype=torch.float64)).to(DTYPES[cell.dtype])
        try:
            found += check_inverse(block, y)
        except IResNetError:
            found += Checked(samples=count, reported=count)
    return found


def _batches(samples: int) -> Iterator[int]:
    while samples > 0:
        yield min(BATCH, samples)
        samples -= BATCH
