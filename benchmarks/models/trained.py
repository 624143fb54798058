"""Flows trained on the data of the benchmarks."""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import lightning
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import ActNorm
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pyro_iresnet import IResNetTransform
from pyro_iresnet.blocks import pack_blocks
from pyro_iresnet.demo.checkerboard import checkerboard
from pyro_iresnet.hosts.nflows import IResNetComposite
from pyro_iresnet.training import FlowModule, TenthAverage

from ..harness.runs import Runs
from ..peers.contenders import Work
from ..targets.digits import digits

BATCH = 256


def train(flow: Flow, batch: Callable[[int], Tensor], *, steps: int, rate: float) -> None:
    """Train a flow on fresh batches, and leave it in eval mode with the average of its weights."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=10.0,
        callbacks=[TenthAverage()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    batches = DataLoader(Batches(batch), batch_size=None)
    pack_blocks(flow)
    trainer.fit(FlowModule(flow, learning_rate=rate), batches)
    flow.eval()


class Batches(IterableDataset[Tensor]):
    """Endless batches of a source.

    Arguments:
        draw: draws a batch of a given size.
    """

    def __init__(self, draw: Callable[[int], Tensor]) -> None:
        self.draw = draw

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield self.draw(BATCH)


@dataclass(frozen=True)
class Recipe:
    """Flow of default blocks in the coordinates of ``x``, and its training.

    Arguments:
        name: the name of the data.
        work: the flow.
        steps: steps of training.
        rate: the learning rate.
        batch: draws a batch of a given size.
    """

    name: str
    work: Work
    steps: int
    rate: float
    batch: Callable[[int], Tensor]

    def untrained(self) -> Flow:
        """Make the flow at its start."""
        work = self.work
        parts = []
        for _ in range(work.blocks):
            block = IResNetTransform(work.dim, work.hidden, coordinates=None)
            parts += [ActNorm(work.dim), block]
        transform = IResNetComposite([*parts, ActNorm(work.dim)])
        return Flow(transform, StandardNormal([work.dim]))

    def trained(self, steps: int | None = None) -> Flow:
        """Train a flow, by default for the steps of the recipe; return the flow in eval mode."""
        flow = self.untrained()
        with torch.no_grad():
            flow.log_prob(self.batch(2000))
        train(flow, self.batch, steps=self.steps if steps is None else steps, rate=self.rate)
        return flow

    def saved(self, runs: Runs[str]) -> str:
        """Return the state dict of a trained flow as text, kept or made now."""

        def trained() -> str:
            file = io.BytesIO()
            torch.save(self.trained().state_dict(), file)
            return base64.b64encode(file.getvalue()).decode()

        return runs.get(f"{self.name}, {self.work}, {self.steps} steps at {self.rate}", trained)

    def loaded(self, saved: str) -> Flow:
        """Make the flow of a result of :meth:`saved`, in eval mode."""
        flow = self.untrained()
        flow.load_state_dict(torch.load(io.BytesIO(base64.b64decode(saved))))
        return flow.eval()


def on_checkerboard() -> Recipe:
    """Make the recipe of eight blocks in two dimensions."""
    work = Work(2, (64, 64, 64), blocks=8, actnorm=True)
    return Recipe("checkerboard", work, steps=4000, rate=2e-2, batch=checkerboard)


def on_digits(*, blocks: int = 6, steps: int = 1500) -> Recipe:
    """Make the recipe of blocks in 64 dimensions."""
    work = Work(64, (128, 128), blocks=blocks, actnorm=True)
    return Recipe("digits", work, steps, rate=2e-3, batch=digits().batch)
