"""The inverse: its true error, its cost, and the cost of a gradient through it."""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flowcon.transforms
import torch
import typer
from nflows.flows import Flow
from normflows.flows.residual import iResBlock as NormflowsBlock
from torch import Tensor, nn

from pyro_iresnet import (
    Anderson,
    FixedPoint,
    IResNetTransform,
    Newton,
    NoFit,
    Solver,
    cached,
    solve,
)
from pyro_iresnet.caching import acting_of
from pyro_iresnet.linearization import Linearizable

from .measure import interleaved, peak_memory
from .report import Fast, Threads, Write, publish, table
from .trained import Recipe, on_checkerboard, on_digits

SAMPLES = 10_000
GRADIENT_BATCH = 256
# A call of a block's inverse on y: x, the evaluations of g of each sample, and of the slowest.
Invert = Callable[[IResNetTransform, Linearizable, Tensor], tuple[Tensor, Tensor]]
SOLVERS: dict[str, dict[str, Solver]] = {
    "checkerboard": {
        "FixedPoint()": FixedPoint(),
        "Anderson(), the default": Anderson(),
        "Anderson(1)": Anderson(1),
        "Anderson(preconditioner=NoFit())": Anderson(preconditioner=NoFit()),
        "Newton()": Newton(),
    },
    "digits": {
        "FixedPoint()": FixedPoint(),
        "Anderson(), the default": Anderson(),
        "Anderson(2)": Anderson(2),
        "Anderson(8)": Anderson(8),
        "Anderson(preconditioner=NoFit())": Anderson(preconditioner=NoFit()),
        "Newton(), by KrylovSolve": Newton(),
    },
}
OURS = "Anderson(), the default"
SAME = "Eq. 12 to the same error, each sample by itself"


@dataclass(frozen=True)
class Found:
    """What an inversion of the whole flow gave.

    Arguments:
        x: the values.
        evaluations: of ``g`` for each sample, all blocks together, in the mean.
        serial: the same for a sample that is the slowest in every block.
    """

    x: Tensor
    evaluations: float
    serial: int

    def error(self, truth: Tensor) -> Tensor:
        return (self.x.double() - truth).norm(dim=1)


@torch.no_grad()
def invert(flow: Flow, z: Tensor, block: Invert) -> Found:
    """Invert a flow with ``block`` for each of its residual blocks."""
    x, total, serial = z, torch.zeros(len(z)), 0
    with cached(flow):
        for transform in reversed(flow._transform._transforms):
            if isinstance(transform, IResNetTransform):
                x, count = block(transform, acting_of(transform.block.contraction), x)
                total += count
                serial += int(count.max())
            else:
                x = transform.inverse(x)[0]
    return Found(x, float(total.mean()), serial)


def by_solver(solver: Solver, rtol: float | None = None) -> Invert:
    """This project's."""

    def block(transform: IResNetTransform, g: Linearizable, y: Tensor) -> tuple[Tensor, Tensor]:
        solution = solve(transform.block.contraction, y, solver, rtol=rtol, acting=g)
        return solution.value, solution.stats.evaluations

    return block


def by_iteration(tolerance: float) -> Invert:
    """``x <- y - g(x)`` until a step is below the tolerance, for each sample by itself.

    Or until its steps have stopped shrinking, ten times in a row: the end of the arithmetic.
    """

    def block(transform: IResNetTransform, g: Linearizable, y: Tensor) -> tuple[Tensor, Tensor]:
        x, count = y.clone(), torch.zeros(len(y))
        rows = torch.arange(len(y))
        least, age = torch.full((len(y),), torch.inf, dtype=y.dtype), torch.zeros(len(y))
        while len(rows):
            new = y[rows] - g(x[rows])
            step = (new - x[rows]).norm(dim=1)
            x[rows] = new
            count[rows] += 1
            age = torch.where(step < least, 0, age + 1)
            least = torch.minimum(step, least)
            moves = (step > tolerance) & (age < 10)
            rows, least, age = rows[moves], least[moves], age[moves]
        return x, count

    return block


class _Counted(nn.Module):
    """``g`` with its acting weights, as a network of another package, which counts its calls."""

    def __init__(self, g: Linearizable) -> None:
        super().__init__()
        self.g, self.calls = g, 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.g(x)


def by_package(wrap: Callable[[nn.Module], nn.Module], tolerance: float) -> Invert:
    """The iteration of a published package, on this project's trained network."""

    def block(transform: IResNetTransform, g: Linearizable, y: Tensor) -> tuple[Tensor, Tensor]:
        net = _Counted(g)
        inverse = wrap(net)._inverse_fixed_point
        x = inverse(y, atol=tolerance, rtol=tolerance)
        return x, torch.full((len(y),), float(net.calls))

    return block


PACKAGES = {"normflows": NormflowsBlock, "flowcon": flowcon.transforms.iResBlock}


def loosest(flow: Flow, z: Tensor, truth: Tensor, make: Callable[[float], Invert], error: float):
    """The loosest tolerance of a grid whose largest error is at most ``error``, and what it gave.

    In float32 none may reach it: then the one that comes nearest.
    """
    tried = {}
    for k in range(10, 70):
        tolerance = 10.0 ** (-k / 2)
        found = invert(flow, z, make(tolerance))
        worst = float(found.error(truth).max())
        tried[worst] = tolerance, found
        if worst <= error:
            return tolerance, found
        if len(tried) > 3 and worst > 0.9 * min(w for w in tried if w != worst):
            break
    return tried[min(tried)]


def inverse_alone(flow: Flow, z: Tensor, solver: Solver) -> Callable[[], object]:
    """As a user calls it: the blocks' own ``inverse``, with all that belongs to it."""
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
    """The rows of one flow in one dtype, and the figures of the goals."""
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
    for package, wrap in PACKAGES.items():
        make = partial(by_package, wrap)
        found[f"{package}, default"] = invert(flow, z, make(1e-5))
        settings[f"{package}, default"] = partial(invert, flow, z, make(1e-5))
        # In float32 a tolerance that is out of reach costs a thousand iterations a block.
        tolerance, same = loosest(flow, z, truth, make, target)
        found[f"{package}, to the same error"] = same
        settings[f"{package}, to the same error"] = partial(invert, flow, z, make(tolerance))
    seconds = {n: ms / 1e3 for n, ms in interleaved(settings, rounds=3, inner=1, warmup=1).items()}
    rows = []
    for n, f in found.items():
        error = f.error(truth)
        figures = [f"{float(error.max()):.1e}", f"{float(error.median()):.1e}"]
        rows.append([n, *figures, f"{f.evaluations:.1f}", str(f.serial), f"{seconds[n]:.2f}"])
    goals = {
        "error": target,
        "relative": float((found[OURS].error(truth) / truth.norm(dim=1)).max()),
        "evaluations": found[OURS].evaluations / plain.evaluations,
        "batch": found[OURS].evaluations / found["normflows, to the same error"].evaluations,
        "default": seconds[OURS] / seconds["normflows, default"],
        "equal": seconds[OURS] / seconds["normflows, to the same error"],
        "reached": float(found["normflows, to the same error"].error(truth).max()) / target,
        "plain": float(found[SAME].error(truth).max()) / target,
    }
    return rows, goals


def unrolled(flow: Flow, z: Tensor, steps: list[int]) -> Tensor:
    """The inverse by so many recorded fixed-point steps in each block."""
    x, remaining = z, list(steps)
    for transform in reversed(flow._transform._transforms):
        if isinstance(transform, IResNetTransform):
            g, y = acting_of(transform.block.contraction), x
            for _ in range(remaining.pop(0)):
                x = y - g(x)
        else:
            x = transform.inverse(x)[0]
    return x


def implicit(flow: Flow, z: Tensor) -> Tensor:
    """The inverse with its implicit gradient."""
    x = z
    for t in reversed(flow._transform._transforms):
        x = t.block.inverse(x) if isinstance(t, IResNetTransform) else t.inverse(x)[0]
    return x


def gradient(flow: Flow, z: Tensor, inverse: Callable[[Flow, Tensor], Tensor]) -> Tensor:
    """The gradient of ``||x||^2 / 2``, in the mean, in all parameters."""
    with cached(flow):
        loss = inverse(flow, z).square().sum(-1).mean() / 2
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])
    flow.zero_grad()
    return found


def steps_to(flow: Flow, z: Tensor, truth: Tensor, error: float) -> list[int]:
    """The fixed-point steps of each block after which the whole batch is as near to the truth."""
    counts: list[int] = []

    def counting(tolerance: float) -> Invert:
        counts.clear()
        inner = by_package(NormflowsBlock, tolerance)

        def block(transform: IResNetTransform, g: Linearizable, y: Tensor):
            x, count = inner(transform, g, y)
            counts.append(int(count.max()))
            return x, count

        return block

    loosest(flow, z, truth, counting, error)
    return counts


def one_gradient(recipe: Callable[[], Recipe], path: str, steps: list[int] | None) -> None:
    """A gradient in a process of its own, for its peak of memory."""
    torch.set_num_threads(1)
    flow = recipe().untrained()
    flow.load_state_dict(torch.load(path))
    flow.eval()
    torch.manual_seed(2)
    z = torch.randn(GRADIENT_BATCH, flow._distribution._shape[0])
    gradient(flow, z, implicit if steps is None else partial(unrolled, steps=steps))


def gradients(recipe: Callable[[], Recipe], flow: Flow) -> tuple[list[list[str]], list[float]]:
    """Time, error and memory of a gradient through the inverse, and the ratios."""
    torch.manual_seed(2)
    z = torch.randn(GRADIENT_BATCH, flow._distribution._shape[0])
    exact = copy.deepcopy(flow).double()
    for transform in exact._transform._transforms:
        if isinstance(transform, IResNetTransform):
            transform.block.solver = Anderson(rtol=1e-13)
    truth = invert(exact, z.double(), by_solver(Anderson(), 1e-13)).x
    error = float(invert(flow, z, by_solver(Anderson())).error(truth).max())
    steps = steps_to(flow, z, truth, error)
    ways = {"implicit": implicit, "unrolled": partial(unrolled, steps=steps)}
    right = gradient(exact, z.double(), implicit)
    ms = interleaved(
        {n: partial(gradient, flow, z, way) for n, way in ways.items()}, rounds=7, inner=1
    )
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save(flow.state_dict(), file.name)
        peaks = {
            n: peak_memory(one_gradient, recipe, file.name, None if n == "implicit" else steps)
            for n in ways
        }
    rows = []
    for n, way in ways.items():
        off = (gradient(flow, z, way).double() - right).norm() / right.norm()
        rows.append([n, f"{ms[n]:.0f}", f"{float(off):.1e}", f"{peaks[n]:.0f}"])
    return rows, [ms["implicit"] / ms["unrolled"], peaks["implicit"] / peaks["unrolled"]]


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
            body.append(f"### {made.name}, {kind}\n\n{table(head, rows)}")
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
                [f"{where}: the same, to the same error", f"{g['equal']:.2f}", "<= 0.33"],
            ]
            for name, ratio in (("Eq. 12", g["plain"]), ("normflows", g["reached"])):
                if ratio > 1:
                    goals.append([f"{where}: {name} comes within a factor of", f"{ratio:.1f}", ""])
        rows, (time_ratio, memory_ratio) = gradients(recipe, flow)
        head = ["gradient", "ms", "relative error", "MiB"]
        body.append(f"### {made.name}: a gradient through the inverse\n\n{table(head, rows)}")
        goals += [
            [f"{made.name}: gradient, time over unrolled", f"{time_ratio:.2f}", "<= 0.5"],
            [f"{made.name}: gradient, memory over unrolled", f"{memory_ratio:.2f}", "<= 0.2"],
        ]
    note = (
        f"{SAMPLES:,} samples; evaluations of `g` for each of them, all blocks together (a "
        "product with a Jacobian counts as one, a dense one as D), and `serial` of one that is the "
        "slowest in each block. Errors are the norm of x less that of a solve to 1e-13 in float64. "
        "`Plain` is Eq. 12 with samples that leave when they are done; normflows and flowcon run "
        "their own iteration of it, of the whole batch, on the same trained weights, which are "
        "normalised for them. `To the same error` is the loosest tolerance whose largest error is "
        "that of this project's default, or where float32 ends before, as near as it comes. A "
        f"gradient is taken in all parameters, with {GRADIENT_BATCH} samples, in float32."
    )
    body.insert(0, table(["", "measured", "goal"], goals) + f"\n\n{note}")
    publish("inverse", "The inverse", "\n\n".join(body), fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
