"""Time of one SVI step of ``AutoIResNet``, here and in another checkout of the package.

Eight schools, 16 particles, float64. Each checkout runs in a process of its own, and the processes
take turns, so that a slow minute of the machine falls on both. Nothing is written: a result depends
on the other checkout.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from ..harness import guide_timer
from ..harness.measure import machine
from ..harness.report import Fast, Threads, table

HERE = Path(__file__).resolve().parents[2]
INNER = 5
NEW, OLD = "this checkout", "the other checkout"
Against = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Another checkout to time.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of each process.")]
Starts = Annotated[int, typer.Option(min=1, help="Fresh processes of each checkout, in turn.")]

# Milliseconds of the processor and of the clock, by checkout and by the kind of step.
Times = dict[tuple[str, str], list[tuple[float, float]]]


class Timer:
    """Process that times the steps of one checkout, from ``with`` until its end.

    Arguments:
        checkout: the folder with the package.
        threads: threads of torch.
    """

    def __init__(self, checkout: Path, threads: int) -> None:
        path = str(checkout.resolve())
        # With -P neither the script's folder nor the present one comes before the checkout.
        command = [sys.executable, "-P", "-W", "ignore", str(Path(guide_timer.__file__).resolve())]
        self.process = subprocess.Popen(
            [*command, path, str(threads), str(INNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        )

    def __enter__(self) -> "Timer":
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def round(self) -> dict[str, tuple[float, float]]:
        """Return the milliseconds of a step, of the processor and of the clock, by its kind."""
        stdin = self.process.stdin
        if stdin is None:
            raise RuntimeError("The process of the timer has no input.")
        stdin.write("\n")
        stdin.flush()
        return json.loads(self._answer())

    def _answer(self) -> str:
        stdout = self.process.stdout
        line = "" if stdout is None else stdout.readline()
        if not line:
            raise RuntimeError(f"The timer ended early; its command was {self.process.args}.")
        return line


def times(checkouts: dict[str, Path], *, threads: int, starts: int, rounds: int) -> Times:
    """Time the steps of every checkout, one round of each in turn.

    Arguments:
        checkouts: folders by name.
        threads: threads of torch.
        starts: the number of fresh processes of each checkout.
        rounds: the number of rounds of each process.
    """
    found: Times = defaultdict(list)
    for _ in range(starts):
        with ExitStack() as stack:
            timers = {n: stack.enter_context(Timer(c, threads)) for n, c in checkouts.items()}
            for _ in range(rounds):
                for name, timer in timers.items():
                    for kind, pair in timer.round().items():
                        found[name, kind].append((pair[0], pair[1]))
    return found


def main(
    fast: Fast = False,
    threads: Threads = 1,
    against: Against = None,
    starts: Starts = 3,
    rounds: Rounds = 20,
) -> None:
    """Time a step, plain and inside ``cached``, and print the ratios to another checkout."""
    torch.set_num_threads(threads)
    if fast:
        starts, rounds = 1, 3
    checkouts = {NEW: HERE} if against is None else {NEW: HERE, OLD: against}
    found = times(checkouts, threads=threads, starts=starts, rounds=rounds)
    middle = {
        key: (median(p for p, _ in pairs), median(w for _, w in pairs))
        for key, pairs in found.items()
    }
    rows = [[f"{n}, {kind}", f"{p:.2f}", f"{w:.2f}"] for (n, kind), (p, w) in middle.items()]
    print(f"{machine()}.\n")
    print(table(["one SVI step, medians", "ms of the processor", "ms of the clock"], rows))
    if against is None:
        return
    plain = middle[NEW, "plain"]
    ratios = [
        [
            f"{NEW}, plain, over {OLD}, {kind}",
            *(f"{a / b:.3f}" for a, b in zip(plain, old, strict=True)),
        ]
        for kind, old in ((kind, middle[OLD, kind]) for kind in ("cached", "plain"))
    ]
    print("\n" + table(["ratio", "of the processor", "of the clock"], ratios))


if __name__ == "__main__":
    typer.run(main)
