"""One training on a table, in a process of its own: ``python -m benchmarks.harness.streamed``."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import lightning
import numpy as np
import torch
import typer
from torch import nn

from pyro_iresnet import iresnet_flow
from pyro_iresnet.blocks import pack_blocks
from pyro_iresnet.tables import DensityEstimator

from .measure import high_water

# Steps before the clock starts.
WARM = 10


class Clock(lightning.Callback):
    """Seconds of the processor and of the wall, from the ``WARM``-th step to the last."""

    def __init__(self) -> None:
        self.start: tuple[float, float] | None = None
        self.spent = (0.0, 0.0)

    def on_train_batch_end(self, trainer: Any, *unused: object) -> None:
        """Start, or read, the clock."""
        now = time.process_time(), time.perf_counter()
        if trainer.global_step == WARM:
            self.start = now
        elif self.start is not None:
            self.spent = now[0] - self.start[0], now[1] - self.start[1]


def in_memory(table: Path, batch_size: int, steps: int) -> dict[str, float]:
    """Train the same flow on a tensor, by a loop of torch, and return its seconds."""
    columns = np.load(table)
    rows = torch.from_numpy(columns).float()
    rows = (rows - rows.mean(0)) / rows.std(0)
    flow = iresnet_flow(rows.shape[1])
    with torch.no_grad():
        flow.log_prob(rows[:2000])
    pack_blocks(flow)
    held = list(flow.parameters())
    optimizer = torch.optim.Adam(held, 5e-3, fused=True)
    start = 0.0
    for step in range(steps):
        if step == WARM:
            start = time.process_time()
        loss = -flow.log_prob(rows[torch.randint(len(rows), (batch_size,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(held, 10.0)
        optimizer.step()
    return {"cpu": time.process_time() - start}


def main(
    table: Path,
    batch_size: Annotated[int, typer.Option()] = 256,
    steps: Annotated[int, typer.Option()] = 500,
    processes: Annotated[int, typer.Option()] = 1,
) -> None:
    """Train on a file, and print the figures as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = high_water()
    if table.suffix == ".npy":
        print(json.dumps(in_memory(table, batch_size, steps)))
        return
    clock = Clock()
    options: dict[str, Any] = {"callbacks": [clock]}
    if processes > 1:
        options |= {"strategy": "ddp", "devices": processes}
    estimator = DensityEstimator(
        max_steps=steps, batch_size=batch_size, progress=False, trainer=options
    )
    estimator.fit(table)
    found = {
        "cpu": clock.spent[0],
        "wall": clock.spent[1],
        "loss": estimator.history_.validation[-1],
        "before": before,
        "peak": high_water(),
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    typer.run(main)
