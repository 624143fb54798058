"""One training step of a flow, alone or by several processes under torchrun.

Usage: ``ddp_script.py OUT DIES``, where OUT takes the gradients and DIES is "yes" to end process 1.
"""

import os
import sys
from pathlib import Path

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from pyro_iresnet import Exact, iresnet_flow
from pyro_iresnet.training import FlowModule


class Keep(Callback):
    """Write the gradients of the first step, or end process 1 before it."""

    def __init__(self, out, ranks, *, dies):
        self.out, self.ranks, self.dies = out, ranks, dies

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.dies and trainer.global_rank == 1:
            os._exit(7)
        gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters()}
        path = self.out / f"{self.ranks}_{trainer.global_rank}.pt"
        torch.save({"draw": torch.rand(()), **gradients}, path)


def main(out, dies):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    x = torch.randn(64, 3) * 2 + 1
    flow = iresnet_flow(3, num_blocks=2, hidden_features=8, logdet=Exact())
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[Keep(Path(out), ranks, dies=dies == "yes")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(FlowModule(flow), DataLoader(x, batch_size=64 // ranks))


if __name__ == "__main__":
    main(*sys.argv[1:])
