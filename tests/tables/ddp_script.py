"""Fit a table in each of several processes, and write what each found."""

import sys
from pathlib import Path

import torch

from pyro_iresnet.tables import DensityEstimator

if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    table = torch.randn(400, 2).numpy()
    estimator = DensityEstimator(
        num_blocks=2,
        max_steps=60,
        batch_size=51,
        progress=False,
        trainer={"strategy": "ddp", "devices": 2},
    ).fit(table)
    state = {
        "score": estimator.score(table),
        "history": estimator.history_.validation,
        "weights": estimator.flow_.state_dict(),
    }
    torch.save(state, out / f"{torch.distributed.get_rank()}.pt")
