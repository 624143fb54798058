"""Checks of README's table of this project beside the others, line by line.

Each package builds the same residual flow by its examples and defaults. The flow is trained a
little, then measured.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
import typer
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import CompositeTransform, LULinear
from torch import Tensor

from ..harness.report import Fast, Threads, Write, publish, table
from ..peers.contenders import Contender
from ..peers.packages import TOLD, WORK, Package, data, packages

# The number of orders in which the samples of a batch get weights.
ORDERS = 8
# An error of an inversion that a user should hear of.
LARGE = 1e-4


def jacobian(contender: Contender, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the noise, and the dense Jacobian of the whole flow; differentiable."""
    x = x.clone().requires_grad_()
    z = contender.to_noise(x)
    rows = [torch.autograd.grad(z[:, i].sum(), x, create_graph=True)[0] for i in range(WORK.dim)]
    return z, torch.stack(rows, 1)


def exact(contender: Contender, x: Tensor) -> Tensor:
    """Return the log-density by the dense Jacobian; differentiable."""
    z, j = jacobian(contender, x)
    logdet = torch.linalg.slogdet(j)[1]
    return logdet - z.square().sum(1) / 2 - WORK.dim / 2 * math.log(2 * math.pi)


def density(contender: Contender, draws: int) -> tuple[float, float]:
    """Return the largest difference of two calls in eval mode, and the error of their mean, nats.

    The error is the mean over points of the distance from the mean of the draws to the truth.
    """
    x = data(200)
    truth = exact(contender, x).detach()
    found = torch.stack([contender.log_prob(x).detach() for _ in range(draws)])
    error = (found.mean(0) - truth).abs().mean().item()
    return (found[0] - found[1]).abs().max().item(), error


@dataclass(frozen=True)
class Mean:
    """Mean over draws, with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


def in_training(contender: Contender, draws: int) -> Mean:
    """Return the value of ``log_prob`` in train mode less the log-density, nats."""
    x = data(200)
    truth = exact(contender, x).mean().item()
    contender.module.train()
    found = torch.tensor([contender.log_prob(x).mean().item() for _ in range(draws)])
    contender.module.eval()
    return Mean((found.mean() - truth).item(), (found.std() / math.sqrt(draws)).item())


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Collect the text of prints, logs and warnings; the list is filled at the end."""
    heard: list[str] = []
    printed = io.StringIO()
    with (
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        warnings.simplefilter("always")
        yield heard
    # Words on deprecated calls say nothing of the number.
    deprecated = DeprecationWarning, FutureWarning, PendingDeprecationWarning
    told = [w for w in warned if not issubclass(w.category, deprecated)]
    heard += [str(w.message) for w in told if "deprecated" not in str(w.message)]
    heard += [printed.getvalue()] if printed.getvalue() else []


def inverse(contender: Contender, package: Package) -> tuple[float, bool]:
    """Return the largest error of a round trip, and True if the package spoke."""
    x = data(2000)
    with torch.no_grad(), listening() as heard:
        z = contender.to_noise(x)
        found = package.from_noise(contender.module, z)
    return (found - x).norm(dim=1).max().item(), bool(heard)


def through_inverse(contender: Contender, package: Package) -> float:
    """Return the relative error of a gradient through the inverse; NaN without a gradient."""
    x, w = data(64), torch.linspace(-1, 1, WORK.dim)
    z, j = (v.detach() for v in jacobian(contender, x))
    truth = torch.linalg.solve(j.mT, w.expand_as(x))
    z.requires_grad_()
    found = package.from_noise(contender.module, z)
    if not found.requires_grad:
        return math.nan
    gradient = torch.autograd.grad((found @ w).sum(), z)[0]
    return ((gradient - truth).norm() / truth.norm()).item()


def in_pyro(block: Any) -> bool:
    """Return True if a block runs as a transform of a distribution of Pyro."""
    noise = dist.Normal(torch.zeros(WORK.dim), torch.ones(WORK.dim)).to_event(1)
    flow = dist.TransformedDistribution(noise, [block.inv])
    return bool(flow.log_prob(flow.sample((3,))).isfinite().all())


def in_nflows(block: Any) -> bool:
    """Return True if a block runs as a transform of a flow of nflows."""
    flow = Flow(CompositeTransform([LULinear(WORK.dim), block]), StandardNormal([WORK.dim]))
    return bool(flow.log_prob(flow.sample(3)).isfinite().all())


def frameworks(contender: Contender, package: Package) -> list[str]:
    """List the frameworks in which a block of the package runs, between their transforms."""
    found = []
    for name, runs in (("Pyro", in_pyro), ("nflows", in_nflows)):
        for block in package.blocks(contender.module):
            with contextlib.suppress(Exception):
                if runs(block.eval()):
                    found.append(name)
    return found


def gradient(contender: Contender, draws: int, *, spread: float) -> Mean:
    """Return the relative error of the gradient of a weighted loss, of the mean over draws.

    Arguments:
        contender: a flow in eval mode.
        draws: the number of draws for each of ``ORDERS`` orders of the weights.
        spread: the weights lie evenly from ``1 - spread`` to ``1 + spread``.
    """
    x = data(64)
    parameters = [p for p in contender.module.parameters() if p.requires_grad]

    def of(log_prob: Tensor, weights: Tensor) -> Tensor:
        found = torch.autograd.grad((weights * log_prob).mean(), parameters, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    orders = torch.Generator().manual_seed(0)
    errors, noises = [], []
    for _ in range(ORDERS):
        order = torch.randperm(64, generator=orders)
        weights = 1 + spread * torch.linspace(-1, 1, 64)[order]
        truth = of(exact(contender, x), weights)
        contender.module.train()
        found = torch.stack([of(contender.log_prob(x), weights) for _ in range(draws)])
        contender.module.eval()
        errors.append(((found.mean(0) - truth).norm() / truth.norm()).item())
        noises.append(((found.var(0).sum() / draws).sqrt() / truth.norm()).item())
    return Mean(sum(errors) / ORDERS, sum(noises) / ORDERS)


QUESTIONS = {
    "runs in": "frameworks",
    "largest product of the layer norms of a block, divided by the promised bound": "share",
    "largest difference between two calls of `log_prob` in eval mode, nats": "repeat",
    "error of the mean of 20 of them, nats": "error",
    "value returned in train mode, less the log-density, nats": "training",
    "error of the gradient of the loss, relative to its length": "plain",
    "the same with weights from 0 to 2": "weighted",
    "largest error of an inversion, by default": "inverse",
    "error of a gradient through the inverse, relative to its length": "through",
}


def answers(package: Package, steps: int, draws: int) -> dict[str, str]:
    """Answer each question."""
    contender = package.trained(steps)
    repeat, error = density(contender, 20)
    lost, said = inverse(contender, package)
    through = through_inverse(contender, package)
    each = max(2, draws // ORDERS)
    return {
        "frameworks": ", ".join(frameworks(contender, package)) or "neither Pyro nor nflows",
        "share": f"{package.share(contender.module):.4f}",
        "repeat": f"{repeat:.2g}",
        "error": f"{error:.1g}",
        "training": str(in_training(contender, draws)),
        "plain": str(gradient(contender, each, spread=0.0)),
        "weighted": str(gradient(contender, each, spread=1.0)),
        "inverse": f"{lost:.1g}{', and nothing is said' if lost > LARGE and not said else ''}",
        "through": "has none" if math.isnan(through) else f"{through:.1g}",
    }


def main(fast: Fast = False, write: Write = False, threads: Threads = 1) -> None:
    """Check the claims on each package."""
    torch.set_num_threads(threads)
    steps, draws = (5, 5) if fast else (2000, 400)
    found = {name: answers(package, steps, draws) for name, package in packages().items()}
    rows = [[text, *(found[name][key] for name in found)] for text, key in QUESTIONS.items()]
    body = (
        f"{table(['', *found], rows)}\n\n"
        f"The same flow of {WORK.blocks} blocks of 64-64 on {WORK.dim} coordinates, {steps:,} "
        "steps of Adam at 5e-3, each with the defaults of its package; layers of the others are "
        f"told to have the norm {TOLD} (torchflows' do not use it), blocks of this project the "
        "constant 0.97. Exact log-densities are those of the dense Jacobian of the whole flow; "
        f"means are over {draws} draws, with their standard errors, those of gradients over "
        f"{ORDERS} orders of the weights. The line of a right gradient shows about the noise of "
        "the draws. normflows and flowcon return in train mode a value whose gradient "
        "is that of the log-density, though it is not the log-density itself; normflows scales "
        "the gradient of the log-determinant by the weight of the first sample. This project "
        "certifies the inverse of each block; no package tells the error of the whole flow."
    )
    publish("claims", "What other packages keep", body, fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
