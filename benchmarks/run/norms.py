"""Training by each norm strategy, at equal steps and in equal time."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
import typer
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import ActNorm
from torch import Tensor

from pyro_iresnet import (
    ContractionError,
    DenseContraction,
    IResNetTransform,
    ResidualBlock,
)
from pyro_iresnet.demo.checkerboard import checkerboard
from pyro_iresnet.hosts.nflows import IResNetComposite
from pyro_iresnet.norms import (
    Cholesky,
    Gram,
    Hard,
    Norm,
    PowerIteration,
    SingularValue,
)

from ..harness.measure import interleaved
from ..harness.report import Fast, Kept, Threads, Write, publish, table
from ..harness.runs import Runs
from ..models.trained import BATCH, train
from ..targets.digits import digits

SEEDS = 3
STRATEGIES: dict[str, Norm] = {
    "Cholesky()": Cholesky(),
    "Gram()": Gram(),
    "Hard(Gram())": Hard(Gram()),
    "SingularValue()": SingularValue(),
    "PowerIteration(20)": PowerIteration(20),
}
STANDARD = "Cholesky()"


@dataclass(frozen=True)
class Job:
    """Flow to train, and the measure of its fit.

    Arguments:
        name: the name of the data.
        dim: the number of coordinates.
        hidden: the widths of the hidden layers of each block.
        blocks: the number of blocks.
        steps: steps of Adam for the comparison of strategies.
        goal_steps: steps of the run beside the goal.
        rate: the learning rate.
        goal: the goal, nats.
        every: True for an ActNorm before every block and at the end; else before the first.
        batch: draws a training batch.
        held_out: draws the points of the measurement.
    """

    name: str
    dim: int
    hidden: tuple[int, ...]
    blocks: int
    steps: int
    goal_steps: int
    rate: float
    goal: float
    every: bool
    batch: Callable[[int], Tensor]
    held_out: Callable[[], Tensor]

    @property
    def lipschitz(self) -> float:
        """The constant of a block whose layers have 0.99 each."""
        return 0.99 ** (len(self.hidden) + 1)

    def flow(self, norm: Norm) -> Flow:
        """Make the flow of a norm strategy at its start."""
        parts = []
        for i in range(self.blocks):
            if self.every or i == 0:
                parts.append(ActNorm(self.dim))
            g = DenseContraction(self.dim, self.hidden, lipschitz=self.lipschitz, norm=norm)
            parts.append(IResNetTransform.from_block(ResidualBlock(g)))
        if self.every:
            parts.append(ActNorm(self.dim))
        flow = Flow(IResNetComposite(parts), StandardNormal([self.dim]))
        with torch.no_grad():
            flow.log_prob(self.batch(1000))
        return flow

    def loss(self, flow: Flow) -> Tensor:
        return -flow.log_prob(self.batch(BATCH)).mean()

    def nats(self, name: str, steps: int, seed: int) -> float:
        """Train a flow with a norm strategy; return its held-out nats."""
        torch.manual_seed(seed)
        flow = self.flow(STRATEGIES[name])
        train(flow, self.batch, steps=steps, rate=self.rate)
        torch.manual_seed(1000)
        with torch.no_grad():
            return float(-torch.cat([flow.log_prob(x) for x in self.held_out().split(500)]).mean())

    def step_times(self) -> dict[str, float]:
        """Return the milliseconds of the processor, forward and backward, by each strategy."""

        def step_of(name: str) -> Callable[[], object]:
            flow = self.flow(STRATEGIES[name])

            def step() -> None:
                flow.zero_grad()
                self.loss(flow).backward()

            return step

        torch.manual_seed(0)
        steps = {name: step_of(name) for name in STRATEGIES}
        return interleaved(steps, rounds=9, inner=10, clock=time.process_time)


def digits_job() -> Job:
    """Make the job of four blocks in 64 dimensions."""
    # ActNorms before every block overfit the 1,500 rows.
    data = digits()
    return Job(
        "digits",
        64,
        (128, 128),
        4,
        600,
        4000,
        2e-3,
        6.2,
        False,
        data.batch,
        partial(data.held_out, 10),
    )


def checkerboard_job() -> Job:
    """Make the job of eight blocks in two dimensions."""

    def held_out() -> Tensor:
        return checkerboard(20_000)

    return Job(
        "checkerboard",
        2,
        (64, 64),
        8,
        600,
        8000,
        2e-2,
        3.66,
        True,
        checkerboard,
        held_out,
    )


class Log:
    """Runs and their figures.

    Arguments:
        path: the file of the finished runs, or None.
    """

    def __init__(self, path: Path | None) -> None:
        self.runs: Runs[float] = Runs(path)

    def nats(self, job: Job, strategy: str, steps: int, seed: int) -> float:
        """Return the nats of a run, kept or made now."""

        def run() -> float:
            try:
                return job.nats(strategy, steps, seed)
            except ContractionError:
                # The roulette meets a Jacobian beyond its bound.
                return math.inf

        return self.runs.get(f"{job.name}/{strategy}/{steps}/{seed}", run)

    def figure(self, job: Job, strategy: str, steps: int, seeds: int) -> str:
        """Write mean and standard deviation over the seeds."""
        found = [self.nats(job, strategy, steps, seed) for seed in range(seeds)]
        failed = sum(not math.isfinite(nats) for nats in found)
        if failed:
            return f"failed in {failed} of {seeds}"
        spread = stdev(found) if len(found) > 1 else 0.0
        return f"{mean(found):.3f} ({spread:.3f})"


def rows_of(job: Job, log: Log, seeds: int, steps: int) -> Iterator[list[str]]:
    """Yield a row for each strategy."""
    times = job.step_times()
    for name in STRATEGIES:
        # To the next twenty, so that noise in the times does not make every run a new one.
        as_long = max(1, round(steps * times[STANDARD] / times[name] / 20)) * 20
        yield [
            name,
            f"{times[name]:.1f}",
            log.figure(job, name, steps, seeds),
            str(as_long),
            log.figure(job, name, as_long, seeds),
        ]


def main(
    fast: Fast = False,
    write: Write = False,
    threads: Threads = 1,
    log: Kept = None,
) -> None:
    """Train two flows by every norm strategy."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    kept, seeds = Log(log), 1 if fast else SEEDS
    head = [
        "",
        "ms, forward and backward",
        "nats, equal steps",
        "steps in equal time",
        "nats, equal time",
    ]
    body, goals = [], []
    jobs = digits_job(), checkerboard_job()
    for job in jobs:
        steps = 200 if fast else job.goal_steps
        found = kept.figure(job, STANDARD, steps, seeds)
        goals.append([f"{job.name}, {steps:,} steps, {STANDARD}", found, f"<= {job.goal}"])
    for job in jobs:
        steps = 100 if fast else job.steps
        rows = list(rows_of(job, kept, seeds, steps))
        body.append(f"## {job.name}, {steps:,} steps\n\n{table(head, rows)}")
    note = f"""\
Held-out nats, the mean of {seeds} seeds with their standard deviation; batches of {BATCH}, Adam, \
average of the last tenth; each layer has the bound 0.99, and `Hard` scales every weight up to the \
bound too. One learning rate for all, chosen for Gram() when \
Gram() was the default. A run fails where a Jacobian is beyond its bound, or with NaN. `Equal \
time` gives each strategy as many steps as fit in the time of those of Cholesky(), the default. \
Times are those of the processor, threads: {threads}. Digits: 4 blocks of 128-128; \
checkerboard: 8 blocks of 64-64, of which 3.466 nats are the entropy."""
    body.insert(0, table(["held-out nats", "measured", "goal"], goals) + f"\n\n{note}")
    publish("norms", "Norm strategies", "\n\n".join(body), fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
