"""The inverse: its true error, its cost, and the cost of a gradient through it."""

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
import typer
from nflows.flows import Flow
from torch import Tensor

from pyro_iresnet import Anderson, FixedPoint, IResNetTransform, Newton, cached
from pyro_iresnet.solvers import Solver

from ..harness.inverse_gradient import GRADIENT_BATCH, gradients
from ..harness.measure import interleaved
from ..harness.report import Fast, Threads, Write, publish, table
from ..models.trained import on_checkerboard, on_digits
from ..peers.inversions import CAP, by_iteration, by_normflows, by_solver, invert, loosest

SAMPLES = 10_000
SOLVERS: dict[str, dict[str, Solver]] = {
    "checkerboard": {
        "FixedPoint()": FixedPoint(),
        "Anderson(), the default": Anderson(),
        "Anderson(1)": Anderson(1),
        "Anderson(preconditioner=None)": Anderson(preconditioner=None),
        "Newton()": Newton(),
    },
    "digits": {
        "FixedPoint()": FixedPoint(),
        "Anderson(), the default": Anderson(),
        "Anderson(2)": Anderson(2),
        "Anderson(8)": Anderson(8),
        "Anderson(preconditioner=None)": Anderson(preconditioner=None),
        "Newton(), by KrylovSolve": Newton(),
    },
}
OURS = "Anderson(), the default"
SAME = "Eq. 12 to the same error, each sample by itself"
THEIRS, EQUAL = "normflows, default", "normflows, to the same error"


def inverse_alone(flow: Flow, z: Tensor, solver: Solver) -> Callable[[], object]:
    """Return a call of the blocks' own ``inverse``, with all its checks, as a user makes it."""
    for transform in flow._transform._transforms:
        if isinstance(transform, IResNetTransform):
            transform.block.solver = solver

    @torch.no_grad()
    def call() -> None:
        x = z
        with cached(flow):
            for t in reversed(flow._transform._transforms):
                own = isinstance(t, IResNetTransform)
                x = t.block.inverse(x) if own else t.inverse(x)[0]

    return call


def accuracy(flow: Flow, name: str, dtype: torch.dtype, count: int) -> tuple[list[list[str]], dict]:
    """Measure one flow in one dtype; return the rows, and the figures of the goals."""
    torch.manual_seed(1)
    z = torch.randn(count, flow._distribution._shape[0], dtype=dtype)
    truth = invert(copy.deepcopy(flow).double(), z.double(), by_solver(Anderson(), 1e-13)).x
    flow = copy.deepcopy(flow).to(dtype)
    found = {n: invert(flow, z, by_solver(s)) for n, s in SOLVERS[name].items()}
    target = float(found[OURS].error(truth).max())
    tolerance, plain = loosest(flow, z, truth, by_iteration, target)
    found[SAME] = plain
    settings: dict[str, Callable[[], object]] = {
        n: inverse_alone(copy.deepcopy(flow), z, s) for n, s in SOLVERS[name].items()
    }
    settings[SAME] = partial(invert, flow, z, by_iteration(tolerance))
    found[THEIRS] = invert(flow, z, by_normflows(1e-5))
    settings[THEIRS] = partial(invert, flow, z, by_normflows(1e-5))
    tolerance, found[EQUAL] = loosest(flow, z, truth, by_normflows, target)
    settings[EQUAL] = partial(invert, flow, z, by_normflows(tolerance))
    times = interleaved(settings, rounds=3, inner=1, warmup=1, clock=time.process_time)
    seconds = {n: ms / 1e3 for n, ms in times.items()}
    rows = []
    for n, f in found.items():
        error = f.error(truth)
        figures = [f"{float(error.max()):.1e}", f"{float(error.median()):.1e}"]
        rows.append([n, *figures, f"{f.evaluations:.1f}", str(f.serial), f"{seconds[n]:.2f}"])
    goals = {
        "error": target,
        "relative": float((found[OURS].error(truth) / truth.norm(dim=1)).max()),
        "evaluations": found[OURS].evaluations / plain.evaluations,
        "batch": found[OURS].evaluations / found[EQUAL].evaluations,
        "default": seconds[OURS] / seconds[THEIRS],
        "equal": seconds[OURS] / seconds[EQUAL],
        "reached": float(found[EQUAL].error(truth).max()) / target,
        "plain": float(found[SAME].error(truth).max()) / target,
    }
    return rows, goals


def main(fast: Fast = False, write: Write = False, threads: Threads = 1) -> None:
    """Invert two trained flows by every solver, and differentiate through the inverse."""
    torch.set_num_threads(threads)
    goals: list[list[str]] = []
    body = []
    for recipe in (on_checkerboard, on_digits):
        torch.manual_seed(0)
        made = recipe()
        flow = made.trained(60 if fast else None)
        for dtype, error_goal in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
            kind = str(dtype).removeprefix("torch.")
            rows, g = accuracy(flow, made.name, dtype, 300 if fast else SAMPLES)
            head = ["", "max error", "median", "evaluations", "serial", "seconds"]
            body.append(f"## {made.name}, {kind}\n\n{table(head, rows)}")
            where = f"{made.name}, {kind}"
            goals += [
                [f"{where}: true max error", f"{g['error']:.1e}", f"<= {error_goal:.0e}"],
                [f"{where}: the same over the norm of x", f"{g['relative']:.1e}", ""],
                [
                    f"{where}: evaluations over plain iteration",
                    f"{g['evaluations']:.2f}",
                    "<= 0.35",
                ],
                [f"{where}: the same, of a whole batch", f"{g['batch']:.2f}", ""],
                [f"{where}: seconds over normflows, default", f"{g['default']:.2f}", "<= 1.0"],
                [
                    f"{where}: seconds over normflows, to the same error",
                    f"{g['equal']:.2f}",
                    "<= 0.33",
                ],
            ]
            for name, ratio in (("Eq. 12", g["plain"]), ("normflows", g["reached"])):
                if ratio > 1:
                    told = f"{where}: {name} comes only within a factor of"
                    goals.append([told, f"{ratio:.3g}", ""])
        rows, (time_ratio, memory_ratio) = gradients(recipe, flow)
        head = ["gradient", "ms", "relative error", "MiB"]
        body.append(f"## {made.name}: a gradient through the inverse\n\n{table(head, rows)}")
        goals += [
            [f"{made.name}: gradient, time over unrolled", f"{time_ratio:.2f}", "<= 0.5"],
            [f"{made.name}: gradient, memory over unrolled", f"{memory_ratio:.2f}", "<= 0.2"],
        ]
    note = f"""\
{SAMPLES:,} samples; evaluations of `g` for each of them, all blocks together (a product with a \
Jacobian counts as one, a dense one as D), and `serial` of one that is the slowest in each block. \
Errors are the norm of x less that of a solve to 1e-13 in float64. `{SAME}` is Eq. 12 with samples \
that leave when they are done; normflows runs its own iteration of the whole batch on the same \
trained weights, which are normalised for it (flowcon has the same iteration). `To the same error` \
is the loosest tolerance, of four in each power of ten, whose largest error is that of this \
project's default. Rounding, or the limit of {CAP:,} iterations a block, may end before; then the \
tolerance comes as near as it can, and a row above tells how near: the ratio is over a less exact \
inverse. The flows have default blocks (norm, Lipschitz constant, activation) in the coordinates \
of x, and an ActNorm before each. `unrolled` records as many steps of Eq. 12 in each block as \
bring the batch to the error of the default solver. Seconds are those of the processor, threads: \
{threads}. A gradient is taken in all parameters, with {GRADIENT_BATCH} samples, in float32."""
    body.insert(0, table(["", "measured", "goal"], goals) + f"\n\n{note}")
    publish("inverse", "The inverse", "\n\n".join(body), fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
