"""Training of image flows and classifiers for a number of minutes, to go on after a stop."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from pyro_iresnet.contractions import ConvContraction
from pyro_iresnet.images import IResNetClassifier, Reconstruction
from pyro_iresnet.operators.convolution import convolve
from pyro_iresnet.training import TenthAverage
from pyro_iresnet.training.randomness import FollowsTorchSeed

# Numbers whose release lets malloc keep memory: fresh pages cost up to half of a step.
ARENA = 31 * 2**18


class Batches(IterableDataset[Any]):
    """Endless random batches of tensors with one number of rows.

    Arguments:
        tensors: the rows.
        size: rows of a batch.
        change: changes the first tensor of a batch, such as an augmentation; None for no change.
    """

    def __init__(
        self, *tensors: Tensor, size: int, change: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.tensors, self.size, self.change = tensors, size, change

    def __len__(self) -> int:
        # Lightning would draw a batch ahead of an end that it does not know, and a checkpoint would
        # lose the batch.
        return 10**9

    def __iter__(self) -> Iterator[Any]:
        while True:
            rows = torch.randint(len(self.tensors[0]), (self.size,))
            first, *others = [t[rows] for t in self.tensors]
            first = first if self.change is None else self.change(first)
            yield (first, *others) if others else first


class Minutes(Callback):
    """A limit of the time of training, all sittings together, and a checkpoint on the way.

    The time is processor time over threads, so other programs on the machine do not count; on a
    device the time is that of the clock. The last checkpoint is one of training, not of the average
    that a module takes at the end.

    Arguments:
        minutes: the limit.
        device: cpu or cuda.
        last: the file of the checkpoint, written every two minutes and at the limit.
    """

    EVERY = 120.0

    def __init__(self, minutes: float, device: str, last: Path) -> None:
        self.limit, self.seconds, self.last = 60 * minutes, 0.0, last
        self._device, self._since, self._saved = device, 0.0, 0.0

    def _now(self) -> float:
        if self._device == "cpu":
            return time.process_time() / torch.get_num_threads()
        return time.perf_counter()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._since, self._saved = self._now(), self.seconds
        trainer.should_stop = self.seconds >= self.limit

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        now = self._now()
        self.seconds, self._since = self.seconds + now - self._since, now
        is_over = self.seconds >= self.limit
        if is_over or self.seconds - self._saved >= self.EVERY:
            self._saved = self.seconds
            trainer.save_checkpoint(self.last)
        trainer.should_stop = is_over

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


def train(
    module: lightning.LightningModule,
    batches: Batches,
    *,
    minutes: float,
    folder: Path,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[float, int]:
    """Train for a number of minutes, all sittings together; return the seconds and the steps.

    The module ends with the average of its weights. A checkpoint in the folder is the start, if
    there is one.
    """
    if device == "cpu":
        torch.empty(ARENA).fill_(0)
    last = folder / "last.ckpt"
    clock = Minutes(minutes, device, last)
    trainer = lightning.Trainer(
        accelerator=device,
        devices=1,
        max_steps=-1,
        max_epochs=-1,
        gradient_clip_val=10.0,
        callbacks=[TenthAverage(), clock],
        enable_checkpointing=False,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
    )
    # By a generator of its own, the loader takes no number of the stream of a checkpoint.
    loader = DataLoader(batches, batch_size=None, generator=torch.Generator())
    # Numbers below float32, such as exponentials of an ELU, made a step 1.7 times as slow.
    torch.set_flush_denormal(True)
    try:
        trainer.fit(module, loader, ckpt_path=last if last.exists() else None)
    finally:
        torch.set_flush_denormal(False)
    return clock.seconds, trainer.global_step


class PlainBlock(nn.Module):
    """A residual block ``x + g(x)`` without a bound: the network of a contraction as it is."""

    def __init__(self, contraction: ConvContraction) -> None:
        super().__init__()
        self.contraction = contraction

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + self.residual(x), None

    def residual(self, x: Tensor) -> Tensor:
        """Return ``g(x)`` with the weights as they are stored."""
        g: Any = self.contraction
        for layer, activation in zip(g.layers, [*g.activations, nn.Identity()], strict=True):
            x = activation(convolve(x, layer.weight, layer.bias))
        return x


class PlainClassifier(IResNetClassifier):
    """The same network without bounds, inverted by the fixed-point iteration all the same."""

    STEPS = 200

    def make_block(self, contraction: ConvContraction) -> Any:
        return PlainBlock(contraction)

    def features(self, images: Tensor) -> Tensor:
        """Return the features of images; no norm is taken, since no weight is normalised."""
        x = self._widened(images)
        for part in self._parts():
            x = part(x)[0]
        return x

    @torch.no_grad()
    def reconstruct(self, features: Tensor, *, rtol: float = 1e-13) -> Reconstruction:
        """Return the images after 200 steps of each iteration, without any bound."""
        x = features
        for part in reversed(self._parts()):
            if isinstance(part, PlainBlock):
                y = x
                for _ in range(self.STEPS):
                    x = y - part.residual(x)
            else:
                x = part.inverse(x)[0]
        return Reconstruction(x[:, : self.shape[0]], x.new_full((len(x),), torch.inf))


class ClassModule(FollowsTorchSeed, lightning.LightningModule):
    """A classifier under Lightning: cross-entropy, Adam with a warm-up and decay of weights.

    Arguments:
        net: returns the logits of images.
        learning_rate: the rate after the warm-up.
    """

    def __init__(self, net: nn.Module, *, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.net = net
        self.learning_rate = learning_rate

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        loss = functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimiser and the warm-up."""
        adam = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, (step + 1) / 100))
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def shifted(images: Tensor, by: int, *, mirrored: bool) -> Tensor:
    """Move each image by up to ``by`` pixels in each direction, and mirror half of them."""
    n, _, height, width = images.shape
    wide = functional.pad(images, 4 * (by,))
    top, left = torch.randint(2 * by + 1, (2, n))
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]
    if mirrored:
        columns = torch.where(torch.rand(n, 1, 1, 1) < 0.5, columns, columns.flip(-1))
    index = torch.arange(n)[:, None, None, None], torch.arange(wide.shape[1])[:, None, None]
    return wide[(*index, rows, columns)]
