"""The page of finished runs on images: tables, and the pictures of the i-ResNets."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .report import table

NOTES = """Each row is one run of `python -m benchmarks.run.images classify` or `density`, of one \
seed. `c` is the Lipschitz bound of a block. Minutes are those of the processor, over threads. \
The goals were set for two cores, 40 minutes a row of classification and 60 of density, so for 80 \
and 120 minutes of one thread. The \
goals of classes are c = 0.9 at most 0.50 % and 0.10 behind the network without a bound, c = 0.5 \
at most 0.86 %, and every image rebuilt to 1e-4; the goal of density is 1.25 bits/dim. The row \
without a bound has the same layers with their weights as they are, and the activation of its \
column; its inverse is the same fixed-point iteration, after 200 steps.

Bits per dimension are of uniformly dequantised pixels, with the standard error over the images: \
of all test images by the unbiased `Roulette()`, of the first 500 by the deterministic \
`ConvergedSeries()`, of the first 100 by the dense determinant; in brackets, `Roulette()` for the \
same images. Real NVP and Glow have eight steps at each scale with residual networks of \
convolutions; the others are dense: NICE has four couplings, MADE and MAF one and five masked \
layers with random degrees, FFJORD one vector field, not the convolutional one of its paper. The \
widths follow from the number of parameters (NICE 49 units, MADE 78, MAF 15) and are far below \
those of the papers: the rows of dense flows tell what this size costs them, not what the methods \
can do. Reconstructions are of the first 500 test images, of CIFAR-10 the first 100; their errors \
are in standard deviations of the grey levels. CIFAR-10 is a part of 10,000 training and 2,000 \
test images that had been stored as JPEG: its rows compare with each other, not with published \
figures. They have half of the 20 minutes of their goal, and errors with a standard error of 1.1 %.

The learning rate of each row is the best of two or more after 3 minutes (FFJORD: 2) with the seed \
of the row, measured on training images that were held out; all classifiers with a bound take the \
rate of c = 0.9."""


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Arguments:
        figures: what the run measured.
        folder: holds the pictures of the run; None for a run whose pictures lie beside the page.
    """

    figures: dict[str, Any]
    folder: Path | None = None

    @classmethod
    def read(cls, folder: Path) -> "Finished":
        """Read the figures of a folder."""
        return cls(json.loads((folder / "figures.json").read_text()), folder)

    @property
    def table(self) -> tuple[str, str, int, str, str]:
        """Data, task, minutes, hardware and processor: the same for all runs of one table."""
        run = self.figures
        threads = "one thread" if run["threads"] == 1 else f"{run['threads']} threads"
        hardware = threads if run["device"] == "cpu" else "a CUDA device"
        processor = run["machine"].split(",")[0]
        return run["data"], run["task"], round(run["minutes"]), hardware, processor

    @property
    def row(self) -> tuple[Any, ...]:
        """The table and the line: a new run of a line takes the place of the old one."""
        line = "flow" if self.figures["task"] == "density" else "lipschitz"
        return *self.table, self.figures[line]

    @property
    def picture(self) -> tuple[str, str, str] | None:
        """File, name on the page and caption of the picture; None for a run without one there."""
        data, task, minutes, hardware, processor = self.table
        if task == "classify" and self.figures["lipschitz"] == 0.9:
            file, told = "rebuilt", "Test images, and below them their reconstructions for c = 0.9"
        elif task == "density" and self.figures["flow"] == "i-ResNet":
            file, told = "samples", "Samples of the i-ResNet"
        else:
            return None
        name = f"images {data} {file} {minutes} minutes {hardware} {processor}"
        return f"{file}.png", re.sub(r"\W+", "_", name) + ".png", told


def read_runs(log: Path, folders: list[Path]) -> list[Finished]:
    """Return the runs of a log, and those of folders in the place of older ones."""
    lines = log.read_text().splitlines() if log.exists() else []
    runs = [Finished(json.loads(line)) for line in lines]
    runs += [Finished.read(folder) for folder in folders]
    return list({run.row: run for run in runs}.values())


def keep_runs(log: Path, runs: list[Finished]) -> None:
    """Write the figures of runs to a log, and their pictures beside it."""
    log.write_text("".join(json.dumps(run.figures) + "\n" for run in runs))
    for run in runs:
        if run.picture and run.folder:
            file, name, _ = run.picture
            shutil.copyfile(run.folder / file, log.parent / name)


def body(runs: list[Finished]) -> str:
    """Make the tables of the page, each with its picture."""
    parts = [NOTES]
    for key in sorted({run.table for run in runs}):
        rows = [run for run in runs if run.table == key]
        data, task, minutes, hardware, processor = key
        machines = "; ".join(sorted({run.figures["machine"] for run in rows}))
        commits = ", ".join(sorted({run.figures["commit"] for run in rows}))
        parts += [
            f"## {data}: {task}, {minutes} minutes of {hardware} a row, {processor}",
            (_classifiers if task == "classify" else _flows)([run.figures for run in rows]),
            f"Trained at {commits}, on {machines}.",
        ]
        for _, name, told in filter(None, (run.picture for run in rows)):
            parts.append(f"![{told}]({name})\n\n{told}.")
    return "\n\n".join(parts)


def _classifiers(runs: list[dict[str, Any]]) -> str:
    header = [
        *("c", "error, %", "largest proven bound", "largest error of a pixel"),
        *("largest error of an image", "its certified bound", "activation", "rate"),
        *("parameters", "steps"),
    ]
    rows = [
        [
            "none" if run["lipschitz"] == 0 else f"{run['lipschitz']:g}",
            f"{run['error']:.2f}",
            f"{max(run['proven']):.4f}" if run["proven"] else "none",
            *(f"{run[key]:.1e}" for key in ("largest_entry", "largest_norm", "error_bound")),
            run["activation"],
            f"{run['rate']:g}",
            f"{run['parameters']:,}",
            f"{run['steps']:,}",
        ]
        for run in sorted(runs, key=lambda run: (run["lipschitz"] != 0, -run["lipschitz"]))
    ]
    return table(header, rows)


def _told(found: list[float]) -> str:
    mean, error = found
    return f"{mean:.3f} +- {error:.3f}"


def _flows(runs: list[dict[str, Any]]) -> str:
    header = [
        "flow",
        "bits/dim",
        "deterministic, first 500",
        "exact, first 100",
        "rate",
        "parameters",
        "steps",
    ]
    rows = [
        [
            run["flow"],
            _told(run["bits"]),
            *(
                f"{_told(run[key])} ({run[f'{key}_drawn'][0]:.3f})" if key in run else ""
                for key in ("series", "exact")
            ),
            f"{run['rate']:g}",
            f"{run['parameters']:,}",
            f"{run['steps']:,}",
        ]
        for run in sorted(runs, key=lambda run: run["bits"][0])
    ]
    return table(header, rows)
