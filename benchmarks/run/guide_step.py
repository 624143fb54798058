"""Time of one SVI step of ``AutoIResNet``, beside Pyro's guides and beside another checkout.

Float64, 16 particles. The guides of one posterior take turns in one process. Each checkout, on the
eight schools, runs in a process of its own, and the processes take turns, so that a slow minute of
the machine falls on both. Figures of the checkouts are never written: a result depends on the other
checkout.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyro
import torch
import typer
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuide
from pyro.optim import ClippedAdam

from pyro_iresnet import AutoIResNet
from pyro_iresnet.demo.eight_schools import model as eight_schools

from ..harness import guide_timer
from ..harness.report import Fast, Threads, Write, publish, table
from ..harness.steps import Timed, table_of, timed
from ..peers.pyro_guides import SPLINES, MakeGuide, autoregressive_guides
from ..targets.hierarchical import hierarchical
from ..targets.posteriors import PARTICLES, funnel

HERE = Path(__file__).resolve().parents[2]
INNER = 5
NEW, OLD = "this checkout", "the other checkout"
Against = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Another checkout to time.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of each process.")]
Starts = Annotated[int, typer.Option(min=1, help="Fresh processes of each checkout, in turn.")]

OURS = "AutoIResNet"
NARROW = f"{OURS}, 64 wide"
GUIDES: dict[str, MakeGuide] = {OURS: AutoIResNet, **autoregressive_guides()}
# Models, whether layers are wider than 64 by default, and the goal of a step over a spline step.
MODELS = {
    "eight schools, D = 10": (eight_schools, False, 1.0),
    "funnel, D = 10": (funnel, False, 1.0),
    "hierarchical logistic regression, D = 20": (hierarchical(3), False, 1.5),
    "hierarchical logistic regression, D = 40": (hierarchical(8), True, 1.5),
}
NOTE = (
    f"One SVI step, {PARTICLES} particles, ClippedAdam, float64; the guides of a table take turns. "
    "Hidden layers of Pyro's flows are 64 wide, and those of AutoIResNet by default max(64, 2 D), "
    "so 80 where D is 40. Ratios are over the spline guide. "
    "Products are multiply-adds of all matrix products of a step, in those of one product of "
    "500 x 128 with 128 x 128; the floor is the time that they alone would take at the rate of a "
    "large product. "
    "The regression has 300 rows, 3 groups and 8 predictors, of which 3 or all 8 have a slope for "
    "each group."
)


class Narrow(AutoIResNet):
    """The guide with layers as wide as those of Pyro's flows, under a name of its own."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__(model, hidden_dims=[64])


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


def beside_pyro(
    model: Callable[[], None], guides: Mapping[str, MakeGuide], rounds: int
) -> dict[str, Timed]:
    """Time a step of every guide of a model."""
    pyro.clear_param_store()
    torch.manual_seed(0)

    def step_of(make: Callable[[Callable[[], None]], AutoGuide]) -> Callable[[], object]:
        guide = make(model)
        elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(model, guide, ClippedAdam({"lr": 1e-3}), elbo)
        return lambda: svi.step()

    steps = {name: step_of(make) for name, make in guides.items()}
    return timed(steps, rounds=rounds, counted=2)


def main(
    fast: Fast = False,
    write: Write = False,
    threads: Threads = 1,
    against: Against = None,
    starts: Starts = 3,
    rounds: Rounds = 20,
) -> None:
    """Time a step beside Pyro's guides; plain and inside ``cached``; and over another checkout."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float64)
    torch.set_flush_denormal(True)
    if fast:
        starts, rounds = 1, 3
    goals, body = [], []
    for name, (model, wide, goal) in MODELS.items():
        narrow: dict[str, MakeGuide] = {NARROW: Narrow} if wide else {}
        steps = beside_pyro(model, GUIDES | narrow, rounds)
        for kind in (OURS, *narrow):
            ratio = steps[kind].processor / steps[SPLINES].processor
            floor = steps[kind].floor / steps[SPLINES].processor
            label = name if kind == OURS else f"{name}, 64 wide"
            goals.append([label, f"{ratio:.3f}", f"{floor:.3f}", f"<= {goal}"])
        body.append(f"## {name}\n\n{table_of(steps, {SPLINES: steps[SPLINES]})}")
    head = [f"{OURS} over the spline guide", "processor", "floor over its time", "goal"]
    body.insert(0, f"{table(head, goals)}\n\n{NOTE}")
    publish("guide_step", "Step of a guide", "\n\n".join(body), fast=fast, write=write)
    checkouts = {NEW: HERE} if against is None else {NEW: HERE, OLD: against}
    found = times(checkouts, threads=threads, starts=starts, rounds=rounds)
    middle = {
        key: (median(p for p, _ in pairs), median(w for _, w in pairs))
        for key, pairs in found.items()
    }
    rows = [[f"{n}, {kind}", f"{p:.2f}", f"{w:.2f}"] for (n, kind), (p, w) in middle.items()]
    print(table(["eight schools, medians", "ms of the processor", "ms of the clock"], rows))
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
