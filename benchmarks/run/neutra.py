"""NUTS on Neal's funnel, plain and through a trained guide (NeuTra), and one gradient of it."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import arviz
import pyro
import torch
import typer
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide import AutoGuide, AutoNormalizingFlow, init_to_median
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import NeuTraReparam
from pyro.ops.integrator import potential_grad
from torch import Tensor

from pyro_iresnet import AutoIResNet, cached, iresnet_stack

from ..harness.report import Fast, Kept, Threads, Write, publish, table
from ..harness.runs import Runs
from ..harness.steps import timed
from ..targets.posteriors import PARTICLES, banana, funnel, train

DRAWS, WARMUP, STEPS, SEEDS = 1000, 500, 3000, 3
# Defaults were chosen on seeds 0, 1, 10 and 11.
FIRST = 2
# The worst seed's ESS for 1,000 gradients.
LEAST = 30
# Blocks of the guide whose potential is timed, and milliseconds of one gradient.
BLOCKS, GOAL = 8, 3.0
PLAIN, NEUTRA = "NUTS", "NUTS through AutoIResNet"
NOTE = (
    f"Neal's funnel, ten dimensions; {DRAWS:,} draws after {WARMUP} of warm-up, Pyro's defaults, "
    "float64. Gradients are counted as runs of the model, warm-up included; ESS is the bulk ESS of "
    "ArviZ, the smallest of the ten coordinates. The standard deviation of v is 3. Seconds of the "
    f"processor, without those of training the guide ({STEPS:,} steps, {PARTICLES} particles)."
)


@dataclass(frozen=True)
class Sampled:
    """Result of a chain.

    Arguments:
        ess: effective sample size, the smallest of the coordinates.
        gradients: gradients of the log-density, warm-up included.
        divergences: divergences among the draws.
        sd_of_v: standard deviation of v over the draws.
        seconds: seconds of the processor.
    """

    ess: float
    gradients: int
    divergences: int
    sd_of_v: float
    seconds: float


class Counted:
    """Model that counts its runs."""

    def __init__(self, model: Callable[[], None]) -> None:
        self.model, self.count = model, 0

    def __call__(self) -> None:
        self.count += 1
        self.model()


def guide_of(seed: int, steps: int) -> AutoIResNet:
    """Fit a guide to the funnel; return the guide in eval mode."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    guide = AutoIResNet(funnel, init_loc_fn=init_to_median)
    train(funnel, guide, steps=steps, name=f"guide {seed}")
    return guide.eval()


def sampled(name: str, seed: int, *, draws: int, warmup: int, steps: int) -> Sampled:
    """Run one chain."""
    counted = Counted(funnel)
    guide = guide_of(seed, steps) if name == NEUTRA else None
    neutra = None if guide is None else NeuTraReparam(guide)
    model: Any = counted if neutra is None else neutra.reparam(counted)
    torch.manual_seed(100 + seed)
    chain = MCMC(NUTS(model), num_samples=draws, warmup_steps=warmup, disable_progbar=True)
    start = time.process_time()
    with nullcontext() if guide is None else cached(guide):
        chain.run()
    seconds = time.process_time() - start
    found: dict[str, Tensor] = chain.get_samples()
    if neutra is not None:
        with torch.no_grad():
            found = neutra.transform_sample(found["v_shared_latent"][:, None])
    coordinates = torch.cat([found["v"].reshape(draws, 1), found["x"].reshape(draws, 9)], dim=1)
    values = coordinates.detach().numpy()
    return Sampled(
        ess=min(float(arviz.ess(values[None, :, i])) for i in range(10)),
        gradients=counted.count,
        divergences=len(chain.diagnostics()["divergences"]["chain 0"]),
        sd_of_v=float(coordinates[:, 0].std()),
        seconds=seconds,
    )


GUIDES: dict[str, Callable[[], AutoGuide]] = {
    "AutoIResNet": lambda: AutoIResNet(banana, BLOCKS),
    "AutoNormalizingFlow of an iresnet_stack": lambda: AutoNormalizingFlow(
        banana, partial(iresnet_stack, num_blocks=BLOCKS)
    ),
}


def gradient_of(make: Callable[[], AutoGuide], steps: int) -> tuple[Callable[[], None], AutoGuide]:
    """Make a gradient of NeuTra's potential at one fresh point, and its trained guide."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = make()
    train(banana, guide, steps=steps, name="guide of the banana")
    guide.eval()
    start, potential, _, _ = initialize_model(NeuTraReparam(guide).reparam(banana))

    def gradient() -> None:
        # A transform would remember its evaluation at the same point.
        potential_grad(potential, {name: torch.randn_like(z) for name, z in start.items()})

    return gradient, guide


def of_one_gradient(*, steps: int, rounds: int) -> str:
    """Time one gradient of the potential, plain and inside ``cached``; return the section."""
    rows = []
    for name, make in GUIDES.items():
        gradient, guide = gradient_of(make, steps)

        def ten(gradient: Callable[[], None] = gradient) -> None:
            for _ in range(10):
                gradient()

        def inside(ten: Callable[[], None] = ten, guide: AutoGuide = guide) -> None:
            with cached(guide):
                ten()

        found = timed({"plain": ten, "inside": inside}, rounds=rounds, counted=1)
        plain = found["plain"]
        ms = (plain.processor / 10, found["inside"].processor / 10, plain.floor / 10)
        rows.append([name, *(f"{v:.2f}" for v in ms), f"<= {GOAL}"])
    head = ["", "plain", "ten inside `cached`", "floor of plain", "goal of plain"]
    return (
        f"## One gradient of the potential\n\n{table(head, rows)}\n\nThe banana, 2-D, {BLOCKS} "
        "blocks, one fresh point each, guides trained and in eval mode. Milliseconds of the "
        "processor, medians. The floor is the time that the matrix products alone would take at "
        "the rate of a large product."
    )


def main(
    fast: Fast = False,
    write: Write = False,
    threads: Threads = 1,
    log: Kept = None,
) -> None:
    """Run NUTS with and without NeuTra."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float64)
    runs: Runs[dict[str, float]] = Runs(log)
    draws, warmup, steps = (50, 50, 50) if fast else (DRAWS, WARMUP, STEPS)
    rows, middle, whole = [], {}, {}
    for name in (PLAIN, NEUTRA):
        found = []
        for seed in range(FIRST, FIRST + (1 if fast else SEEDS)):
            chain = partial(sampled, name, seed, draws=draws, warmup=warmup, steps=steps)
            found.append(runs.get(f"{name} / {draws} / {seed}", lambda c=chain: asdict(c())))
        for seed, f in enumerate(found, FIRST):
            rate = 1000 * f["ess"] / f["gradients"]
            cells = [f"{f['ess']:.0f}", f"{f['gradients']:,.0f}", f"{rate:.2f}"]
            rest = [f"{f['divergences']:.0f}", f"{f['sd_of_v']:.2f}", f"{f['seconds']:.0f}"]
            rows.append([name, str(seed), *cells, *rest])
        each = [f["ess"] / f["gradients"] for f in found]
        middle[name], worst = median(each), 1000 * min(each)
        # A gradient of the ELBO takes one of the model for each particle.
        training = steps * PARTICLES if name == NEUTRA else 0
        whole[name] = [1000 * f["ess"] / (f["gradients"] + training) for f in found]
    head = ["", "seed", "ESS", "gradients", "ESS / 1,000 gradients", "divergences", "sd of v", "s"]
    ratio = middle[NEUTRA] / middle[PLAIN]
    each_seed = ", ".join(f"{ess:.1f}" for ess in whole[NEUTRA])
    says = (
        f"Median ESS for each gradient, over that of plain NUTS: {ratio:.1f}. Worst seed of "
        f"{NEUTRA}: {worst:.1f} ESS for 1,000 gradients (goal >= {LEAST}). With the {training:,} "
        f"gradients of the model that train the guide: {each_seed} ESS for 1,000, "
        f"{median(whole[NEUTRA]) / median(whole[PLAIN]):.0f} times plain NUTS."
    )
    one = of_one_gradient(steps=20 if fast else 500, rounds=3 if fast else 21)
    body = f"{table(head, rows)}\n\n{says}\n\n{NOTE}\n\n{one}"
    publish("neutra", "NeuTra", body, fast=fast, write=write, origin=runs.origin())


if __name__ == "__main__":
    typer.run(main)
