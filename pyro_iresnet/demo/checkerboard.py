"""Part 2: density estimation with Pyro, on the 2-D checkerboard."""

import math
import time
from pathlib import Path
from typing import Any

import lightning
import pyro.distributions as dist
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from ..hosts.pyro import iresnet_stack
from ..training import FlowModule, TenthAverage
from . import pictures

NUM_BLOCKS = 8
BATCH = 256
RATE = 8e-3
TEST_SIZE = 20_000
ENTROPY = math.log(32)


def checkerboard(n: int) -> Tensor:
    """Draw ``n`` points of the checkerboard, ``(n, 2)``: eight squares of side 2, entropy ln 32."""
    a = 4 * torch.rand(n) - 2
    b = torch.rand(n) - 2 * torch.randint(0, 2, (n,)) + a.floor() % 2
    return 2 * torch.stack([a, b], dim=1)


def run(steps: int, output: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Fit an i-ResNet stack; score it on fresh points beside the data's entropy."""
    stack = iresnet_stack(input_dim=2, num_blocks=NUM_BLOCKS)
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    flow = dist.TransformedDistribution(base, [stack.inv])
    with torch.no_grad():
        flow.log_prob(checkerboard(2000))  # the ActNorms start from this batch
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=10.0,
        callbacks=[TenthAverage(), RichProgressBar()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    batches = DataLoader(checkerboard(steps * BATCH), batch_size=BATCH)  # pyright: ignore
    trainer.fit(FlowModule(flow, learning_rate=RATE), batches)
    seconds = time.perf_counter() - start
    stack.eval()
    with torch.no_grad():
        nats = -flow.log_prob(checkerboard(TEST_SIZE)).mean()
        samples = flow.sample((4000,))
    path = output / "checkerboard.png"
    pictures.data_density_samples(
        checkerboard(4000), samples, lambda x: flow.log_prob(x).exp(), path
    )
    row = {
        "part": "density, Pyro",
        "data": "checkerboard",
        "model": "i-ResNet",
        "held_out_nats": float(nats),
        "parameters": sum(p.numel() for p in stack.parameters()),
        "seconds": seconds,
    }
    entropy = {"part": row["part"], "data": row["data"], "model": "entropy of the data"}
    return [{**entropy, "held_out_nats": ENTROPY}, row], [path]
