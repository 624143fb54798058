"""Runs of the comparison on toy densities: learning rates, seeds, and nats above the entropy."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Literal

from ..peers.contenders import Contender
from ..peers.toy_flows import activations, flows, layers_between
from ..targets.toy_data import Toy, toys
from .runs import Runs
from .toy_training import Plan, Run, held_out, train

RATES = (2e-3, 8e-3, 2e-2)
OURS, SPLINE = "i-ResNet", "spline flow"
# The flows of several seeds. The others have one: they are far behind, and a seed of FFJORD takes
# hours.
SEVERAL = (OURS, SPLINE, "Real NVP")
# The choice of a learning rate for a shorter plan: seconds of the processor that end a run, and the
# most points of its score.
RATE_SECONDS, RATE_POINTS = 60.0, 10_000
# Seed 0 chooses the learning rates, and defaults were chosen on seeds 0 and 1.
FIRST = 2
# Stands for a run that was not made.
MISSING: Run = {
    "parameters": 0,
    "rate": 0.0,
    "steps": math.nan,
    "clock": math.nan,
    "curve": [],
    "grid": "",
}

Protocol = Literal["steps", "clock"]


def every_flow() -> dict[str, Callable[[], Contender]]:
    """Return the makers of the flows of all tables, by name."""
    return flows() | activations() | layers_between()


def bare(run: Run) -> Run:
    """Return a run without its picture, which no page shows."""
    return {**run, "grid": ""}


@dataclass(frozen=True)
class Study:
    """Runs of the comparison.

    Arguments:
        runs: the finished runs.
        entropies: the entropies of the data, perhaps in the same file.
        plan: the plan of each run.
        rate_steps: the steps of the runs that choose a learning rate.
        seeds: the number of seeds of the flows in ``SEVERAL``.
        data: the names of the data sets.
    """

    runs: Runs[Run]
    entropies: Runs[float]
    plan: Plan
    rate_steps: int
    seeds: int
    data: tuple[str, ...]

    def rate_name(self, data: str, flow: str, rate: float) -> str:
        """Return the name of a run that chooses the learning rate."""
        return f"rate / {data} / {flow} / {rate:g} / {self.rate_steps}"

    def rate(self, data: str, flow: str) -> float:
        """Choose the best learning rate of three for a flow on a data set, on seed 0."""
        toy, points = toys()[data], min(self.plan.points, RATE_POINTS)
        limit = RATE_SECONDS if self.rate_steps < self.plan.steps else math.inf
        plan = Plan(self.rate_steps, 0.0, points, limit)

        def nats(rate: float) -> float:
            name = self.rate_name(data, flow, rate)
            make = every_flow()[flow]
            run = self.runs.get(name, lambda: bare(train(toy, make, rate, 0, plan, name=name)))
            return math.inf if run is MISSING else run["steps"]

        return min(RATES, key=nats)

    def entropy(self, toy: Toy) -> float:
        """Return minus the mean of the exact log-density over the points of the score."""
        name = f"entropy / {toy.name} / {self.plan.points}"
        return self.entropies.get(
            name, lambda: -toy.log_prob(held_out(toy, self.plan.points)).mean().item()
        )

    def name(self, data: str, flow: str, seed: int) -> str:
        """Return the name of a run at the best learning rate."""
        rate, plan = self.rate(data, flow), self.plan
        return f"{data} / {flow} / {rate:g} / {seed} / {plan.steps} / {plan.seconds:g}"

    def run(self, data: str, flow: str, seed: int) -> Run:
        """Train and score one flow."""
        toy, make, rate = toys()[data], every_flow()[flow], self.rate(data, flow)
        name = self.name(data, flow, seed)

        def trained() -> Run:
            found = train(toy, make, rate, seed, self.plan, name=name)
            return found if seed == FIRST else bare(found)

        return self.runs.get(name, trained)

    def seeds_of(self, flow: str) -> range:
        """Return the seeds of a flow."""
        return range(FIRST, FIRST + (self.seeds if flow in SEVERAL else 1))

    def processors(self, flow: str) -> list[str]:
        """Return the processors of the runs of a flow."""
        names = [self.name(data, flow, seed) for data in self.data for seed in self.seeds_of(flow)]
        return sorted({self.runs.processor(name) for name in names if name in self.runs.found})

    def gaps(self, data: str, flow: str, protocol: Protocol) -> list[float]:
        """Return nats above the entropy for each seed, rising; NaN alone if a run is missing."""
        runs = [self.run(data, flow, seed) for seed in self.seeds_of(flow)]
        if MISSING in runs:
            return [math.nan]
        return sorted(run[protocol] - self.entropy(toys()[data]) for run in runs)

    def gap(self, data: str, flow: str, protocol: Protocol) -> float:
        """Return the median over the seeds, nats above the entropy; NaN if a run is missing."""
        return median(self.gaps(data, flow, protocol))

    def finished(self, names: Iterable[str]) -> list[str]:
        """List the flows of which at least one data set has all runs."""
        return [n for n in names if any(not math.isnan(self.gap(d, n, "steps")) for d in self.data)]


def won(study: Study, flow: str, protocol: Protocol) -> str:
    """Count the data sets on which the i-ResNet is better than a flow, of those with all runs.

    The i-ResNet is clearly better if its worst seed is better than the best seed of the flow.
    """
    pairs = [(study.gaps(d, OURS, protocol), study.gaps(d, flow, protocol)) for d in study.data]
    known = [(ours, other) for ours, other in pairs if not math.isnan(ours[0] + other[0])]
    better = sum(median(ours) < median(other) for ours, other in known)
    clear = sum(ours[-1] < other[0] for ours, other in known)
    return f"{better} of {len(known)}" + f" ({clear} clearly)" * (clear < better)
