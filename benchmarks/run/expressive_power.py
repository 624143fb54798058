"""Attempts at more function per block, per parameter and per second, and the winner."""

import math
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from functools import partial
from statistics import median
from typing import Annotated, Any

import torch
import typer
from pyro.infer.autoguide import AutoNormalizingFlow

from pyro_iresnet import iresnet_stack

from ..harness.report import Fast, Kept, Threads, Write, publish, table
from ..harness.runs import Runs
from ..models.variants import (
    FORMER,
    IAF,
    OURS,
    SMALL,
    SPLINE,
    WINNER,
    Make,
    digits_stacks,
    of_pyro,
    pairs,
    pure,
    with_host,
)
from ..targets.densities import Density, Recipe, densities, trained
from ..targets.posteriors import GOALS, Posterior, fitted, posteriors

SEEDS = 5
GUIDE = {"blocks": 8, "hidden": (64,)}
PLANE = {"blocks": 8, "hidden": (64, 64)}
HYBRIDS = tuple(with_host((64,)))
# Variants without a fit of a guide: only the plane has figures of them.
PLANE_ONLY = ("2 hidden of 64", "semidefinite bound", "gradient of a potential")
# The posteriors of all variants. Every stack fits the banana, so only the best meet it.
ALL_ON = ("funnel", "eight schools")
BEST = {
    "banana": (WINNER, HYBRIDS[0]),
    "funnel": (WINNER, HYBRIDS[0]),
    "eight schools": (WINNER, HYBRIDS[1]),
    "checkerboard": (FORMER, WINNER, "1 hidden of 256"),
}
RECIPES = {
    "none": Recipe(),
    "weight decay 1": Recipe(decay=1.0),
    "annealed Lipschitz constant": Recipe(anneal=True),
    "moving average 0.999": Recipe(average=0.999),
    "early stopping on 150 rows": Recipe(stop=True),
}
NOTE = (
    "Guides: 8 blocks of 64 unless it is said otherwise, 16 particles, ClippedAdam from 1e-2 to "
    "1e-4, 3,000 steps, float64, KL over 20,000 draws. Densities: 8 blocks of 64-64, batches of "
    "256, one-cycle rate with its peak at 2e-2 (digits 2e-3); the entropy of the checkerboard is "
    "3.466. Digits: 4 blocks of 128-128. Seconds are those of the processor. What it means stands "
    "in [docs/expressive-power.md](../../docs/expressive-power.md)."
)


class Part(Enum):
    """Part of the study."""

    ALL = "all"
    GUIDES = "guides"
    PLANE = "plane"
    DIGITS = "digits"
    PAIRS = "pairs"


class Study:
    """Runs of one benchmark.

    Arguments:
        runs: the kept results.
        fast: True to reduce the runs.
    """

    def __init__(self, runs: Runs[dict[str, float]], *, fast: bool) -> None:
        self.runs, self.fast = runs, fast

    def guide(
        self, posterior: Posterior, name: str, make: Make, seed: int, *, steps: int = 3000
    ) -> dict[str, float]:
        """Return the fit of a posterior, kept or made now."""
        steps = 20 if self.fast else steps
        label = f"{posterior.name} / {name} / {steps} / {seed}"
        guide = partial(AutoNormalizingFlow, init_transform_fn=make)
        run = partial(fitted, posterior, guide, steps=steps, seed=seed, name=label)
        return self.runs.get(label, lambda: asdict(run()))

    def density(
        self,
        density: Density,
        name: str,
        make: Make,
        seed: int,
        *,
        steps: int = 3000,
        recipe: str = "none",
    ) -> dict[str, float]:
        """Return the score of a flow trained on data, kept or made now."""
        steps = 20 if self.fast else steps
        label = f"{density.name} / {name} / {recipe} / {steps} / {seed}"
        options: dict[str, Any] = {"steps": steps, "seed": seed, "recipe": RECIPES[recipe]}
        run = partial(trained, density, make, **options, name=label)
        return self.runs.get(label, lambda: asdict(run()))


def told(value: float, form: str) -> str:
    """Write a figure, or say that its run is missing."""
    return "not run" if math.isnan(value) else f"{value:{form}}"


def worst(values: list[float]) -> float:
    """Return the largest value, or NaN if one is missing."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def guides(study: Study) -> list[str]:
    """Make the tables of the posteriors."""
    variants = {**pure(**GUIDE), **with_host(GUIDE["hidden"]), **of_pyro()}
    variants = {name: make for name, make in variants.items() if name not in PLANE_ONLY}
    targets = {name: p for name, p in posteriors().items() if name in BEST}
    if study.fast:
        variants = {name: variants[name] for name in (FORMER, WINNER, HYBRIDS[0], IAF, SPLINE)}
    rows = []
    for name, make in variants.items():
        found = [study.guide(targets[t], name, make, 0) for t in ALL_ON]
        kls = [told(f["kl"], ".3f") for f in found]
        seconds = [told(f["seconds"], ".0f") for f in found]
        rows.append([name, *kls, *seconds, told(found[0]["parameters"], ",.0f")])
    head = ["", *ALL_ON, *(f"s, {name}" for name in ALL_ON), "parameters"]
    seeds = 2 if study.fast else SEEDS
    many = []
    for target, posterior in targets.items():
        for name in (*(n for n in BEST[target] if n in variants), IAF):
            found = [study.guide(posterior, name, variants[name], s) for s in range(seeds)]
            kls, times = [f["kl"] for f in found], [f["seconds"] for f in found]
            figures = told(median(kls), ".3f"), told(worst(kls), ".3f"), told(median(times), ".0f")
            goal = f"<= {GOALS[target]}" if name == WINNER else ""
            many.append([target, name, *figures, goal])
    return [
        "## Guides, one seed: KL to the posterior, nats\n\n" + table(head, rows),
        f"## Guides, {seeds} seeds\n\n" + table(["", "", "median KL", "worst", "s", "goal"], many),
    ]


def plane(study: Study) -> list[str]:
    """Make the tables of the densities in the plane."""
    variants = pure(**PLANE)
    names = list(variants)
    data = densities()
    targets = [data["checkerboard"], data["2 spirals"]]
    if study.fast:
        names = [FORMER, WINNER]
    rows = []
    for name in names:
        found = [study.density(d, name, variants[name], 0) for d in targets]
        nats = [told(f["nats"], ".3f") for f in found]
        rows.append(
            [name, *nats, told(found[0]["seconds"], ".0f"), told(found[0]["parameters"], ",.0f")]
        )
    seeds = 2 if study.fast else SEEDS
    many = []
    board = targets[0]
    for name in (n for n in BEST[board.name] if n in names):
        found = [study.density(board, name, variants[name], s)["nats"] for s in range(seeds)]
        goal = "<= 3.60" if name == WINNER else ""
        many.append([name, told(median(found), ".3f"), told(worst(found), ".3f"), goal])
    large = partial(iresnet_stack, num_blocks=12, hidden_dims=(96, 96), lipschitz=0.99, **OURS)
    goal = []
    for name, make, steps, limit in (
        (WINNER, variants[WINNER], 8000, "<= 3.55"),
        ("12 blocks of 96-96, 0.99", large, 20_000, "<= 3.52"),
    ):
        run = study.density(board, name, make, 0, steps=steps)
        size = told(run["parameters"], ",.0f")
        goal.append([f"{steps:,} steps", told(run["nats"], ".3f"), limit, size])
    return [
        "## Densities, one seed, 3,000 steps: held-out nats\n\n"
        + table(["", "checkerboard", "2 spirals", "s", "parameters"], rows),
        f"## Checkerboard, {seeds} seeds, 3,000 steps\n\n"
        + table(["", "median", "worst", "goal"], many),
        "## Checkerboard, longer\n\n" + table(["", "nats", "goal", "parameters"], goal),
    ]


def digits(study: Study) -> list[str]:
    """Make the tables of the digits."""
    data = densities()
    stacks = digits_stacks()
    steps = 4000
    jobs = [(name, "none") for name in stacks]
    jobs += [(SMALL, recipe) for recipe in RECIPES if recipe != "none"]
    if study.fast:
        jobs = [(SMALL, "none"), (SMALL, "moving average 0.999")]
    rows = []
    for name, recipe in jobs:
        which = "digits, 1,350 rows" if RECIPES[recipe].stop else "digits"
        found = study.density(data[which], name, stacks[name], 0, steps=steps, recipe=recipe)
        rows.append([name, recipe, told(found["nats"], ".2f"), told(found["train"], ".2f")])
    head = ["", "recipe", "held-out nats", "training nats"]
    return ["## Digits, 4,000 steps, one seed\n\n" + table(head, rows)]


def implicit(study: Study) -> list[str]:
    """Make the table of the implicit pairs."""
    posterior, density = posteriors()["funnel"], densities()["checkerboard"]
    rows = []
    for name, make in pairs(4, GUIDE["hidden"]).items():
        fit = study.guide(posterior, name, make, 0)
        score = study.density(density, name, pairs(4, PLANE["hidden"])[name], 0)
        figures = told(fit["kl"], ".3f"), told(fit["seconds"], ".0f")
        rows.append([name, *figures, told(score["nats"], ".3f"), told(score["seconds"], ".0f")])
    head = ["4 blocks", "KL, funnel", "s", "nats, checkerboard", "s"]
    return ["## Implicit pairs, one seed, 3,000 steps\n\n" + table(head, rows)]


PARTS: dict[Part, Callable[[Study], list[str]]] = {
    Part.GUIDES: guides,
    Part.PLANE: plane,
    Part.DIGITS: digits,
    Part.PAIRS: implicit,
}


def main(
    fast: Fast = False,
    write: Write = False,
    threads: Threads = 1,
    part: Annotated[Part, typer.Option(help="The tables to make.")] = Part.ALL,
    log: Kept = None,
    finished: Annotated[
        bool, typer.Option(help="Show the results in the log, and run nothing.")
    ] = False,
) -> None:
    """Fit posteriors and densities with every variant."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    missing = dict.fromkeys(("kl", "nats", "train", "seconds", "parameters"), math.nan)
    study = Study(Runs(log, missing=missing if finished else None), fast=fast)
    body = [text for p, tables in PARTS.items() if part in (p, Part.ALL) for text in tables(study)]
    body.append(NOTE)
    publish(
        "expressive_power",
        "Expressive power",
        "\n\n".join(body),
        fast=fast,
        write=write and part is Part.ALL,
    )


if __name__ == "__main__":
    typer.run(main)
