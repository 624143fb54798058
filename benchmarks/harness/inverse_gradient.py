"""Gradients through the inverse: implicit, and through recorded iterations."""

import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from nflows.flows import Flow
from torch import Tensor

from pyro_iresnet import Anderson, IResNetTransform, cached
from pyro_iresnet.cached import map_of
from pyro_iresnet.operators import ContractionMap

from ..models.trained import Recipe
from ..peers.inversions import Invert, by_normflows, by_solver, invert, loosest
from .measure import interleaved, peak_memory

GRADIENT_BATCH = 256


def unrolled(flow: Flow, z: Tensor, steps: list[int]) -> Tensor:
    """Invert by recorded fixed-point steps, a given number in each block."""
    x, remaining = z, list(steps)
    for transform in reversed(flow._transform._transforms):
        if isinstance(transform, IResNetTransform):
            g, y = map_of(transform.block.contraction), x
            for _ in range(remaining.pop(0)):
                x = y - g(x)
        else:
            x = transform.inverse(x)[0]
    return x


def implicit(flow: Flow, z: Tensor) -> Tensor:
    """Invert with implicit gradients."""
    x = z
    for t in reversed(flow._transform._transforms):
        x = t.block.inverse(x) if isinstance(t, IResNetTransform) else t.inverse(x)[0]
    return x


def gradient(flow: Flow, z: Tensor, inverse: Callable[[Flow, Tensor], Tensor]) -> Tensor:
    """Return the gradient of the mean of ``||x||^2 / 2`` in all parameters."""
    with cached(flow):
        loss = inverse(flow, z).square().sum(-1).mean() / 2
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])
    flow.zero_grad()
    return found


def steps_to(flow: Flow, z: Tensor, truth: Tensor, error: float) -> list[int]:
    """Count the fixed-point steps of each block that bring the whole batch to an error."""
    counts: list[int] = []

    def counting(tolerance: float) -> Invert:
        counts.clear()
        inner = by_normflows(tolerance)

        def block(transform: IResNetTransform, g: ContractionMap, y: Tensor):
            x, count = inner(transform, g, y)
            counts.append(int(count.max()))
            return x, count

        return block

    tolerance, _ = loosest(flow, z, truth, counting, error)
    # The last tolerance that was tried may be another one.
    invert(flow, z, counting(tolerance))
    return counts


def one_gradient(recipe: Callable[[], Recipe], path: str, steps: list[int] | None) -> None:
    """Take one gradient, for the peak of memory of a process of its own."""
    torch.set_num_threads(1)
    flow = recipe().untrained()
    flow.load_state_dict(torch.load(path))
    flow.eval()
    torch.manual_seed(2)
    z = torch.randn(GRADIENT_BATCH, flow._distribution._shape[0])
    gradient(flow, z, implicit if steps is None else partial(unrolled, steps=steps))


def gradients(recipe: Callable[[], Recipe], flow: Flow) -> tuple[list[list[str]], list[float]]:
    """Measure time, error and memory of a gradient through the inverse, and the ratios."""
    torch.manual_seed(2)
    z = torch.randn(GRADIENT_BATCH, flow._distribution._shape[0])
    exact = copy.deepcopy(flow).double()
    for transform in exact._transform._transforms:
        if isinstance(transform, IResNetTransform):
            transform.block.solver = Anderson(rtol=1e-13)
    truth = invert(exact, z.double(), by_solver(Anderson(), 1e-13)).x
    error = float(invert(flow, z, by_solver(Anderson())).error(truth).max())
    steps = steps_to(flow, z, truth, error)
    ways = {"implicit": implicit, "unrolled": partial(unrolled, steps=steps)}
    right = gradient(exact, z.double(), implicit)
    ms = interleaved(
        {n: partial(gradient, flow, z, way) for n, way in ways.items()},
        rounds=15,
        inner=1,
        clock=time.process_time,
    )
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save(flow.state_dict(), file.name)
        peaks = {
            n: peak_memory(one_gradient, recipe, file.name, None if n == "implicit" else steps)
            for n in ways
        }
    rows = []
    for n, way in ways.items():
        off = (gradient(flow, z, way).double() - right).norm() / right.norm()
        rows.append([n, f"{ms[n]:.0f}", f"{float(off):.1e}", f"{peaks[n]:.0f}"])
    return rows, [ms["implicit"] / ms["unrolled"], peaks["implicit"] / peaks["unrolled"]]
