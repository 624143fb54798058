"""Seconds of training until a density is reached, each package at its own best setting.

Adam under a one-cycle learning rate. For each package the peak rate is chosen from the same grid
by a short run of seed 0; then, for each of the other seeds, the number of steps grows by a fifth
until a run reaches the target. The score is the exact log-density of held-out data, from the dense
Jacobian of the whole flow, by one judge for all; its time is not counted. Seconds are those of the
processor, without other work of the machine; with one thread they are those of a quiet machine.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Annotated, TypedDict

import torch
import typer
from torch import Tensor, nn

from pyro_iresnet.demo.checkerboard import checkerboard

from ..harness.report import Fast, Kept, Threads, Write, publish, table
from ..harness.runs import Runs
from ..peers import contenders
from ..peers.contenders import Contender, Work
from ..targets.digits import digits

BATCH = 256
RATES = (2e-3, 5e-3, 1e-2, 2e-2)
CHECKS = 20
GROWTH = 1.2
GOAL = 0.35
OURS = "this project"


NOTE = f"""
The checkerboard has eight blocks of 64-64-64, the digits have four of 128-128, with ActNorms. \
Batches of {BATCH}, Adam under a one-cycle rate. Seed 0 chooses the peak rate, in short runs; for \
each other seed the number of steps grows by a fifth until a run reaches the target, and the \
seconds are those of the last run. Steps and nats are medians too. The score is minus the mean \
log-density of rows held out, by the dense Jacobian of the whole flow; its time does not count. \
The blocks of this project are packed.
"""


@dataclass(frozen=True)
class Task:
    """Density to learn.

    Arguments:
        name: the name in the report.
        work: the flow.
        batch: draws a batch of a given size to train on.
        held_out: the points of the score.
        target: the negative log-likelihood to reach, nats.
        short: steps of the runs that choose the rate.
        first: steps of the first attempt.
        most: seconds of training after which the race gives a package up.
    """

    name: str
    work: Work
    batch: Callable[[int], Tensor]
    held_out: Tensor
    target: float
    short: int
    first: int
    most: float


class Attempt(TypedDict):
    """Run, as JSON can hold it: whether it reached the target, its last score and its seconds."""

    reached: bool
    score: float
    seconds: float


def tasks() -> list[Task]:
    """Make the tasks of the goals: the checkerboard, and the digits."""
    torch.manual_seed(0)
    board = checkerboard(5000)
    data = digits()
    return [
        Task(
            name="checkerboard",
            work=Work(2, (64, 64, 64), actnorm=True),
            batch=checkerboard,
            held_out=board,
            target=3.75,
            short=1000,
            first=200,
            most=150,
        ),
        Task(
            name="digits",
            work=Work(64, (128, 128), blocks=4, actnorm=True),
            batch=data.batch,
            held_out=data.held_out(4),
            target=10.0,
            short=500,
            first=100,
            most=100,
        ),
    ]


def makers(work: Work) -> dict[str, Callable[[], Contender]]:
    """Return the makers of all packages, each with the best estimator for the dimension."""
    small = work.dim == 2
    return {
        OURS: partial(contenders.this_project, work, packed=True),
        "normflows": partial(contenders.normflows_residual, work, brute_force=small),
        "flowcon": partial(contenders.flowcon_iresblock, work, brute_force=small),
        "torchflows": partial(contenders.torchflows_resflow, work),
    }


def score(contender: Contender, x: Tensor) -> float:
    """Return the exact mean negative log-density of ``x``, in eval mode."""
    training = contender.module.training
    contender.module.eval()
    total = 0.0
    for part in x.split(500):
        leaf = part.detach().requires_grad_()
        z = contender.to_noise(leaf)
        rows = [torch.autograd.grad(c.sum(), leaf, retain_graph=True)[0] for c in z.unbind(-1)]
        logdet = torch.linalg.slogdet(torch.stack(rows, -2).double()).logabsdet
        base = torch.distributions.Normal(0.0, 1.0).log_prob(z.double()).sum(-1)
        total -= float((base + logdet).detach().sum())
    contender.module.train(training)
    return total / len(x)


def attempt(
    task: Task, make: Callable[[], Contender], rate: float, steps: int, *, seed: int
) -> Attempt:
    """Train once, with a look at the score a few times in the second half."""
    torch.manual_seed(seed)
    contender = make()
    contender.module.train()
    with torch.no_grad():
        contender.to_noise(task.batch(2000))  # an ActNorm starts from this batch
    parameters = list(contender.module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    seconds, last = 0.0, math.inf
    for done in range(1, steps + 1):
        start = time.process_time()
        loss = -contender.log_prob(task.batch(BATCH)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        contender.after_step()
        schedule.step()
        seconds += time.process_time() - start
        if not bool(loss.isfinite()):
            return {"reached": False, "score": math.inf, "seconds": seconds}
        if done == steps or (done > steps // 2 and done % (steps // CHECKS) == 0):
            last = score(contender, task.held_out)
            if last <= task.target:
                return {"reached": True, "score": last, "seconds": seconds}
        if seconds > task.most:
            break
    return {"reached": False, "score": last, "seconds": seconds}


@dataclass(frozen=True)
class Race:
    """Runs of one package on one task.

    Arguments:
        task: the density to learn.
        name: the name of the package.
        make: makes the flow.
        runs: the finished runs.
        seeds: the number of seeds that are reported, from 1; seed 0 chooses the rate.
    """

    task: Task
    name: str
    make: Callable[[], Contender]
    runs: Runs[Attempt]
    seeds: int

    def run(self, rate: float, steps: int, seed: int) -> Attempt:
        """Return a finished run, or train."""
        name = f"{self.task.name} / {self.name} / {rate:g} / {steps} / {seed}"
        return self.runs.get(name, lambda: attempt(self.task, self.make, rate, steps, seed=seed))

    def rate(self) -> float:
        """Choose the peak rate: the first to reach the target, else the one that comes nearest."""

        def order(rate: float) -> tuple[float, float]:
            short = self.run(rate, self.task.short, 0)
            return short["seconds"] if short["reached"] else math.inf, short["score"]

        return min(RATES, key=order)

    def shortest(self, rate: float, seed: int) -> tuple[int, Attempt]:
        """Lengthen the training until it reaches the target, or takes too long."""
        steps = self.task.first
        while True:
            found = self.run(rate, steps, seed)
            if found["reached"] or found["seconds"] >= self.task.most:
                return steps, found
            steps = round(GROWTH * steps)

    def row(self) -> tuple[float | None, list[str]]:
        """Return the median of the seconds, None if the target was missed, and a row's cells."""
        rate, found = self.rate(), []
        for seed in range(1, self.seeds + 1):
            steps, one = self.shortest(rate, seed)
            found.append((one["seconds"], steps, one["score"]))
            if not one["reached"]:
                cells = [f"> {one['seconds']:.1f}", "", f"{rate:g}", str(steps)]
                return None, [self.name, *cells, f"{one['score']:.3f}"]
        seconds, steps, scores = map(list, zip(*found, strict=True))
        middle = median(seconds)
        each = ", ".join(f"{s:.1f}" for s in seconds)
        cells = [f"{middle:.1f}", each, f"{rate:g}", f"{median(steps):g}"]
        return middle, [self.name, *cells, f"{median(scores):.3f}"]


def main(
    fast: Fast = False,
    write: Write = False,
    threads: Threads = 1,
    log: Kept = None,
    seeds: Annotated[int, typer.Option(help="Reported, from 1 on; 0 chooses the rate.")] = 3,
    only: Annotated[
        str, typer.Option(help="One task, checkerboard or digits; never written.")
    ] = "",
    skip: Annotated[str, typer.Option(help="A package to leave out; never written.")] = "",
) -> None:
    """Race to 3.75 nats on the checkerboard and to 10 nats on held-out digits."""
    if skip == OURS:
        raise typer.BadParameter(f"The ratio needs {OURS}; skip another package.")
    torch.set_num_threads(threads)
    body, runs = [], Runs(log)
    for task in tasks():
        if only not in ("", task.name):
            continue
        if fast:
            few = task.held_out[:200]
            task = replace(task, held_out=few, target=1e3, short=20, first=20, most=5)
        rows, times = [], []
        for name, make in makers(task.work).items():
            if name == skip:
                continue
            seconds, row = Race(task, name, make, runs, seeds).row()
            rows.append(row)
            times.append(seconds)
            print(task.name, row, flush=True)
        ours, others = times[0], [t for t in times[1:] if t is not None]
        if ours is None:
            ratio = "not known"
        else:
            # A package that gave up takes longer than its last run.
            ratio = f"{'' if others else 'below '}{ours / min([*others, task.most]):.2f}"
        head = ["", "CPU seconds", "each seed", "peak rate", "steps", "nats"]
        body.append(
            f"## {task.name}: seconds to {task.target} nats\n\n{table(head, rows)}\n\n"
            f"This project over the fastest package: {ratio} (goal <= {GOAL}). Medians over "
            f"{seeds} seeds. `>` means that the first seed did not reach the target in "
            f"{task.most:g} seconds of training."
        )
    body.append(NOTE.strip())
    part = bool(fast or only or skip)
    options = f"--seeds {seeds}"
    publish(
        "time_to_quality",
        "Time to quality",
        "\n\n".join(body),
        options,
        fast=part,
        write=write,
        origin=runs.origin(),
    )


if __name__ == "__main__":
    typer.run(main)
