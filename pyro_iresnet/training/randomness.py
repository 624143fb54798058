"""Random numbers of a training: one stream for each process, kept in checkpoints."""

from typing import Any

import lightning
import torch
from torch import Tensor

# The key of a checkpoint.
STREAMS = "torch_rng_states"


class FollowsTorchSeed(lightning.LightningModule):
    """Module whose draws follow ``torch.manual_seed`` on the first process alone.

    Every process draws its own probes and noise. A checkpoint holds the state of every stream on
    the CPU, so a training resumed there draws what an unbroken one draws.
    """

    _resumed: list[Tensor] | None = None

    def on_fit_start(self) -> None:
        """Give each process a stream of its own, or the stream of a checkpoint."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None and len(resumed) == self.trainer.world_size:
            torch.set_rng_state(resumed[self.global_rank].cpu())
        elif self.trainer.world_size > 1:
            seed = self.trainer.strategy.broadcast(int(torch.randint(2**62, ())))
            torch.manual_seed(seed + self.global_rank)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the stream of every process."""
        states: Any = self.all_gather(torch.get_rng_state().to(self.device))
        checkpoint[STREAMS] = list(states.cpu().reshape(self.trainer.world_size, -1))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the streams, which go on if as many processes train as before."""
        self._resumed = checkpoint.get(STREAMS)
