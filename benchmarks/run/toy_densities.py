"""Comparison of flows on eight toy densities, at equal steps and in equal time."""

import math
from collections.abc import Iterable
from dataclasses import replace
from statistics import median
from typing import Annotated

import torch
import typer

from ..harness.report import RESULTS, Fast, Kept, Threads, Write, publish, table
from ..harness.runs import Runs
from ..harness.toy_picture import pictured
from ..harness.toy_study import (
    FIRST,
    MISSING,
    OURS,
    RATE_SECONDS,
    RATES,
    SEVERAL,
    SPLINE,
    Protocol,
    Study,
    every_flow,
    won,
)
from ..harness.toy_training import BATCH, CLIP, WARMUP, Plan, drawn
from ..peers.toy_flows import activations, flows, layers_between
from ..targets.toy_data import toys

STEPS, SECONDS, RATE_STEPS, SEEDS, POINTS = 20_000, 400.0, 2_000, 3, 100_000
# The number of data sets, of eight, on which the i-ResNet is to be better.
GOALS = {
    "steps": dict.fromkeys(
        ["NICE", "MADE", "MAF", "Real NVP", "Glow", "FFJORD", "normflows", SPLINE], 8
    ),
    "clock": {"Glow": 7, "Real NVP": 7, "FFJORD": 7, "normflows": 7, SPLINE: 7},
}
# Nats above the entropy, at equal steps.
DISTANCES = {
    "rings": 0.05,
    "2 spirals": 0.015,
    "pinwheel": 0.010,
    "circles": 0.006,
    "moons": 0.003,
    "swiss roll": 0.004,
    "8 gaussians": 0.002,
    "checkerboard": 0.055,
}
# A density with edges and one without.
FEW = ("checkerboard", "8 gaussians")
SMOOTH = "`Sine` by default"
BETWEEN = (
    "an ActNorm by default, beside a linear map of LU factors, or a spline for each coordinate"
)
PICTURE = RESULTS / "toy_densities.png"

Steps = Annotated[int, typer.Option(help="Of training, at equal steps.")]
Seconds = Annotated[float, typer.Option(help="Of the processor, at equal time.")]
RateSteps = Annotated[int, typer.Option(help="To choose each learning rate.")]
Seeds = Annotated[int, typer.Option(help="Of the i-ResNet, the spline flow, Real NVP.")]
Flows = Annotated[list[str] | None, typer.Option(help="Make the runs of these, no table.")]
Finished = Annotated[bool, typer.Option(help="Show the runs of the log, and make none.")]
Data = Annotated[list[str] | None, typer.Option(help="Only these data sets.")]


def goals(study: Study) -> str:
    """Make the table of the goals."""
    after = {"steps": f"{study.plan.steps:,} steps", "clock": f"{study.plan.seconds:g} s"}
    rows = [
        [
            f"{after[protocol]}: better than {flow}",
            won(study, flow, protocol),
            f">= {least} of {len(toys())}",
        ]
        for protocol, least_of in GOALS.items()
        for flow, least in least_of.items()
        if study.finished([flow])
    ]
    rows += [
        [
            f"{after['steps']}: nats above the entropy, {data}",
            f"{study.gap(data, OURS, 'steps'):.3f}",
            f"<= {most}",
        ]
        for data, most in DISTANCES.items()
        if data in study.data and not math.isnan(study.gap(data, OURS, "steps"))
    ]
    return table(["the i-ResNet", "measured", "goal"], rows)


def compared(study: Study, protocol: Protocol, names: Iterable[str]) -> str:
    """Make the table of nats above the entropy, a row for each data set."""
    rows, names = [], study.finished(names)
    for data in study.data:
        gaps = [study.gap(data, flow, protocol) for flow in names]
        best = min((gap for gap in gaps if not math.isnan(gap)), default=math.nan)
        told = [
            "-" if math.isnan(gap) else f"**{gap:.3f}**" if gap == best else f"{gap:.3f}"
            for gap in gaps
        ]
        for i, flow in enumerate(names):
            found = study.gaps(data, flow, protocol)
            told[i] += f" ({found[0]:.3f} to {found[-1]:.3f})" * (len(found) > 1)
        rows.append([data, f"{study.entropy(toys()[data]):.3f}", *told])
    return table(["", "entropy", *names], rows)


def variants(study: Study, title: str, told: str, names: Iterable[str]) -> str:
    """Show the i-ResNet beside variants of it, if some are finished."""
    if not study.finished(names):
        return ""
    return (
        f"## {title}, {study.plan.steps:,} steps: nats above the entropy\n\n"
        f"The i-ResNet has {told}. One seed, but for the i-ResNet.\n\n"
        f"{compared(study, 'steps', [OURS, *names])}\n\n"
    )


def at_full_length(study: Study) -> str:
    """Show the flows and data sets of which the log has a run of full length."""
    if study.plan.steps == STEPS:
        return ""
    kept = Runs(study.runs.path, missing=MISSING)
    short = replace(study, seeds=1)
    whole = replace(short, plan=replace(study.plan, steps=STEPS), rate_steps=STEPS, runs=kept)
    rows = []
    for data in study.data:
        for flow in (OURS, SPLINE):
            run = whole.run(data, flow, FIRST)
            if run is not MISSING:
                gaps = [each.gap(data, flow, "steps") for each in (short, whole)]
                rates = [each.rate(data, flow) for each in (short, whole)]
                told = [f"{gap:.3f}, rate {rate:g}" for gap, rate in zip(gaps, rates, strict=True)]
                rows.append([data, flow, *told])
    if not rows:
        return ""
    head = ["", "", f"{study.plan.steps:,} steps", f"{STEPS:,} steps"]
    return (
        f"## {STEPS:,} steps: nats above the entropy\n\n{table(head, rows)}\n\n"
        f"One seed; the rate for {STEPS:,} steps is the best of the three after as many steps of "
        f"seed 0. No other flow was run for so long. Runs at {kept.origin()}.\n\n"
    )


def slow(study: Study) -> str:
    """Name the flows that came to the limit of the seconds when their rate was chosen."""
    found = []
    for flow in study.finished(flows()):
        names = [study.rate_name(data, flow, rate) for data in study.data for rate in RATES]
        runs = [study.runs.found.get(name, MISSING) for name in names]
        ended = sum(bool(run["curve"]) and run["curve"][-1][0] < study.rate_steps for run in runs)
        if ended:
            found.append(f"{flow} in {ended} of {len(runs) - runs.count(MISSING)} runs")
    return f" ({', '.join(found)})" if found else ""


def described(study: Study) -> str:
    """Make the table of the size, the learning rates, the speed and the processor of each flow."""
    rows = []
    for flow in study.finished(every_flow()):
        found = [study.run(data, flow, FIRST) for data in study.data]
        found = [run for run in found if run is not MISSING]
        speeds = [1000 * run["curve"][-1][1] / run["curve"][-1][0] for run in found if run["curve"]]
        speed = median(speeds) if speeds else math.nan
        rates = sorted({run["rate"] for run in found})
        told = ", ".join(f"{rate:g}" for rate in rates)
        processors = " and ".join(study.processors(flow))
        rows.append([flow, f"{found[0]['parameters']:,}", told, f"{speed:.1f}", processors])
    return table(["", "parameters", "learning rates", "ms a step", "processor"], rows)


def shortened(study: Study) -> str:
    """Say that the protocol is shortened, if so."""
    full = Plan(STEPS, SECONDS, POINTS), RATE_STEPS, SEEDS, tuple(toys())
    plan = study.plan
    if (plan, study.rate_steps, study.seeds, study.data) == full:
        return ""
    return (
        f"**A shortened protocol, the same for every flow**: {plan.steps:,} steps of {STEPS:,}, "
        f"{plan.seconds:g} s of {SECONDS:g}, rates chosen at {study.rate_steps:,} steps of "
        f"{RATE_STEPS:,}, seeds {study.seeds} of {SEEDS}, data sets {len(study.data)} of "
        f"{len(toys())}, {plan.points:,} points of {POINTS:,}. The goals were set for the whole "
        "one.\n\n"
    )


def tables(study: Study) -> str:
    """Write the whole page."""
    plan = study.plan
    several = f"{', '.join(SEVERAL[:-1])} and {SEVERAL[-1]}"
    seeds = (
        "One seed"
        if study.seeds == 1
        else f"Medians over {study.seeds} seeds for {several}, \
one seed for the others"
    )
    return f"""{shortened(study)}{goals(study)}

Every flow has as many parameters as the i-ResNet within a tenth, ActNorms between its layers, \
and for each data set the best of the learning rates {RATES}, chosen after \
{study.rate_steps:,} steps of seed 0, which is not reported, or after {RATE_SECONDS:g} \
seconds{slow(study)}. Adam at a constant rate behind a \
warm-up of {WARMUP} steps, gradients clipped at {CLIP:g}, fresh batches of {BATCH}, parameters \
averaged over about the last tenth of the steps. {seeds}; one thread. `-` stands for runs that \
were not made. Both protocols are read off \
the same runs: the averaged flow after the steps, and after the seconds, on {plan.points:,} fresh \
points with exact log-determinants (FFJORD's to the tolerance of its ODE, below 1e-4 nats). \
Brackets hold the best and the worst seed. The i-ResNet is better by the medians, and clearly \
better if its worst seed is better than the best seed of the other flow. The defaults of the \
i-ResNet (activation, frequencies, width) were chosen on these eight densities, on other seeds; \
the other flows have the defaults of their packages. Entropies are of the \
same points, by the exact densities of `benchmarks/targets/toy_data.py`. Seconds are those of the \
processor; the runs were made one by one, with other work on the machine.

Where the i-ResNet is clearly behind, on the checkerboard, the edges of the data lie along the \
axes, as the bins of a coupling spline do. A spline for each coordinate between the blocks makes \
such edges too, at twice the time. The learning rate counts as well: of the three rates the best \
after {study.rate_steps:,} steps is not the best after more.

## {plan.steps:,} steps: nats above the entropy

{compared(study, "steps", flows())}

## {plan.seconds:g} seconds of the processor: nats above the entropy

{compared(study, "clock", flows())}

{variants(study, "Activations", SMOOTH, activations())}\
{variants(study, "More than an ActNorm before each block", BETWEEN, layers_between())}\
{at_full_length(study)}## The flows

{described(study)}

![The densities that the flows learned](toy_densities.png)

The densities after {plan.steps:,} steps, seed {FIRST}; the first row is \
exact."""


def picture(study: Study) -> dict[str, dict[str, str]]:
    """Return grids by flow and data set, the exact ones first, of the flows that have all."""
    exact = {data: drawn(toys()[data].log_prob) for data in study.data}
    of_flows = {f: {d: study.run(d, f, FIRST)["grid"] for d in study.data} for f in flows()}
    return {"data": exact} | {f: grids for f, grids in of_flows.items() if all(grids.values())}


def main(
    fast: Fast = False,
    write: Write = False,
    threads: Threads = 1,
    log: Kept = None,
    steps: Steps = STEPS,
    seconds: Seconds = SECONDS,
    rate_steps: RateSteps = RATE_STEPS,
    seeds: Seeds = SEEDS,
    flow: Flows = None,
    data: Data = None,
    finished: Finished = False,
) -> None:
    """Compare flows on eight toy densities, at equal steps and in equal time."""
    torch.set_num_threads(threads)
    for name, given, known in (("data", data, toys()), ("flow", flow, every_flow())):
        if unknown := set(given or []) - set(known):
            raise typer.BadParameter(f"{name} is one of {list(known)}; got {sorted(unknown)}.")
    options = f"--steps {steps} --seconds {seconds:g} --rate-steps {rate_steps} --seeds {seeds}"
    options += "".join(f" --data '{name}'" for name in data or [])
    options += " --finished" * finished
    plan, chosen = Plan(steps, seconds, POINTS), tuple(data or toys())
    if fast:
        plan, rate_steps, seeds, chosen, options = Plan(10, 0.1, 500), 2, 1, FEW, "--fast"
    runs = Runs(log, missing=MISSING if finished else None)
    study = Study(runs, Runs(log), plan, rate_steps, seeds, chosen)
    if flow:
        for seed in range(FIRST, FIRST + seeds):
            for toy in chosen:
                for name in flow:
                    if seed in study.seeds_of(name):
                        study.run(toy, name, seed)
        return
    page = tables(study)
    publish(
        "toy_densities",
        "Toy densities",
        page,
        options,
        fast=fast,
        write=write,
        origin=runs.origin(),
    )
    if write and not fast:
        pictured(picture(study), PICTURE)


if __name__ == "__main__":
    typer.run(main)
