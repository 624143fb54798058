"""The training loop of the demo."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from tqdm import trange


def fit(
    name: str,
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
) -> float:
    """Minimise ``loss()`` by Adam with a one-cycle learning rate; return the seconds taken."""
    held = list(parameters)
    optimizer = torch.optim.Adam(held, lr=lr, fused=True)
    # The first phase needs a step of its own, or the schedule divides by zero.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 4))

    def step() -> Tensor:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(held, 10.0)
        optimizer.step()
        schedule.step()
        return value.detach()

    return repeat(name, step, steps)


def repeat(name: str, step: Callable[[], Tensor | float], steps: int) -> float:
    """Call ``step()``, which returns its loss, under a progress bar; return the seconds taken."""
    start = time.perf_counter()
    with trange(steps, desc=name, unit="step", mininterval=0.5) as progress:
        for i in progress:
            loss = step()
            if i % 20 == 0:
                progress.set_postfix(loss=f"{float(loss):.3f}", refresh=False)
    return time.perf_counter() - start
