"""Part 2: density estimation with Pyro, on the 2-D checkerboard."""

import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch

from ..hosts.pyro import iresnet_stack
from . import pictures
from .data import checkerboard
from .fit import fit

NUM_BLOCKS = 8
BATCH = 256
TEST_SIZE = 20_000
ENTROPY = math.log(32)


def run(steps: int, output: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Fit an i-ResNet stack; score it on fresh points beside the data's entropy."""
    stack = iresnet_stack(input_dim=2, num_blocks=NUM_BLOCKS)
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    flow = dist.TransformedDistribution(base, [stack.inv])
    with torch.no_grad():
        flow.log_prob(checkerboard(2000))  # the ActNorms start from this batch
    seconds = fit(
        "2 checkerboard: i-ResNet",
        stack.parameters(),
        lambda: -flow.log_prob(checkerboard(BATCH)).mean(),
        steps=steps,
        lr=2e-2,
    )
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
