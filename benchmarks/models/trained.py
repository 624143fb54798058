"""Flows trained on the data of the benchmarks."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import ActNorm
from torch import Tensor

from pyro_iresnet import IResNetTransform
from pyro_iresnet.demo.data import checkerboard, digits
from pyro_iresnet.demo.fit import fit
from pyro_iresnet.hosts.nflows import IResNetComposite
from pyro_iresnet.norms import Norm

from ..harness.runs import Runs
from ..peers.contenders import GRAM, Work

BATCH = 256


@dataclass(frozen=True)
class Recipe:
    """Flow and its training.

    Arguments:
        name: the name of the data.
        work: the flow.
        lipschitz: the Lipschitz constant of each block.
        steps: steps of Adam, under a one-cycle learning rate.
        rate: the peak of the learning rate.
        batch: draws a batch of a given size.
        norm: the norm of the weights.
    """

    name: str
    work: Work
    lipschitz: float
    steps: int
    rate: float
    batch: Callable[[int], Tensor]
    norm: Norm = GRAM

    def untrained(self) -> Flow:
        """Make the flow at its start."""
        work = self.work
        parts = []
        for _ in range(work.blocks):
            block = IResNetTransform(
                work.dim,
                work.hidden,
                lipschitz=self.lipschitz,
                norm=self.norm,
                coordinates=None,
            )
            parts += [ActNorm(work.dim), block]
        transform = IResNetComposite([*parts, ActNorm(work.dim)])
        return Flow(transform, StandardNormal([work.dim]))

    def trained(self, steps: int | None = None) -> Flow:
        """Train a flow, by default for the steps of the recipe; return the flow in eval mode."""
        flow = self.untrained()
        with torch.no_grad():
            flow.log_prob(self.batch(2000))

        def loss() -> Tensor:
            return -flow.log_prob(self.batch(BATCH)).mean()

        steps = self.steps if steps is None else steps
        fit(f"a flow on the {self.name}", flow.parameters(), loss, steps=steps, lr=self.rate)
        return flow.eval()

    def saved(self, runs: Runs[str]) -> str:
        """Return the state dict of a trained flow as text, kept or made now."""

        def trained() -> str:
            file = io.BytesIO()
            torch.save(self.trained().state_dict(), file)
            return base64.b64encode(file.getvalue()).decode()

        settings = f"{self.lipschitz}, {self.norm}, {self.steps} steps at {self.rate}"
        return runs.get(f"{self.name}, {self.work}, {settings}", trained)

    def loaded(self, saved: str) -> Flow:
        """Make the flow of a result of :meth:`saved`, in eval mode."""
        flow = self.untrained()
        flow.load_state_dict(torch.load(io.BytesIO(base64.b64decode(saved))))
        return flow.eval()


def on_checkerboard() -> Recipe:
    """Make the recipe of eight blocks in two dimensions."""
    work = Work(2, (64, 64, 64), blocks=8, actnorm=True)
    return Recipe("checkerboard", work, 0.98, steps=4000, rate=2e-2, batch=checkerboard)


def on_digits(
    *, blocks: int = 6, lipschitz: float = 0.98, steps: int = 1500, norm: Norm = GRAM
) -> Recipe:
    """Make the recipe of blocks in 64 dimensions."""
    data = digits()

    def batch(size: int) -> Tensor:
        return data.encode(data.train[torch.randint(0, len(data.train), (size,))])

    work = Work(64, (128, 128), blocks=blocks, actnorm=True)
    return Recipe("digits", work, lipschitz, steps, rate=2e-3, batch=batch, norm=norm)
