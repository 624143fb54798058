"""Timer of one SVI step of a guide, as a program that serves one checkout of the package.

The program reads a line for each round and answers with a line of JSON. No module of the benchmarks
is imported, so ``PYTHONPATH`` alone decides which checkout is timed.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam

import pyro_iresnet
from pyro_iresnet import AutoIResNet, cached
from pyro_iresnet.demo.eight_schools import model

PARTICLES, WARMUP = 16, 10


def made() -> dict[str, Callable[[], object]]:
    """Return the step of one guide, plain and inside ``cached``."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    guide = AutoIResNet(model)
    guide()
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, ClippedAdam({"lr": 1e-3}), elbo)

    def step(context: Callable[[], Any]) -> None:
        with context():
            svi.step()

    return {"plain": lambda: step(nullcontext), "cached": lambda: step(lambda: cached(guide))}


def main(checkout: Path, threads: int, inner: int) -> None:
    """Answer each line of the standard input with the times of one round.

    Arguments:
        checkout: the folder that must hold the imported package.
        threads: threads of torch.
        inner: steps of each kind in a round.
    """
    package = Path(pyro_iresnet.__file__).resolve()
    if not package.is_relative_to(checkout.resolve()):
        raise RuntimeError(f"Expected the package of {checkout}; imported {package}.")
    pyro.clear_param_store()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    steps = made()
    for step in steps.values():
        for _ in range(WARMUP):
            step()
    print("ready", flush=True)
    for _ in sys.stdin:
        answer = {}
        for name, step in steps.items():
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(inner):
                step()
            seconds = time.process_time() - processor, time.perf_counter() - wall
            answer[name] = [1e3 * s / inner for s in seconds]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
