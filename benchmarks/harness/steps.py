"""Training steps beside each other: time by two clocks, and the time of their products alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_iresnet import cached

from ..peers.contenders import Contender
from .measure import by_clocks
from .products import SIDE, big_product, products_of
from .report import table

COMPILED = ", compiled"
# Multiply-adds of one product of 500 x 128 with 128 x 128, the unit of the counts.
UNIT = 500 * 128 * 128
DTYPES = (torch.float32, torch.float64)
HEAD = ["", "ms, processor", "ratio", "ms, clock", "ratio", "products", "floor, ms", "ratio"]

Step = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """Median of a step, in milliseconds.

    Arguments:
        processor, clock: time of the processor, and of the clock.
        floor: time of the processor that the step's products take alone.
        products: multiply-adds of the products, in those of 500 x 128 with 128 x 128.
        lapack: the number of matrices in the calls of LAPACK of a step, by name and shape.
    """

    processor: float
    clock: float
    floor: float
    products: float
    lapack: dict[str, float]


def training_step(
    contender: Contender,
    draw: Callable[[], Tensor],
    *,
    compiled: bool = False,
    inside: bool = False,
    rate: float = 1e-3,
) -> Step:
    """Make a step of Adam on the negative log-likelihood.

    Arguments:
        contender: the flow to train.
        draw: draws a tensor of its own for each step; flowcon asks for gradients of the batch
            itself. A flow that sees one batch again and again learns its rows by heart, and its
            steps become those of a steep flow.
        compiled: True to compile the loss.
        inside: True for a loss inside ``cached``.
        rate: the learning rate; 0 for the work of a step that leaves the parameters as they are.
    """
    optimizer = torch.optim.Adam(contender.module.parameters(), lr=rate, fused=True)

    def objective(x: Tensor) -> Tensor:
        if inside:
            with cached(contender.module):
                return -contender.log_prob(x).mean()
        return -contender.log_prob(x).mean()

    loss = torch.compile(objective) if compiled else objective

    def step() -> None:
        value = loss(draw())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        contender.after_step()

    return step


def timed(steps: Mapping[str, Step], *, rounds: int, counted: int) -> dict[str, Timed]:
    """Time the steps in turn, together with the large products that tell the machine's rate.

    Arguments:
        steps: the steps by name. A compiled step has the name of the same step and ``COMPILED``,
            and its products are those of the step that is not compiled.
        rounds: rounds of the timing, two steps of each in a round.
        counted: the number of steps over which the products are counted.
    """
    for step in steps.values():
        step()
    found = {name: products_of(steps[name.removesuffix(COMPILED)], counted) for name in steps}
    rates = {f"{dtype}, {SIDE}": big_product(dtype) for dtype in DTYPES}
    times = by_clocks({**steps, **rates}, rounds=rounds, inner=2)
    cost = {dtype: times[f"{dtype}, {SIDE}"][0] / SIDE**3 for dtype in DTYPES}
    return {
        name: Timed(
            *times[name],
            floor=sum(n * cost[dtype] for dtype, n in p.multiply_adds.items()) / counted,
            products=sum(p.multiply_adds.values()) / counted / UNIT,
            lapack={call: n / counted for call, n in p.matrices.items()},
        )
        for name, p in found.items()
    }


def ratios(found: Timed, processor: float, clock: float) -> list[str]:
    """Return three cells: the ratio by the processor, by the clock, and the floor of the first."""
    return [f"{v:.2f}" for v in (found.processor / processor, found.clock / clock)] + [
        f"{found.floor / processor:.2f}"
    ]


def table_of(found: Mapping[str, Timed], base: Mapping[str, Timed]) -> str:
    """Make the table of all steps, over the fastest of ``base`` by each clock."""
    processor, clock = fastest(base)
    rows = []
    for name, t in found.items():
        over = ratios(t, processor, clock)
        times = [f"{t.processor:.1f}", over[0], f"{t.clock:.1f}", over[1]]
        rows.append([name, *times, f"{t.products:.3g}", f"{t.floor:.1f}", over[2]])
    calls = [
        f"{name}: " + ", ".join(f"{n:.0f} {call}" for call, n in t.lapack.items())
        for name, t in found.items()
        if t.lapack and not name.endswith(COMPILED)
    ]
    lapack = (
        "\n\nMatrices in calls of LAPACK, which the floor leaves out. " + "; ".join(calls) + "."
    )
    return table(HEAD, rows) + (lapack if calls else "")


def fastest(found: Mapping[str, Timed]) -> tuple[float, float]:
    """Return the fewest milliseconds of the processor, and of the clock."""
    return min(t.processor for t in found.values()), min(t.clock for t in found.values())
