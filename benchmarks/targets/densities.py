"""Densities to estimate: two in the plane, and the digits."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.distributions import TransformedDistribution
from torch import Tensor, nn
from tqdm import trange

from pyro_iresnet.demo.data import checkerboard, digits
from pyro_iresnet.hosts.pyro import Stack

from .toy_data import two_spirals

BATCH = 256
VALIDATION = 150


@dataclass(frozen=True)
class Density:
    """Data, and the training of a flow on them.

    Arguments:
        name: the name in the report.
        dim: the number of coordinates.
        rate: the peak of the one-cycle learning rate.
        batch: draws a batch of a given size.
        validation: draws points that a recipe may see, apart from the batches; None for none.
        held_out: draws the points of the score.
    """

    name: str
    dim: int
    rate: float
    batch: Callable[[int], Tensor]
    validation: Callable[[], Tensor] | None
    held_out: Callable[[], Tensor]


@dataclass(frozen=True)
class Recipe:
    """Means against overfitting.

    Arguments:
        decay: the weight decay of AdamW.
        average: the decay of a moving average of the parameters, from a tenth of the steps on; 0
            for none.
        anneal: True if the Lipschitz constant grows from a half over the first half of training.
        stop: True to keep the parameters with the best score on the validation rows.
    """

    decay: float = 0.0
    average: float = 0.0
    anneal: bool = False
    stop: bool = False


@dataclass(frozen=True)
class Score:
    """Result of a run.

    Arguments:
        nats: held-out negative log-likelihood.
        train: negative log-likelihood of the last training batches.
        seconds: seconds of the processor.
        parameters: number of parameters.
    """

    nats: float
    train: float
    seconds: float
    parameters: int


def densities() -> dict[str, Density]:
    """Return the densities by name."""
    data = digits()
    kept = data.train[:-VALIDATION]

    def batch(rows: Tensor) -> Callable[[int], Tensor]:
        return lambda size: data.encode(rows[torch.randint(0, len(rows), (size,))])

    def drawn(rows: Tensor) -> Callable[[], Tensor]:
        return lambda: torch.cat([data.encode(rows) for _ in range(10)])

    found = (
        Density("checkerboard", 2, 2e-2, checkerboard, None, lambda: checkerboard(100_000)),
        Density("2 spirals", 2, 2e-2, two_spirals, None, lambda: two_spirals(100_000)),
        Density("digits", 64, 2e-3, batch(data.train), None, drawn(data.test)),
        Density(
            "digits, 1,350 rows",
            64,
            2e-3,
            batch(kept),
            drawn(data.train[-VALIDATION:]),
            drawn(data.test),
        ),
    )
    return {d.name: d for d in found}


def trained(
    density: Density,
    stack: Callable[[int], Stack],
    *,
    steps: int,
    seed: int,
    name: str,
    recipe: Recipe = Recipe(),
) -> Score:
    """Train a flow from data to noise with AdamW under a one-cycle rate; return the score."""
    torch.manual_seed(seed)
    flow = stack(density.dim)
    base = dist.Normal(torch.zeros(density.dim), torch.ones(density.dim)).to_event(1)

    def nats(x: Tensor) -> Tensor:
        return -TransformedDistribution(base, [flow.inv]).log_prob(x).mean()

    with torch.no_grad():
        nats(density.batch(1000))
    held = list(flow.parameters())
    optimizer = torch.optim.AdamW(held, density.rate, weight_decay=recipe.decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, density.rate, max(steps, 4))
    course = _Course(flow, density, recipe, steps, nats)
    losses, start = [], time.process_time()
    for i in trange(steps, desc=name, unit="step", mininterval=5):
        course.before(i)
        loss = nats(density.batch(BATCH))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(held, 10.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        course.after(i)
    seconds = time.process_time() - start
    course.end()
    flow.eval()
    torch.manual_seed(1000)
    score = _mean(nats, density.held_out())
    last = losses[-100:]
    return Score(score, sum(last) / len(last), seconds, sum(p.numel() for p in held))


class _Course:
    """Course of a training under a recipe."""

    def __init__(
        self,
        flow: Stack,
        density: Density,
        recipe: Recipe,
        steps: int,
        nats: Callable[[Tensor], Tensor],
    ) -> None:
        self.flow, self.density, self.recipe, self.steps = flow, density, recipe, steps
        self.nats = nats
        self.best, self.best_nats = None, math.inf
        self.average = None
        self.bounds = [(m, m.lipschitz) for m in flow.modules() if hasattr(m, "lipschitz")]

    def before(self, step: int) -> None:
        if self.recipe.anneal:
            done = min(1.0, 2 * step / self.steps)
            for module, bound in self.bounds:
                module.lipschitz = 0.5 * bound * (1 + done)

    def after(self, step: int) -> None:
        if self.recipe.average and step >= self.steps // 10:
            state = {k: v.detach().clone() for k, v in self.flow.state_dict().items()}
            if self.average is None:
                self.average = state
            for key, value in state.items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - self.recipe.average)
        if self.recipe.stop and self.density.validation and (step + 1) % (self.steps // 20) == 0:
            self.flow.eval()
            nats = _mean(self.nats, self.density.validation())
            self.flow.train()
            if nats < self.best_nats:
                self.best_nats = nats
                self.best = {k: v.detach().clone() for k, v in self.flow.state_dict().items()}

    def end(self) -> None:
        kept = self.best if self.best is not None else self.average
        if kept is not None:
            self.flow.load_state_dict(kept)


@torch.no_grad()
def _mean(nats: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    parts = rows.split(2000)
    return float(sum(nats(x) * len(x) for x in parts)) / len(rows)
