"""Time and memory of one training step, beside the published packages."""

from collections.abc import Callable
from functools import partial

import torch

# An optimiser imports the compiler at its first step, which would count as memory of that step.
import torch._dynamo
import typer
from torch import Tensor

from pyro_iresnet import Roulette, cached
from pyro_iresnet.logdet import Adaptive

from ..harness.measure import interleaved, peak_memory
from ..harness.report import Fast, Threads, Write, publish, table
from ..peers import contenders
from ..peers.contenders import Contender, Work

BATCH = 500
WORKS = {2: Work(2, (64, 64, 64)), 21: Work(21, (128, 128)), 63: Work(63, (128, 128))}
OURS, FLOOR = "this project", "residual MLP, no log-det"
INSIDE = f"{OURS}, inside cached"
# Dimensions in which a plain step is to take no longer than one inside `cached`.
BOTH_WAYS = (2, 21)
NOTE = """\
None of the packages compiles (torch.compile refuses their double backward), so the compiled
rows are over their eager steps. This project takes plain steps: its composite normalises the
weights of all blocks together. Each contender has a copy of the batch. The ratio of plain steps
to steps inside `cached` is of one flow, both ways in turn, with more rounds than the tables have.

What limits the step: at D = 2 the exact log-determinant carries two tangents beside the value,
three times the products of the plain network, and the eager step is bound by the number of
operations and by fresh memory (a fifth of it page faults). At D = 21 and 63 it is bound by
products of 500 x 128 with 128 x 128: three each for the value, the exact trace and the gradient
of the rest, one or more for the draws, and eight of 128 x 128 matrices for the proven norm,
where the packages pay a few matrix-vector products for a norm that is not one. Expanding at the
mean Jacobian is some 8% of the step; it divides the variance of the gradient by 1.8. The draws of
the rest of the series, which a compiled step takes as one eager operation, are half of the step.
Tried and kept: norms of one shape in one batch, the norm's gradient from one product more, a fused
activation whose scales go into the weights, both ends of the Jacobian to the middle, 32 signs from
one draw. Tried and left: value and probe in one pass of dual numbers (10%, for an activation that
must know of it), the rest of the series on a part of the batch (20%, for twice the variance of the
log-determinant's gradient), closed forms of the activation by fewer plain operations (no gain).
"""

Step = Callable[[], None]


def published(work: Work) -> dict[str, Callable[[], Contender]]:
    """Return the makers of the three packages, each with its estimators."""
    makers = {
        "normflows Residual": partial(
            contenders.normflows_residual, work, brute_force=work.dim == 2
        ),
        "flowcon iResBlock, unbiased": partial(
            contenders.flowcon_iresblock, work, brute_force=False
        ),
        "torchflows ResFlow": partial(contenders.torchflows_resflow, work),
    }
    if work.dim == 2:
        brute = partial(contenders.flowcon_iresblock, work, brute_force=True)
        unbiased = partial(contenders.normflows_residual, work, brute_force=False)
        makers["normflows Residual, brute force"] = makers.pop("normflows Residual")
        makers["normflows Residual, unbiased"] = unbiased
        makers["flowcon iResBlock, brute force"] = brute
    return makers


def training_step(
    contender: Contender, x: Tensor, *, compiled: bool = False, inside: bool = False
) -> Step:
    """Make a step of Adam on the negative log-likelihood.

    Arguments:
        contender: the flow to train.
        x: the batch. The step has a copy: flowcon asks for gradients of the batch itself, and
            every flow that shares the tensor would then compute them too.
        compiled: True to compile the loss.
        inside: True for a loss inside ``cached``.
    """
    batch = x.clone()
    optimizer = torch.optim.Adam(contender.module.parameters(), lr=1e-3, fused=True)

    def objective(x: Tensor) -> Tensor:
        if inside:
            with cached(contender.module):
                return -contender.log_prob(x).mean()
        return -contender.log_prob(x).mean()

    loss = torch.compile(objective) if compiled else objective

    def step() -> None:
        value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        contender.after_step()

    return step


def times(work: Work, rounds: int) -> dict[str, float]:
    """Return the milliseconds of a step of every contender."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    x = torch.randn(BATCH, work.dim)
    ours, floor = contenders.this_project(work), contenders.residual_mlp(work)
    steps = {name: training_step(make(), x) for name, make in published(work).items()}
    steps["nflows RealNVP, as many parameters"] = training_step(
        contenders.realnvp(work, ours.parameters), x
    )
    steps[FLOOR] = training_step(floor, x)
    steps[f"{FLOOR}, compiled"] = training_step(contenders.residual_mlp(work), x, compiled=True)
    steps[OURS] = training_step(ours, x)
    steps[INSIDE] = training_step(contenders.this_project(work), x, inside=True)
    steps[f"{OURS}, compiled"] = training_step(contenders.this_project(work), x, compiled=True)
    return interleaved(steps, rounds=rounds, inner=2)


def plain_over_inside(work: Work, rounds: int) -> float:
    """Time a step of one flow, plain and inside ``cached``, in turn; return the ratio."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, work.dim)
    contender = contenders.this_project(work)
    steps = {
        OURS: training_step(contender, x),
        INSIDE: training_step(contender, x, inside=True),
    }
    found = interleaved(steps, rounds=rounds, inner=2, warmup=10)
    return found[OURS] / found[INSIDE]


def some_steps(dim: int, name: str) -> None:
    """Take three steps of a contender, for its peak of memory in a process of its own."""
    torch.set_num_threads(2)
    work = WORKS[dim]
    make = {**published(work), OURS: partial(contenders.this_project, work)}[name]
    step = training_step(make(), torch.randn(BATCH, dim))
    for _ in range(3):
        step()


def steps_of_length(terms: int) -> None:
    """Take two steps in 63 dimensions whose series has at least so many terms."""
    torch.set_num_threads(2)
    roulette = Roulette(Adaptive(exact_terms=terms))
    contender = contenders.this_project(WORKS[63], logdet=roulette)
    step = training_step(contender, torch.randn(BATCH, 63))
    step()
    step()


def main(
    fast: Fast = False,
    write: Write = False,
    threads: Threads = 2,
) -> None:
    """Time a training step of 8 blocks at batch 500."""
    torch.set_num_threads(threads)
    body = []
    goals = []
    for dim, work in WORKS.items():
        found = times(work, rounds=3 if fast else 21)
        best = min(found[name] for name in published(work))
        rows = [[name, f"{ms:.1f}", f"{ms / best:.2f}"] for name, ms in found.items()]
        head = f"D = {dim}, 8 blocks of {'-'.join(map(str, work.hidden))}"
        body.append(f"## {head}\n\n" + table(["", "ms / step", "over the fastest package"], rows))
        eager, compiled = (0.6, 0.33) if dim == 2 else (0.65, 0.5)
        for name, goal in ((OURS, eager), (f"{OURS}, compiled", compiled)):
            goals.append([f"D = {dim}, {name}", f"{found[name] / best:.2f}", f"<= {goal}"])
        if dim in BOTH_WAYS:
            ratio = plain_over_inside(work, rounds=10 if fast else 201)
            goals.append([f"D = {dim}, plain over inside cached", f"{ratio:.3f}", "<= 1.03"])
        if dim == 2:
            over_floor = found[f"{OURS}, compiled"] / found[f"{FLOOR}, compiled"]
            goals.append(["D = 2, compiled over the compiled MLP", f"{over_floor:.2f}", "<= 2.0"])
    few, many = peak_memory(steps_of_length, 5), peak_memory(steps_of_length, 200)
    goals.append(["peak memory, 200 terms over 5", f"{many / few:.2f}", "<= 1.1"])
    peaks = [
        [name, *(f"{peak_memory(some_steps, dim, name):.0f}" for dim in WORKS)]
        for name in (OURS, "flowcon iResBlock, unbiased", "torchflows ResFlow")
    ]
    body.append(
        "## Peak memory of three steps beyond the imports, MiB\n\n"
        + table(["", *(f"D = {dim}" for dim in WORKS)], peaks)
    )
    body.insert(0, table(["", "measured", "goal"], goals) + "\n\n" + NOTE.strip())
    publish("training_step", "Training step", "\n\n".join(body), fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
