"""Training on a table of a million rows: memory, speed, and two processes in place of one."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from ..harness.report import Fast, Write, publish, table
from ..harness.streamed import WARM

ROWS, COLUMNS = 1_000_000, 10
STEPS, ROUNDS = 400, 3
# Rows of a step: the default, and many, where a step is hardly overhead.
DEFAULT, LARGE = 256, 16_384

Figures = dict[str, float]


def made(rows: int, folder: Path) -> tuple[Path, Path]:
    """Write the same rows to a parquet file and to an array of numpy."""
    x = np.random.default_rng(0).standard_normal((rows, COLUMNS))
    x[:, 1] += x[:, 0] ** 2
    x[:, 2] *= np.exp(0.5 * x[:, 3])
    streamed, whole = folder / "table.parquet", folder / "table.npy"
    pq.write_table(pa.table({f"x{i}": x[:, i] for i in range(COLUMNS)}), streamed)
    np.save(whole, x)
    return streamed, whole


def measured(path: Path, batch_size: int, steps: int, processes: int = 1) -> Figures:
    """Train in new processes, and return the figures of the first that ends."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.harness.streamed", str(path)]
    options = {"batch-size": batch_size, "steps": steps, "processes": processes}
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def over_a_tensor(paths: tuple[Path, Path], size: int, steps: int, rounds: int) -> list[list[str]]:
    """Compare streaming with a tensor, steps of one size."""
    streamed, whole = paths
    runs = [(measured(streamed, size, steps), measured(whole, size, steps)) for _ in range(rounds)]
    # The clock starts behind the first steps.
    speed = median(size * (steps - WARM) / a["cpu"] for a, _ in runs)
    ratio = median(b["cpu"] / a["cpu"] for a, b in runs)
    memory = median(a["peak"] - a["before"] for a, _ in runs)
    return [
        [f"rows a second, steps of {size:,}", f"{speed:,.0f}", ""],
        [f"over the same flow on a tensor, steps of {size:,}", f"{ratio:.2f}", ">= 0.8"],
        [f"MiB above the imports, steps of {size:,}", f"{memory:.0f}", ""],
    ]


def two_over_one(path: Path, size: int, steps: int, rounds: int) -> list[list[str]]:
    """Compare two processes with one, steps of one size."""
    pairs = [(measured(path, size, steps), measured(path, size, steps, 2)) for _ in range(rounds)]
    ratio = median(two["wall"] / one["wall"] for one, two in pairs)
    one, two = (median(pair[i]["loss"] for pair in pairs) for i in (0, 1))
    return [
        [f"two processes over one, time of steps of {size:,}", f"{ratio:.2f}", "<= 0.6"],
        [f"held-out nats of one and two, steps of {size:,}", f"{one:.3f}, {two:.3f}", ""],
    ]


def body(rows: int, steps: int, rounds: int) -> str:
    """Measure in turns, and write the page."""
    plans = ((DEFAULT, steps), (LARGE, steps // 8))
    with tempfile.TemporaryDirectory() as folder:
        paths = made(rows, Path(folder))
        cells = [row for plan in plans for row in over_a_tensor(paths, *plan, rounds)]
        cells += [row for plan in plans for row in two_over_one(paths[0], *plan, rounds)]
    size = rows * COLUMNS * 8 / 2**20
    return f"""{rows:,} rows of {COLUMNS} columns in a parquet file, {size:.0f} MiB of doubles. \
`DensityEstimator` has its defaults, and copies the rows to a scratch file, from which each step \
reads its rows. The flow on a tensor is trained by a plain loop of torch, with its blocks packed. \
{steps:,} steps of {DEFAULT:,} rows, {steps // 8:,} of {LARGE:,}; medians of {rounds} rounds, one \
thread for each process, seconds of the processor but for the two processes.

{table(["", "measured", "goal"], cells)}"""


def main(fast: Fast = False, write: Write = False) -> None:
    """Measure training on a table of a million rows."""
    rows, steps, rounds = (20_000, 96, 1) if fast else (ROWS, STEPS, ROUNDS)
    publish(
        "streaming", "A table of a million rows", body(rows, steps, rounds), fast=fast, write=write
    )


if __name__ == "__main__":
    typer.run(main)
