"""Growth of time and memory with the number of coordinates, the batch, the depth and the width."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import typer
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from torch import Tensor

from pyro_iresnet import IResNetTransform
from pyro_iresnet.hosts.nflows import IResNetComposite
from pyro_iresnet.logdet.auto import EXACT_IN_EVALUATION

from ..harness.measure import interleaved, peak_memory
from ..harness.products import products_of
from ..harness.report import Fast, Threads, Write, publish, table

# MiB, and the events that are to fit.
LIMIT = 4096
LARGE = (1024, 4096)
# A slope that exceeds the slope of the products by more is told.
MARGIN = 0.15


@dataclass(frozen=True)
class Size:
    """Flow and its batch.

    Arguments:
        dim: the number of coordinates.
        batch: the number of rows.
        blocks: the number of blocks.
        width: the width of both hidden layers; None for the default of the package.
    """

    dim: int = 256
    batch: int = 128
    blocks: int = 4
    width: int | None = 256

    def flow(self) -> Flow:
        """Make the flow of blocks with all defaults of the package."""
        blocks = [IResNetTransform(self.dim, self.width) for _ in range(self.blocks)]
        return Flow(IResNetComposite(blocks), StandardNormal([self.dim]))


AXES = {
    "dim": ("D", (64, 256, 1024, 4096)),
    "batch": ("batch", (32, 128, 512, 2048)),
    "blocks": ("blocks", (1, 4, 16)),
    "width": ("width", (64, 128, 256, 512)),
}
NOTE = """\
Four blocks of {base.dim} coordinates, hidden layers of {base.width}, batches of {base.batch}:
one of these varies at a time. All else has the defaults of the package; float32, milliseconds of
the processor. Products are multiply-adds of all matrix products of a call, with those of LAPACK by
their leading power. A slope is that of the logarithm over the logarithm of the size, from the row
above to its row. Small calls are bound by the number of operations, so their time often grows
less than their products. In eval mode the log-determinant is exact up to {exact:,} coordinates, and
a series with a stated error above: the number of its terms depends on the weights, which are
untrained here.
The exact log-determinant takes D products where no hidden layer is narrower than D, and has the
side of the hidden layer where one is, such as layers of 256 at D = 1,024.
"""


def training(size: Size) -> Callable[[], object]:
    """Make a training step without the optimiser: forward and backward."""
    flow = size.flow()
    x = torch.randn(size.batch, size.dim)

    def step() -> None:
        flow.zero_grad()
        (-flow.log_prob(x).mean()).backward()

    return step


def evaluation(size: Size) -> Callable[[], Tensor]:
    """Make a call of ``log_prob`` in eval mode."""
    flow = size.flow().eval()
    x = torch.randn(size.batch, size.dim)

    @torch.no_grad()
    def call() -> Tensor:
        return flow.log_prob(x)

    return call


WORKS = {"training": training, "evaluation": evaluation}


def slope(sizes: tuple[float, float], values: tuple[float, float]) -> float:
    """Return the slope of the logarithm of the values over that of the sizes."""
    return math.log(values[1] / values[0]) / math.log(sizes[1] / sizes[0])


def along(axis: str, work: str, rounds: int, most: int | None) -> tuple[list[list[str]], list[str]]:
    """Measure along one axis; return the rows of a table, and what grows too fast.

    Arguments:
        axis: a name of ``AXES``.
        work: a name of ``WORKS``.
        rounds: the rounds of the timing.
        most: the number of sizes to take, from the smallest; None for all.
    """
    torch.manual_seed(0)
    name, values = AXES[axis]
    values = values[:most]
    calls = {str(v): WORKS[work](replace(Size(), **{axis: v})) for v in values}
    for call in calls.values():
        # In eval mode the first call normalises the weights for all later ones.
        call()
    counts = [products_of(call, 2).total / 2 for call in calls.values()]
    ms = list(
        interleaved(calls, rounds=rounds, inner=1, warmup=1, clock=time.process_time).values()
    )
    rows, told = [], []
    for i, value in enumerate(values):
        cells = ["", ""]
        if i:
            pair = values[i - 1], value
            found = slope(pair, (ms[i - 1], ms[i]))
            expected = slope(pair, (counts[i - 1], counts[i]))
            cells = [f"{found:.2f}", f"{expected:.2f}"]
            if found > expected + MARGIN:
                told.append(
                    f"{work}, {name} from {pair[0]:,} to {value:,}: slope {found:.2f}, of the "
                    f"products {expected:.2f}."
                )
        rows.append([f"{value:,}", f"{ms[i]:.1f}", f"{counts[i] / 1e9:.3f}", *cells])
    return rows, told


def once(work: str, dim: int, batch: int) -> None:
    """Make one call of 8 default blocks, for its peak of memory in a process of its own."""
    torch.set_num_threads(1)
    WORKS[work](Size(dim, batch, blocks=8, width=None))()


def memory(dims: Sequence[int], batches: Sequence[int]) -> tuple[str, list[str]]:
    """Return the table of peak memory, and what exceeds the limit."""
    rows, told = [], []
    for work in WORKS:
        for dim in dims:
            peaks = [peak_memory(once, work, dim, batch) for batch in batches]
            rows.append([f"{work}, D = {dim:,}", *(f"{p:,.0f}" for p in peaks), f"<= {LIMIT:,}"])
            told += [
                f"{work}, D = {dim:,}, batch {batch:,}: {peak:,.0f} MiB."
                for batch, peak in zip(batches, peaks, strict=True)
                if peak > LIMIT
            ]
    return table(["", *(f"batch {b:,}" for b in batches), "goal"], rows), told


def main(fast: Fast = False, write: Write = False, threads: Threads = 1) -> None:
    """Measure slopes along every axis, and the memory of large events."""
    torch.set_num_threads(threads)
    body, fast_growth = [], []
    for axis, (name, _) in AXES.items():
        for work in WORKS:
            rows, told = along(axis, work, *((1, 2) if fast else (3, None)))
            fast_growth += told
            head = [name, "ms", "10^9 multiply-adds", "slope", "of the products"]
            body.append(f"## {work}, {name}\n\n{table(head, rows)}")
            print(body[-1], flush=True)
    peaks, large = memory(LARGE[:1] if fast else LARGE, (16,) if fast else (64, 512))
    body.append(f"## Peak memory of one call of 8 blocks beyond the imports, MiB\n\n{peaks}")
    found = [
        f"Slopes that exceed the slope of the matrix products by more than {MARGIN}: "
        + (" ".join(fast_growth) or "nothing."),
        "Calls that take more than 4 GiB: " + (" ".join(large) or "nothing."),
    ]
    note = NOTE.format(base=Size(), exact=EXACT_IN_EVALUATION)
    body.insert(0, "\n\n".join([*found, note.strip()]))
    publish("scaling", "Growth with size", "\n\n".join(body), fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
