"""Training on a toy density: one run, read at a number of steps and of seconds."""

import base64
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..peers.contenders import Contender
from ..targets.toy_data import Toy

T = TypeVar("T")

BATCH, WARMUP, CLIP = 256, 100, 10.0
# Enough points for a curve.
CURVE_POINTS = 2000
# Rows in one evaluation.
CHUNK = 5000
EDGE, GRID = 4.5, 96


@dataclass(frozen=True)
class Plan:
    """Length of a training, and the number of points for the score.

    Arguments:
        steps: steps of training, for the comparison at equal steps.
        seconds: seconds of the processor, for the comparison at equal time.
        points: number of points for the score, the same for every flow.
        limit: seconds of the processor that end a training before its steps are done.
    """

    steps: int
    seconds: float
    points: int
    limit: float = math.inf


class Run(TypedDict):
    """Result of a run, as JSON can hold it; infinite nats for a run that failed.

    Arguments:
        parameters: number of parameters.
        rate: the learning rate.
        steps: nats after the plan's steps, or after its limit.
        clock: nats after the plan's seconds.
        curve: step, seconds, and nats on a few of the points, along the way.
        grid: the density at ``steps``, as :func:`seen_as` reads it.
    """

    parameters: int
    rate: float
    steps: float
    clock: float
    curve: list[tuple[int, float, float]]
    grid: str


def held_out(toy: Toy, count: int) -> Tensor:
    """Draw points that no training sees, the same for every flow."""
    with torch.random.fork_rng():
        torch.manual_seed(1000)
        return toy.sample(count)


class Average:
    """Mean of the parameters over about the last tenth of the steps, at any step.

    The mean takes out the noise of a constant learning rate.
    """

    def __init__(self, contender: Contender) -> None:
        self.contender, self.count = contender, 0
        self.held = list(contender.module.parameters())
        self.means = [p.detach().clone() for p in self.held]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters of one more step."""
        self.count += 1
        torch._foreach_lerp_(self.means, self.held, 1 / (1 + 0.1 * self.count))

    @torch.no_grad()
    def inside(self, score: Callable[[], T]) -> T:
        """Return the ``score()`` of the averaged flow, in eval mode."""
        module = self.contender.module
        state = {k: v.clone() for k, v in module.state_dict().items()}
        for parameter, mean in zip(self.held, self.means, strict=True):
            parameter.copy_(mean)
        self.contender.after_step()
        module.eval()
        try:
            return score()
        finally:
            module.train()
            module.load_state_dict(state)


def train(
    toy: Toy, make: Callable[[], Contender], rate: float, seed: int, plan: Plan, *, name: str
) -> Run:
    """Train with Adam at a constant rate until the steps and the seconds are used up, or the limit.

    Arguments:
        toy: gives fresh points for each step.
        make: makes the flow, after the seed is set.
        rate: the learning rate, reached over the first ``WARMUP`` steps.
        seed: the seed of the parameters and the points.
        plan: the length of the training.
        name: the text of the progress bar.
    """
    torch.manual_seed(seed)
    contender = make()
    points = held_out(toy, plan.points)
    with torch.no_grad():
        contender.log_prob(toy.sample(1000))
    average = Average(contender)
    held = list(contender.module.parameters())
    optimizer = torch.optim.Adam(held, rate, fused=True)
    # Infinite until they are reached.
    nats = {"steps": math.inf, "clock": math.inf}
    curve: list[tuple[int, float, float]] = []
    grid, step, spent = "", 0, 0.0
    with tqdm(total=plan.steps, desc=name, unit="step", mininterval=10) as progress:
        while (step < plan.steps or spent < plan.seconds) and spent < plan.limit:
            start, before = time.process_time(), spent
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / WARMUP)
            loss = -contender.log_prob(toy.sample(BATCH)).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(held, CLIP)
            optimizer.step()
            contender.after_step()
            average.update()
            spent += time.process_time() - start
            step += 1
            progress.update()
            if not loss.isfinite():
                break
            if step % max(1, plan.steps // 10) == 0:
                few = points[:CURVE_POINTS]
                curve.append(
                    (step, spent, average.inside(lambda x=few: -mean_log_prob(contender, x)))
                )
            if step == plan.steps or spent >= plan.limit:
                nats["steps"] = average.inside(lambda: -mean_log_prob(contender, points))
                grid = average.inside(lambda: drawn(contender.log_prob))
            if before < plan.seconds <= spent:
                nats["clock"] = average.inside(lambda: -mean_log_prob(contender, points))
    return {"parameters": contender.parameters, "rate": rate, **nats, "curve": curve, "grid": grid}


def mean_log_prob(contender: Contender, x: Tensor) -> float:
    """Return the mean over the rows of ``x``, nats; minus infinity for NaN or infinity."""
    total = sum(contender.log_prob(part).sum().double().item() for part in x.split(CHUNK))
    return total / len(x) if math.isfinite(total) else -math.inf


def drawn(log_prob: Callable[[Tensor], Tensor]) -> str:
    """Encode a density on a square grid around the origin, a byte for each node."""
    line = torch.linspace(-EDGE, EDGE, GRID)
    nodes = torch.cartesian_prod(line, line)
    density = torch.cat([log_prob(part).double().exp() for part in nodes.split(CHUNK)])
    # Half a percent of the nodes may be brighter than white: one spike does not hide the rest.
    levels = (density / density.quantile(0.995)).clamp(0, 1) * 255
    shades = bytes(levels.round().to(torch.uint8).tolist())
    return base64.b64encode(zlib.compress(shades, 9)).decode()


def seen_as(grid: str) -> Tensor:
    """Decode a grid of :func:`drawn`, rows from the bottom up, in [0, 1]."""
    shades = zlib.decompress(base64.b64decode(grid))
    levels = torch.tensor(list(shades), dtype=torch.float32)
    return levels.reshape(GRID, GRID).T / 255
