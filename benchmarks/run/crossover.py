"""Dimension from which training is cheaper with an unbiased estimate than with the exact value."""

import time
from collections.abc import Callable

import torch
import typer

from pyro_iresnet import DenseContraction, Exact, ResidualBlock
from pyro_iresnet.logdet import ConvergedSeries, LogDet
from pyro_iresnet.logdet.auto import EXACT_IN_EVALUATION, EXACT_IN_TRAINING, IN_TRAINING

from ..harness.measure import interleaved
from ..harness.report import Fast, Threads, Write, publish, table

BATCH = 256
TRAINING = (2, 4, 8, 12, 16, 20, 24, 32, 48)
EVALUATION = (256, 512, 1024, 2048)


def training(dim: int, rounds: int) -> dict[str, float]:
    """Return the milliseconds of forward and backward of one default block, by estimator."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, dim)
    g = _moved(DenseContraction(dim))

    def step_by(logdet: LogDet) -> Callable[[], None]:
        block = ResidualBlock(g, logdet=logdet)

        def step() -> None:
            block.zero_grad()
            y, value = block.forward_and_log_det(x)
            (y.square().sum() - value.sum()).backward()

        return step

    steps = {"exact": step_by(Exact()), "roulette": step_by(IN_TRAINING)}
    return interleaved(steps, rounds=rounds, inner=5, clock=time.process_time)


def evaluation(dim: int, rounds: int) -> dict[str, float]:
    """Return the milliseconds of 32 points through one block in eval mode, by estimator."""
    torch.manual_seed(0)
    x = torch.randn(32, dim)
    g = _moved(DenseContraction(dim))

    def call_by(logdet: LogDet) -> Callable[[], object]:
        block = ResidualBlock(g, logdet=logdet).eval()
        return torch.no_grad()(lambda: block.forward_and_log_det(x))

    steps = {"exact": call_by(Exact()), "series": call_by(ConvergedSeries())}
    return interleaved(steps, rounds=rounds, inner=1, warmup=1, clock=time.process_time)


def _moved(g: DenseContraction) -> DenseContraction:
    """Bring the weights to their bounds, as training does: the series then takes more terms."""
    with torch.no_grad():
        for layer in g.layers:
            layer.weight.mul_(4.0)
    return g


def widths(dim: int) -> str:
    """Name the default widths of the hidden layers."""
    return "-".join(str(len(layer.weight)) for layer in DenseContraction(dim).layers[:-1])


def cells(ms: dict[str, float], other: str, digits: int) -> list[str]:
    """Return the time of the exact value, of the other estimator, and their ratio."""
    exact, drawn = ms["exact"], ms[other]
    return [f"{exact:.{digits}f}", f"{drawn:.{digits}f}", f"{exact / drawn:.2f}"]


def main(
    fast: Fast = False,
    write: Write = False,
    threads: Threads = 1,
) -> None:
    """Compare Exact with Roulette in training, and with ConvergedSeries in evaluation."""
    torch.set_num_threads(threads)
    rounds = 3 if fast else 25
    trained = [(dim, training(dim, rounds)) for dim in TRAINING]
    evaluated = [(dim, evaluation(dim, 1 if fast else 3)) for dim in EVALUATION]
    rows = [[str(dim), widths(dim), *cells(ms, "roulette", 2)] for dim, ms in trained]
    long = [[str(dim), widths(dim), *cells(ms, "series", 2)] for dim, ms in evaluated]
    body = (
        f"`auto_logdet` is exact up to {EXACT_IN_TRAINING} coordinates in train mode and up to "
        f"{EXACT_IN_EVALUATION} in eval mode, there for the exact value and not for time. The "
        "widths are the defaults for D. The determinant has the side of the narrowest hidden layer "
        "where one is narrower than D.\n\nForward and backward of one default block, batch "
        f"{BATCH}, ms of the processor:\n\n"
        + table(["D", "hidden layers", "Exact", "Roulette", "ratio"], rows)
        + "\n\n32 points in eval mode without gradients, ms of the processor:\n\n"
        + table(["D", "hidden layers", "Exact", "ConvergedSeries", "ratio"], long)
    )
    publish("crossover", "Exact or stochastic", body, fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
