"""A training step of convolutional blocks, over a plain residual block and over normflows."""

import time
from collections.abc import Callable

import normflows as nf
import torch
import typer
from torch import Tensor, nn

from pyro_iresnet import ConvContraction, ResidualBlock, Roulette
from pyro_iresnet.logdet import Subsample
from pyro_iresnet.norms import Cholesky, Gram, Norm

from ..harness.measure import interleaved, peak_memory
from ..harness.report import Fast, Threads, Write, publish, table
from ..models.images import ARENA

# Channels, side, hidden channels.
SHAPES = [(4, 14, 64), (8, 7, 96)]
BATCH = 64

PLAIN = ("plain residual block", "plain, channels last")
OURS, THEIRS = "with log-determinant, Cholesky", "normflows, LipschitzCNN"
# Goals of a step of this package: its time over that of a plain block, and over normflows.
OVER_PLAIN, OVER_NORMFLOWS = 2.5, 0.6

Step = Callable[[], object]


def plain(channels: int, width: int) -> nn.Module:
    """Make the network of a block without a bound."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, width, 1),
        nn.SiLU(),
        nn.Conv2d(width, channels, 3, padding=1),
    )


def _clean(net: nn.Module) -> None:
    for p in net.parameters():
        p.grad = None


def plain_step(shape: tuple[int, int, int], *, channels_last: bool = False) -> Step:
    """Make a step of ``x + g(x)`` without a bound and a log-determinant."""
    channels, side, width = shape
    net, x = plain(channels, width), torch.randn(BATCH, channels, side, side)
    if channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

    def step() -> None:
        _clean(net)
        (x + net(x)).square().sum().backward()

    return step


def our_step(shape: tuple[int, int, int], norm: Norm, *, log_det: bool = True) -> Step:
    """Make a step of a block of this package."""
    channels, side, width = shape
    g = ConvContraction((channels, side, side), [width, width], norm=norm)
    block = ResidualBlock(g, logdet=Roulette(Subsample(), control_variate=None))
    x = torch.randn(BATCH, channels, side, side)

    def step() -> None:
        _clean(block)
        if log_det:
            y, value = block.forward_and_log_det(x)
            _loss(y, value).backward()
        else:
            block(x).square().sum().backward()

    return step


def normflows_step(shape: tuple[int, int, int]) -> Step:
    """Make a step of the residual flow of normflows, its norms taken anew as in its training."""
    channels, side, width = shape
    net = nf.nets.LipschitzCNN([channels, width, width, channels], [3, 1, 3], 0.97)
    flow = nf.flows.Residual(net, reverse=False, reduce_memory=True)
    x = torch.randn(BATCH, channels, side, side)

    def step() -> None:
        _clean(flow)
        y, value = flow(x)
        _loss(y, value).backward()
        nf.utils.update_lipschitz(flow, 5)

    return step


def _loss(y: Tensor, log_det: Tensor) -> Tensor:
    return (0.5 * y.square().flatten(1).sum(1) - log_det).mean()


def steps(shape: tuple[int, int, int]) -> dict[str, Step]:
    """Return the steps to compare, by name."""
    return {
        PLAIN[0]: plain_step(shape),
        PLAIN[1]: plain_step(shape, channels_last=True),
        "value, Cholesky": our_step(shape, Cholesky(), log_det=False),
        OURS: our_step(shape, Cholesky()),
        "with log-determinant, Gram": our_step(shape, Gram()),
        THEIRS: normflows_step(shape),
    }


def one_step(name: str, shape: tuple[int, int, int]) -> None:
    """Make and run three steps of one contender, for its memory."""
    torch.set_num_threads(1)
    step = steps(shape)[name]
    for _ in range(3):
        step()


def compared(shape: tuple[int, int, int], rounds: int) -> tuple[str, list[list[str]]]:
    """Measure the steps of one shape; return their table, and the rows of the goals."""
    torch.manual_seed(0)
    made = steps(shape)
    ms = interleaved(made, rounds=rounds, inner=1, clock=time.process_time)
    memory = {name: peak_memory(one_step, name, shape) for name in made}
    base = min(ms[name] for name in PLAIN)
    rows = [
        [
            name,
            f"{value:.1f}",
            f"{value / base:.2f}",
            f"{value / ms[THEIRS]:.2f}",
            f"{memory[name]:.0f}",
            f"{memory[name] / memory[THEIRS]:.2f}",
        ]
        for name, value in ms.items()
    ]
    channels, side, width = shape
    title = f"{channels} x {side} x {side}, {width}-{width} hidden channels"
    measured = (
        ("time over the faster plain block", ms[OURS] / base, OVER_PLAIN),
        ("time over normflows", ms[OURS] / ms[THEIRS], OVER_NORMFLOWS),
        ("memory over normflows", memory[OURS] / memory[THEIRS], OVER_NORMFLOWS),
    )
    goals = [[f"{title}: {what}", f"{value:.2f}", f"<= {goal}"] for what, value, goal in measured]
    header = ["step", "ms", "over plain", "over normflows", "MiB", "MiB over normflows"]
    return f"## {title}\n\n{table(header, rows)}", goals


def main(fast: Fast = False, write: Write = False, threads: Threads = 1) -> None:
    """Compare training steps of convolutional blocks."""
    torch.set_num_threads(threads)
    # As in training: malloc keeps memory from step to step.
    torch.empty(ARENA).fill_(0)
    shapes, rounds = (SHAPES[:1], 2) if fast else (SHAPES, 31)
    note = f"""Forward and backward of one block, batch {BATCH}, float32, norms included, medians \
of {rounds} interleaved rounds, milliseconds of the processor, with an arena of malloc as in \
training. `Over plain` is over the faster of the two plain blocks. Blocks of this package use \
channels last, which normflows refuses. MiB are the peak above the imports of a fresh process."""
    found = [compared(shape, rounds) for shape in shapes]
    goals = [row for _, rows in found for row in rows]
    body = [
        table([f"a step {OURS}", "measured", "goal"], goals),
        note,
        *(text for text, _ in found),
    ]
    publish(
        "image_step", "A step of convolutional blocks", "\n\n".join(body), fast=fast, write=write
    )


if __name__ == "__main__":
    typer.run(main)
