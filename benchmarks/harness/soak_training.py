"""Long training of small flows, with readings of memory and of certificates on the way."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_iresnet import AutoIResNet, iresnet_flow, iresnet_stack
from pyro_iresnet._modules import modules_of
from pyro_iresnet.blocks import Block
from pyro_iresnet.demo.checkerboard import checkerboard

from ..targets.posteriors import banana
from .certified import check_inverse, promised, together
from .measure import resident_memory

BATCH, RATE, WIDTHS, PROBES = 32, 1e-3, [16], 64


class Reading(TypedDict):
    """Reading after some steps, as JSON can hold it.

    Arguments:
        step: the number of steps so far.
        process: the process that took the steps.
        memory: the resident memory, KiB.
        tensors, objects: tensors, and objects of any kind, that the garbage collector knows.
        loss: the mean loss since the last reading.
        lost: losses since the last reading that were NaN or infinite.
        excess: the largest proven bound of a block, less the promised constant.
        broken, reported, untold, ratio: inverses of the blocks, as in ``Checked``.
        trip: the largest error of a round trip through the flow.
    """

    step: int
    process: int
    memory: float
    tensors: int
    objects: int
    loss: float
    lost: int
    excess: float
    broken: int
    reported: int
    untold: int
    ratio: float
    trip: float


@dataclass(frozen=True)
class Training:
    """Flow in training.

    Arguments:
        module: the flow, in train mode.
        step: takes a step and returns the loss.
        save, load: give and take the state of the optimizer.
        trip: carries points through the flow and back.
        features: the size of a point.
    """

    module: nn.Module
    step: Callable[[], float]
    save: Callable[[], Any]
    load: Callable[[Any], object]
    trip: Callable[[Tensor], Tensor]
    features: int

    def blocks(self) -> list[Block]:
        """List the blocks of the flow."""
        return [m for m in modules_of(self.module) if isinstance(m, Block)]


def _by_adam(module: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Any]:
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return float(value.detach())

    return {"step": step, "save": optimizer.state_dict, "load": optimizer.load_state_dict}


def _there_and_back(transform: Transform, x: Tensor) -> Tensor:
    # A copy of y, since the transform remembers the y that it returned.
    return transform.inv(transform(x).clone())


def _stack() -> Training:
    stack = iresnet_stack(2, 2, WIDTHS)
    stack(checkerboard(1000))

    def loss() -> Tensor:
        x = checkerboard(BATCH)
        y = stack(x)
        return (y.square().sum(1) / 2 - stack.log_abs_det_jacobian(x, y)).mean()

    by = _by_adam(stack, loss)
    return Training(module=stack, trip=lambda x: _there_and_back(stack, x), features=2, **by)


def _flow() -> Training:
    features = 10
    flow = iresnet_flow(features, 2, hidden_features=WIDTHS)

    def batch(size: int) -> Tensor:
        # Pairs of coordinates on a bent curve.
        u = torch.randn(size, features // 2)
        return torch.cat([u, u.square() / 2 + 0.3 * torch.randn_like(u)], 1)

    flow.log_prob(batch(1000))
    by = _by_adam(flow, lambda: -flow.log_prob(batch(BATCH)).mean())
    transform = flow._transform
    return Training(
        module=flow,
        trip=lambda x: transform.inverse(transform(x)[0])[0],
        features=features,
        **by,
    )


def _guide() -> Training:
    pyro.clear_param_store()
    guide = AutoIResNet(banana, 2, hidden_dims=WIDTHS)
    optimizer = ClippedAdam({"lr": RATE})
    svi = SVI(banana, guide, optimizer, Trace_ELBO(num_particles=4, vectorize_particles=True))
    # The first call makes the guide.
    svi.evaluate_loss()
    return Training(
        module=guide,
        step=lambda: float(svi.step()),
        save=optimizer.get_state,
        load=optimizer.set_state,
        trip=lambda x: _there_and_back(guide.transform, x),
        features=2,
    )


FLOWS: dict[str, Callable[[], Training]] = {
    "Pyro, a stack, 2-D": _stack,
    "nflows, a flow, 10-D": _flow,
    "Pyro, a guide, 2-D": _guide,
}


def train(name: str, steps: int, every: int, place: str | None) -> list[Reading]:
    """Train a flow up to a number of steps; return all readings.

    A process of its own makes the memory that of this flow.

    Arguments:
        name: a name of ``FLOWS``.
        steps: the number of steps in all.
        every: the steps between readings.
        place: a file of the state, from which the training goes on; None for none.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training = FLOWS[name]()
    readings: list[Reading] = []
    if place is not None and Path(place).exists():
        # A file that this function wrote: it holds the state of an optimizer, and readings.
        state = torch.load(place, weights_only=False)
        training.module.load_state_dict(state["module"])
        training.load(state["optimizer"])
        torch.set_rng_state(state["random"])
        readings = state["readings"]
    while (done := readings[-1]["step"] if readings else 0) < steps:
        losses = [training.step() for _ in range(min(every, steps - done))]
        readings.append(_reading(training, done + len(losses), losses))
        if place is not None:
            state = {
                "module": training.module.state_dict(),
                "optimizer": training.save(),
                "random": torch.get_rng_state(),
                "readings": readings,
            }
            torch.save(state, f"{place}.new")
            os.replace(f"{place}.new", place)
    return readings


def _reading(training: Training, step: int, losses: list[float]) -> Reading:
    finite = [v for v in losses if torch.isfinite(torch.tensor(v))]
    with _looking(training.module):
        x = torch.randn(PROBES, training.features)
        found = together(check_inverse(block, x) for block in training.blocks())
        trip = float((training.trip(x) - x).norm(dim=1).max())
        excess = promised(training.blocks())
    gc.collect()
    known = gc.get_objects()
    return {
        "step": step,
        "process": os.getpid(),
        "memory": resident_memory(),
        "tensors": sum(issubclass(type(o), Tensor) for o in known),
        "objects": len(known),
        "loss": sum(finite) / max(len(finite), 1),
        "lost": len(losses) - len(finite),
        "excess": excess,
        "broken": found.broken,
        "reported": found.reported,
        "untold": found.untold,
        "ratio": found.ratio,
        "trip": trip,
    }


@contextlib.contextmanager
def _looking(module: nn.Module) -> Iterator[None]:
    """Look without gradients, in eval mode, at points that no training sees."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1000)
        module.eval()
        try:
            yield
        finally:
            module.train()
