"""Soak: long training, a million inversions and a thousand corrupt files."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm import tqdm

from ..harness import soak_files, soak_inversions, soak_training
from ..harness.certified import Checked, together
from ..harness.measure import resident_memory
from ..harness.report import Fast, Threads, Write, publish, table
from ..harness.runs import Runs
from ..harness.soak_inversions import Cell
from ..harness.soak_training import Reading
from ..harness.trend import CONFIDENCE, Trend, trend

STEPS, INVERSIONS, FILES = 200_000, 1_000_000, 1_000
# Readings of a flow at least, and the steps between two at most.
READINGS, EVERY = 20, 1_000
# Readings of each process that are left out of its slope: allocators and caches fill first.
WARMUP = 3
# Solver, dimension and weights of a reduced run.
FEW = ("Anderson()", 2, "random")

Steps = Annotated[int, typer.Option(help="Steps of training, over all flows.")]
Inversions = Annotated[int, typer.Option(help="Inversions, over all kinds of block.")]
Files = Annotated[int, typer.Option(help="Corrupt files, over all kinds of damage.")]
Folder = Annotated[
    Path | None,
    typer.Option(help="Keep finished parts in this folder, and go on from there."),
]


@dataclass(frozen=True)
class Soak:
    """Soak of a given size.

    Arguments:
        steps, inversions, files: the sizes, each over all of its kinds.
        folder: the place of finished parts; None for none.
        cells: the kinds of inversion.
    """

    steps: int
    inversions: int
    files: int
    folder: Path | None
    cells: Sequence[Cell]

    def runs(self) -> Runs[Any]:
        """Open the file of finished parts."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        return Runs(None if self.folder is None else self.folder / "runs.jsonl")

    def training(self) -> dict[str, list[Reading]]:
        """Train each flow in a process of its own; return the readings."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        steps = -(-self.steps // len(soak_training.FLOWS))
        every = max(1, min(EVERY, steps // READINGS))
        found = {}
        for i, name in enumerate(tqdm(soak_training.FLOWS, "training", disable=None)):
            place = None if self.folder is None else str(self.folder / f"training-{i}.pt")
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[name] = pool.submit(soak_training.train, name, steps, every, place).result()
        return found

    def inverted(self) -> dict[Cell, dict[str, float]]:
        """Invert in every cell; return figures and readings of memory."""
        runs, samples = self.runs(), -(-self.inversions // len(self.cells))
        found = {}
        for seed, cell in enumerate(tqdm(self.cells, "inversions", disable=None)):

            def run(cell: Cell = cell, seed: int = seed) -> dict[str, float]:
                figures = soak_inversions.invert(cell, samples, seed).as_json()
                return {**figures, "memory": resident_memory(), "process": os.getpid()}

            found[cell] = runs.get(f"{samples} inversions: {cell.name}", run)
        return found

    def damaged(self) -> dict[str, dict[str, int]]:
        """Read corrupt files of each kind of damage; count what became of each."""
        runs = self.runs()
        corruptions = [*soak_files.CORRUPTIONS, *soak_files.ONLY_STATES]
        count = -(-self.files // len(corruptions))
        return {
            name: runs.get(f"{count} files: {name}", lambda n=name: soak_files.judged(n, count, 0))
            for name in tqdm(corruptions, "files", disable=None)
        }


def memory_of(readings: Sequence[Reading]) -> Trend:
    """Return the slope of the memory, KiB for 1,000 steps, with a level for each process."""
    series = []
    for _, group in groupby(readings, lambda r: r["process"]):
        late = list(group)[WARMUP:]
        series.append(([r["step"] / 1000 for r in late], [r["memory"] for r in late]))
    return trend(series)


def of_training(found: dict[str, list[Reading]]) -> str:
    """Write the tables of memory and of certificates in training."""
    memory, drift = [], []
    for name, readings in found.items():
        settled = readings[min(WARMUP, len(readings) - 1) :]
        first, last = settled[0], settled[-1]
        memory.append(
            [
                name,
                f"{last['step']:,}",
                str(len({r["process"] for r in readings})),
                str(memory_of(readings)),
                f"{first['memory'] / 1024:.0f} to {last['memory'] / 1024:.0f}",
                f"{first['tensors']} to {last['tensors']}",
                f"{first['objects']:,} to {last['objects']:,}",
            ]
        )
        drift.append(
            [
                name,
                f"{readings[0]['loss']:.2g} to {last['loss']:.2g}",
                f"{max(r['excess'] for r in readings):.1e}",
                moved([r["ratio"] for r in readings]),
                moved([r["trip"] for r in readings]),
                str(sum(r["lost"] for r in readings)),
                str(sum(r["reported"] for r in readings)),
                str(sum(r["broken"] for r in readings)),
            ]
        )
    heads = (
        ["", "steps", "processes", "KiB / 1,000 steps", "MiB", "tensors", "Python objects"],
        [
            "",
            "loss",
            "proven bound less promise, largest",
            "error / bound: start to end; largest",
            "round trip: start to end; largest",
            "losses of NaN",
            "marked as failed",
            "beyond the bound",
        ],
    )
    return f"{table(heads[0], memory)}\n\n{table(heads[1], drift)}"


def moved(values: Sequence[float]) -> str:
    """Write the first of some values, the last and the largest."""
    return f"{values[0]:.1e} to {values[-1]:.1e}; {max(values):.1e}"


def of_inversions(found: dict[Cell, dict[str, float]]) -> str:
    """Write the table of inversions by each property of a block, and the slope of the memory."""
    names = Checked.__dataclass_fields__
    figures: dict[Cell, Any] = {c: {n: f[n] for n in names} for c, f in found.items()}
    checked = {c: Checked(**each) for c, each in figures.items()}
    rows = [["all", *_cells(together(checked.values()))]]
    keys: dict[str, Callable[[Cell], object]] = {
        "": lambda c: c.dtype,
        "solver ": lambda c: c.solver,
        "coordinates ": lambda c: c.coordinates,
        "block ": lambda c: c.kind,
        "D = ": lambda c: c.dim,
        "weights ": lambda c: c.weights,
    }
    for label, key in keys.items():
        for value in dict.fromkeys(map(key, checked)):
            some = together(f for c, f in checked.items() if key(c) == value)
            rows.append([f"{label}{value}", *_cells(some)])
    head = [
        "",
        "inversions",
        "marked as failed",
        "no reference",
        "beyond the bound",
        "error / bound",
        "error",
    ]
    series, total = [], 0.0
    for _, group in groupby(found.values(), lambda f: f["process"]):
        places, sizes = [], []
        for one in group:
            total += one["samples"]
            places.append(total / 1e5)
            sizes.append(one["memory"])
        series.append((places[WARMUP:], sizes[WARMUP:]))
    slope = trend(series)
    return f"{table(head, rows)}\n\nMemory: {slope} KiB for 100,000 inversions."


def _cells(found: Checked) -> list[str]:
    counts = found.samples, found.reported, found.untold, found.broken
    return [f"{n:,}" for n in counts] + [f"{found.ratio:.2g}", f"{found.error:.1e}"]


def of_files(found: dict[str, dict[str, int]]) -> str:
    """Write the table of corrupt files."""
    rows = [[name, *(str(fates[f]) for f in soak_files.FATES)] for name, fates in found.items()]
    sums = [str(sum(fates[f] for fates in found.values())) for f in soak_files.FATES]
    return table(["", *soak_files.FATES], [*rows, ["all", *sums]])


def goals(
    training: dict[str, list[Reading]],
    inversions: dict[Cell, dict[str, float]],
    files: dict[str, dict[str, int]],
) -> str:
    """Write the table of unreported failures."""
    read = [r for readings in training.values() for r in readings]
    samples = sum(f["samples"] for f in inversions.values())
    count = sum(sum(fates.values()) for fates in files.values())
    found = {
        "losses of NaN or infinity in training": sum(r["lost"] for r in read),
        "inverses beyond their bound, in training": sum(r["broken"] for r in read),
        f"inverses beyond their bound, of {samples:,}": sum(
            f["broken"] for f in inversions.values()
        ),
        f"wrong numbers in silence, of {count:,} corrupt files": sum(
            fates[soak_files.SILENT] for fates in files.values()
        ),
        "deaths of a process that reads one": sum(
            fates[soak_files.DIED] for fates in files.values()
        ),
    }
    rows = [[name, str(number), "0"] for name, number in found.items()]
    return table(["unreported failures", "measured", "goal"], rows)


NOTES = {
    "training": f"""\
Each flow trains in float32 at a constant rate, in batches of {soak_training.BATCH}, in a process \
of its own. Memory is resident memory after a garbage collection, at every reading. The slope is \
of least squares, with a level for each process, after {WARMUP} readings of each; ± is the \
half-width of the {CONFIDENCE:.0%} interval, with fewer degrees of freedom where neighbouring \
readings resemble each other, and infinite where too few are left. Tensors and objects are those \
that the garbage collector knows. At every reading each block inverts {soak_training.PROBES} fresh \
points; the largest error is over the certified bound of the same point. The round trip is through \
the whole flow, the norm of x. The promise is a number of float64, which the bound in float32 may \
exceed by its rounding.""",
    "inversions": """\
Norms of `y` run over six orders of magnitude. `random` blocks have enlarged weights, so that \
every bound is active, 500 inversions each; `trained` blocks were fitted for 100 steps to a bent \
density. The reference is a solve in float64 of the same parameters, to the floor of the \
arithmetic, which the block has to carry back to `y` within 1e-8; its own bound is granted. \
Solutions that are marked as failed say so. The last columns are the largest error over its \
bound, and the largest error over the larger of 1 and the norm of x.""",
    "files": f"""\
A stack of Pyro and a flow of nflows, each saved as a state (read with `weights_only=True` and a \
strict `load_state_dict`) and as a pickled module, in turn. Each file is read in a process of its \
own. A flow that loads maps {soak_files.POINTS} points, with log-determinant, and inverts. `NaN \
or infinity in use` is visible in one of the results. `The same flow` returns the same numbers to \
the last bit: the damage hit no weight, or a dtype that holds the weights. `Another flow` holds a \
weight that is not the saved one, and is in itself a right flow: the log-determinant is that of \
its Jacobian in float64, the inverses keep their bounds, and every bound its promise. No test of a \
flow can see such damage; a checksum of the file can. `A wrong number, silent` is any other finite \
number, and any finite number of a flow with a NaN among its weights.""",
}


def main(
    fast: Fast = False,
    write: Write = False,
    threads: Threads = 1,
    kept: Folder = None,
    steps: Steps = STEPS,
    inversions: Inversions = INVERSIONS,
    files: Files = FILES,
) -> None:
    """Train, invert and read corrupt files for a long time; count failures that nobody hears of."""
    torch.set_num_threads(threads)
    options = f"--steps {steps} --inversions {inversions} --files {files}"
    cells = soak_inversions.cells()
    if fast:
        steps, inversions, files, options = 60, 800, 10, "--fast"
        cells = [c for c in cells if (c.solver, c.dim, c.weights) == FEW]
    soak = Soak(steps, inversions, files, kept, cells)
    training, inverted, damaged = soak.training(), soak.inverted(), soak.damaged()
    body = [
        goals(training, inverted, damaged),
        f"## Training\n\n{of_training(training)}\n\n{NOTES['training']}",
        f"## Inversions\n\n{of_inversions(inverted)}\n\n{NOTES['inversions']}",
        f"## Corrupt files\n\n{of_files(damaged)}\n\n{NOTES['files']}",
    ]
    publish("soak", "Soak", "\n\n".join(body), options, fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
