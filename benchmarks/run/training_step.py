"""Time, products and memory of one training step, beside the published packages."""

import time
from collections.abc import Callable
from functools import partial

import torch

# An optimiser imports the compiler at its first step, which would count as memory of that step.
import torch._dynamo
import torch._inductor.config
import typer

from pyro_iresnet import IResNetTransform, Roulette, iresnet_flow
from pyro_iresnet.logdet import Adaptive, MeanJacobian
from pyro_iresnet.norms import Gram

from ..harness.measure import in_fresh_process, interleaved, peak_memory
from ..harness.report import Fast, Kept, Write, publish, table
from ..harness.runs import Runs
from ..harness.steps import COMPILED, Timed, fastest, ratios, table_of, timed, training_step
from ..models.trained import BATCH as DIGITS_BATCH
from ..models.trained import Recipe, on_digits
from ..peers import contenders
from ..peers.contenders import NORM, Contender, Work, of_nflows

BATCH = 500
THREADS = (1, 2)
WORKS = {2: Work(2, (64, 64, 64)), 21: Work(21, (128, 128)), 63: Work(63, (128, 128))}
# Goals of the eager and of the compiled step, over the fastest package.
GOALS = {2: (0.45, 0.33), 21: (0.50, 0.42), 63: (0.50, 0.42)}
OURS, FLOOR = "this project", "residual MLP, no log-det"
NORMS = {OURS: NORM, f"{OURS}, Gram()": Gram()}
PACKED = ", packed"
FORMER, DEFAULT = "the former default", "the default"
DIGITS_GOAL = 0.60
# Dimensions in which a plain step is to take no longer than one inside `cached`.
BOTH_WAYS = (2, 21)
NOTE = """\
All contenders of a table take turns in one process, each with a fresh batch for every step, drawn
within the time of the step. Ratios are over the fastest of normflows, flowcon and torchflows in
the same table. None of them compiles (torch.compile refuses their double backward), so compiled
steps are over their eager steps. This project takes plain steps in the coordinates of x, without
ActNorms, as the packages do; with its default norm and with `Gram()`; "packed" says that
`pack_blocks(flow)` was called once before. "All defaults" has learned coordinates and ActNorms too.

Products are the multiply-adds of all matrix products of a step, forward and backward, in those of
one product of 500 x 128 with 128 x 128. The floor is the processor's time that the products alone
would take at the rate of a product of 1024 x 1024 of the same dtype, timed in the same turns. A
compiled step is given the products of the eager one.

The former default of the trained flow is `Roulette` with `Adaptive(0.15)` and `MeanJacobian()`.
Steps of the trained flow have the learning rate 0, so that all are steps of the same parameters.
"""


def published(work: Work) -> dict[str, Callable[[], Contender]]:
    """Return the makers of the three packages, each with its estimators."""
    makers = {"torchflows ResFlow": partial(contenders.torchflows_resflow, work)}
    kinds = {"unbiased": False} | ({"brute force": True} if work.dim == 2 else {})
    for kind, brute in kinds.items():
        normflows = partial(contenders.normflows_residual, work, brute_force=brute)
        makers[f"normflows Residual, {kind}"] = normflows
        flowcon = partial(contenders.flowcon_iresblock, work, brute_force=brute)
        makers[f"flowcon iResBlock, {kind}"] = flowcon
    return makers


def ours(work: Work) -> dict[str, Callable[[], Contender]]:
    """Return the makers of this project, with its default norm and with Gram, and packed."""
    makers: dict[str, Callable[[], Contender]] = {}
    for name, norm in NORMS.items():
        makers[name] = partial(contenders.this_project, work, norm=norm)
        makers[name + PACKED] = partial(contenders.this_project, work, norm=norm, packed=True)
    return makers


def by_default(work: Work) -> Contender:
    """Make the flow of this project with all defaults but the widths of the hidden layers."""
    return of_nflows(iresnet_flow(work.dim, work.blocks, hidden_features=work.hidden))


def beside_packages(dim: int, threads: int, fast: bool) -> dict[str, Timed]:
    """Time a step of every contender."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    work = WORKS[dim]
    draw = partial(torch.randn, BATCH, dim)
    own = {FLOOR: partial(contenders.residual_mlp, work), **ours(work)}
    size = contenders.this_project(work).parameters
    other = {
        "this project, all defaults": partial(by_default, work),
        "nflows RealNVP, as many parameters": partial(contenders.realnvp, work, size),
    }
    makers = {**published(work), **other, **own}
    steps = {name: training_step(make(), draw) for name, make in makers.items()}
    if not fast:
        for name, make in own.items():
            if name.endswith(PACKED):
                # A compiler reads the rows one by one, so a pack gains nothing.
                continue
            steps[name + COMPILED] = training_step(make(), draw, compiled=True)
    return timed(steps, rounds=1 if fast else 21, counted=1 if fast else 10)


def digits_recipe(fast: bool) -> Recipe:
    """Make the recipe of the trained flow, in the coordinates of x."""
    return on_digits(blocks=4, steps=20 if fast else 1000)


def on_trained(saved: str, threads: int, fast: bool) -> dict[str, Timed]:
    """Time a step of the trained flow, with the former estimator and with the default."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    recipe = digits_recipe(fast)
    draw = partial(recipe.batch, DIGITS_BATCH)
    former = Roulette(Adaptive(0.15), control_variate=MeanJacobian())
    steps = {}
    for name, estimator in ((FORMER, former), (DEFAULT, None)):
        flow = recipe.loaded(saved).train()
        for transform in flow.modules():
            if isinstance(transform, IResNetTransform) and estimator is not None:
                transform.block.logdet = estimator
        steps[name] = training_step(of_nflows(flow), draw, rate=0.0)
    return timed(steps, rounds=2 if fast else 51, counted=1 if fast else 10)


def first_steps(dim: int) -> list[float]:
    """Return the seconds of the first compiled step, and of the first with a second batch size."""
    torch.set_num_threads(2)
    torch._inductor.config.force_disable_caches = True
    sizes = [BATCH, BATCH // 2]
    contender = contenders.this_project(WORKS[dim])
    step = training_step(contender, lambda: torch.randn(sizes.pop(0), dim), compiled=True)
    seconds = []
    while sizes:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def compilation() -> str:
    """Return the table of the seconds of compilation."""
    rows = []
    for dim in WORKS:
        rows.append([f"D = {dim}", *(f"{s:.0f}" for s in in_fresh_process(first_steps, dim))])
    body = table(["", "first step", f"first step with {BATCH // 2} rows"], rows)
    return f"## Seconds of compilation, two threads\n\n{body}"


def plain_over_inside(work: Work, rounds: int) -> float:
    """Time a step of one flow, plain and inside ``cached``, in turn; return the ratio."""
    torch.manual_seed(0)
    draw = partial(torch.randn, BATCH, work.dim)
    contender = contenders.this_project(work)
    steps = {
        "plain": training_step(contender, draw),
        "inside": training_step(contender, draw, inside=True),
    }
    found = interleaved(steps, rounds=rounds, inner=2, warmup=10, clock=time.process_time)
    return found["plain"] / found["inside"]


def some_steps(dim: int, name: str) -> None:
    """Take three steps of a contender, for its peak of memory in a process of its own."""
    torch.set_num_threads(2)
    work = WORKS[dim]
    make = {**published(work), **ours(work)}[name]
    step = training_step(make(), partial(torch.randn, BATCH, dim))
    for _ in range(3):
        step()


def steps_of_length(terms: int) -> None:
    """Take two steps in 63 dimensions whose series has at least so many terms."""
    torch.set_num_threads(2)
    roulette = Roulette(Adaptive(exact_terms=terms), control_variate=None)
    contender = contenders.this_project(WORKS[63], logdet=roulette)
    step = training_step(contender, partial(torch.randn, BATCH, 63))
    step()
    step()


def goals_of(dim: int, threads: int, found: dict[str, Timed]) -> list[list[str]]:
    """Return the rows of the goals of one table."""
    best = fastest({name: found[name] for name in published(WORKS[dim])})
    rows = []
    for compiled, goal in zip(("", COMPILED), GOALS[dim], strict=True):
        for name in ours(WORKS[dim]):
            if name + compiled in found:
                cells = ratios(found[name + compiled], *best)
                rows.append([f"D = {dim}, {name}{compiled}", str(threads), *cells, f"<= {goal}"])
    if dim == 2 and OURS + COMPILED in found:
        mlp = found[FLOOR + COMPILED]
        cells = ratios(found[OURS + COMPILED], mlp.processor, mlp.clock)
        rows.append(["D = 2, compiled over the compiled MLP", str(threads), *cells, "<= 2.0"])
    return rows


def memory(fast: bool) -> str:
    """Return the tables of peak memory."""
    dims = [21] if fast else list(WORKS)
    names = [OURS] if fast else [*NORMS, *published(WORKS[63])]
    rows = [[n, *(f"{peak_memory(some_steps, dim, n):.0f}" for dim in dims)] for n in names]
    body = table(["", *(f"D = {dim}" for dim in dims)], rows)
    few, many = peak_memory(steps_of_length, 5), peak_memory(steps_of_length, 200)
    return (
        f"## Peak memory of three steps beyond the imports, MiB\n\n{body}\n\n"
        f"Peak memory of steps of 200 terms over that of 5 terms: {many / few:.2f} (goal <= 1.1)."
    )


def main(fast: Fast = False, write: Write = False, log: Kept = None) -> None:
    """Time a training step of 8 blocks at batch 500, and of 4 trained blocks on the digits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    saved = digits_recipe(fast).saved(Runs(log))
    goals, body = [], []
    counts = THREADS[:1] if fast else THREADS
    for dim, work in WORKS.items():
        if fast and dim == 63:
            continue
        for threads in counts:
            found = in_fresh_process(beside_packages, dim, threads, fast)
            base = {name: found[name] for name in published(work)}
            head = f"D = {dim}, 8 blocks of {'-'.join(map(str, work.hidden))}"
            body.append(f"## {head}, threads: {threads}\n\n{table_of(found, base)}")
            goals += goals_of(dim, threads, found)
    for threads in counts:
        found = in_fresh_process(on_trained, saved, threads, fast)
        base = {FORMER: found[FORMER]}
        head = f"trained digits flow, 64-D, batch {DIGITS_BATCH}"
        body.append(f"## {head}, threads: {threads}\n\n{table_of(found, base)}")
        cells = ratios(found[DEFAULT], *fastest(base))
        goals.append([f"{head}, over {FORMER}", str(threads), *cells, f"<= {DIGITS_GOAL}"])
    body.append(memory(fast))
    if not fast:
        body.append(compilation())
    body.append("## Plain steps over steps inside `cached`, one thread\n")
    for dim in BOTH_WAYS:
        ratio = plain_over_inside(WORKS[dim], rounds=1 if fast else 201)
        body[-1] += f"\nD = {dim}: {ratio:.3f} (goal <= 1.03)."
    head = ["over the fastest package", "threads", "processor", "clock", "floor", "goal"]
    body.insert(0, table(head, goals) + "\n\n" + NOTE.strip())
    publish("training_step", "Training step", "\n\n".join(body), fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
