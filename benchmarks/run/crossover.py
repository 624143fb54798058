"""Dimension from which training is cheaper with an unbiased estimate than with the exact value."""

import time

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

    def step(logdet: LogDet) -> None:
        block = ResidualBlock(g, logdet=logdet)
        block.zero_grad()
        y, value = block.forward_and_log_det(x)
        (y.square().sum() - value.sum()).backward()

    steps = {"exact": lambda: step(Exact()), "roulette": lambda: step(IN_TRAINING)}
    return interleaved(steps, rounds=rounds, inner=5, clock=time.process_time)


def evaluation(dim: int, rounds: int) -> dict[str, float]:
    """Return the milliseconds of an evaluation of 32 points by one block, by estimator."""
    torch.manual_seed(0)
    x = torch.randn(32, dim)
    g = _moved(DenseContraction(dim))

    @torch.no_grad()
    def evaluate(logdet: LogDet) -> None:
        ResidualBlock(g, logdet=logdet).forward_and_log_det(x)

    steps = {"exact": lambda: evaluate(Exact()), "series": lambda: evaluate(ConvergedSeries())}
    return interleaved(steps, rounds=rounds, inner=1, warmup=1, clock=time.process_time)


def _moved(g: DenseContraction) -> DenseContraction:
    """Bring the weights to their bounds, as training does: the series then takes more terms."""
    with torch.no_grad():
        for layer in g.layers:
            layer.weight.mul_(4.0)
    return g


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
    rows = [
        [str(dim), f"{t['exact']:.2f}", f"{t['roulette']:.2f}", f"{t['exact'] / t['roulette']:.2f}"]
        for dim, t in trained
    ]
    long = [
        [str(dim), f"{t['exact']:.0f}", f"{t['series']:.0f}", f"{t['exact'] / t['series']:.2f}"]
        for dim, t in evaluated
    ]
    body = (
        f"`auto_logdet` is exact up to {EXACT_IN_TRAINING} coordinates in train mode and up to "
        f"{EXACT_IN_EVALUATION} in eval mode.\n\nForward and backward of one default block, batch "
        f"{BATCH}, ms of the processor:\n\n"
        + table(["D", "Exact", "Roulette", "ratio"], rows)
        + "\n\nAn evaluation of 32 points without gradients, ms of the processor:\n\n"
        + table(["D", "Exact", "ConvergedSeries", "ratio"], long)
    )
    publish("crossover", "Exact or stochastic", body, fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
