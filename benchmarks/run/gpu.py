"""Times on a CUDA device: the training step, a guide's step, and the inverse."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated

import pyro
import pyro.distributions as dist
import torch
import typer
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam

from pyro_iresnet import AutoIResNet, IResNetTransform, cached
from pyro_iresnet.hosts.nflows import IResNetComposite

from ..harness.measure import COMMIT
from ..harness.report import Fast, Write, publish, table

BLOCKS, PARTICLES = 8, 16
# Seconds after which no further round of one step begins.
MOST = 8.0
DIMS, BATCHES = (21, 63, 784), (500, 50_000)
NOTE = """\
Milliseconds of the clock, medians, the device synchronised before each reading. Flows have {blocks}
blocks with all defaults of the package, in float32, untrained. The guide is `AutoIResNet` on Neal's
funnel, 10-D, {particles} particles, in float32 and float64. The inverse is that of all blocks, to
the tolerance of the default solver, inside `cached`.
"""
Device = Annotated[str, typer.Option(help="Device to time; cpu only with --fast, as a check.")]

Step = Callable[[], object]


def flow_of(dim: int, device: str) -> Flow:
    """Make a flow with all defaults."""
    blocks = [IResNetTransform(dim) for _ in range(BLOCKS)]
    return Flow(IResNetComposite(blocks), StandardNormal([dim])).to(device)


def training_step(dim: int, batch: int, device: str) -> Step:
    """Make a step of Adam on the negative log-likelihood."""
    flow = flow_of(dim, device)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (-flow.log_prob(torch.randn(batch, dim, device=device)).mean()).backward()
        optimizer.step()

    return step


def inverse(dim: int, batch: int, device: str) -> Step:
    """Make an inverse of all blocks, without log-determinants."""
    flow = flow_of(dim, device).eval()
    z = torch.randn(batch, dim, device=device)

    @torch.no_grad()
    def call() -> None:
        x = z
        with cached(flow):
            for transform in reversed(flow._transform._transforms):
                x = transform.block.inverse(x)

    return call


def funnel() -> None:
    """Neal's funnel, as in ``benchmarks.targets``, whose packages a machine may lack."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("coordinates", 9):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def guide_step(dtype: torch.dtype, device: str) -> Step:
    """Make an SVI step of the guide."""

    def step() -> None:
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                svi.step()
        finally:
            torch.set_default_dtype(default)

    pyro.clear_param_store()
    guide = AutoIResNet(funnel)
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(funnel, guide, ClippedAdam({"lr": 1e-3}), elbo)
    return step


def median_ms(step: Step, device: str, *, rounds: int, warmup: int) -> float:
    """Return the median milliseconds of the clock, the device synchronised."""

    def synchronised() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    times: list[float] = []
    begin = synchronised()
    while len(times) < warmup + rounds and (not times or time.perf_counter() - begin < MOST):
        start = synchronised()
        step()
        times.append(synchronised() - start)
    return 1e3 * statistics.median(times[min(warmup, len(times) - 1) :])


def machine(device: str) -> str:
    """Describe the card and the versions in one line."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if device == "cpu":
        return f"the processor, as a check of the script; {versions}"
    card = torch.cuda.get_device_properties(device)
    size = f"{card.total_memory / 2**30:.0f} GiB"
    return f"{card.name}, {size}; {versions}, CUDA {torch.version.cuda}"


def measured(steps: Mapping[str, Callable[[], Step]], device: str, fast: bool) -> list[list[str]]:
    """Time steps, each made just before its turn and freed after it."""
    rounds, warmup = (1, 1) if fast else (20, 5)
    rows = []
    for name, make in steps.items():
        try:
            cell = f"{median_ms(make(), device, rounds=rounds, warmup=warmup):.2f}"
        except torch.cuda.OutOfMemoryError:
            cell = "out of memory"
        rows.append([name, cell])
        print(*rows[-1], flush=True)
    return rows


def sections(batches: tuple[int, ...]) -> dict[str, dict[str, Callable[[str], Step]]]:
    """Return the makers of the steps, by the heading of their table."""
    cases = [(dim, batch) for dim in DIMS for batch in batches]
    names = [f"D = {dim}, batch {batch:,}" for dim, batch in cases]
    return {
        "Training step": {n: partial(training_step, *c) for n, c in zip(names, cases, strict=True)},
        "Inverse": {n: partial(inverse, *c) for n, c in zip(names, cases, strict=True)},
        "Step of a guide": {
            str(dtype): partial(guide_step, dtype) for dtype in (torch.float32, torch.float64)
        },
    }


def main(fast: Fast = False, write: Write = False, device: Device = "cuda") -> None:
    """Time the training step, the inverse, and a guide's step."""
    if device == "cpu" and not fast:
        print("The processor is timed by the other scripts. Add --fast to check this script.")
        raise typer.Exit(1)
    if device != "cpu" and not torch.cuda.is_available():
        print("No CUDA device was found, so nothing was timed.")
        raise typer.Exit(1)
    torch.manual_seed(0)
    body = []
    for head, makers in sections((20,) if fast else BATCHES).items():
        steps = {name: partial(make, device) for name, make in makers.items()}
        body.append(f"## {head}\n\n{table(['', 'ms'], measured(steps, device, fast))}")
    note = NOTE.format(blocks=BLOCKS, particles=PARTICLES).strip()
    page = "\n\n".join([note, *body])
    publish("gpu", "On a GPU", page, fast=fast, write=write, origin=f"{COMMIT}: {machine(device)}")


if __name__ == "__main__":
    typer.run(main)
