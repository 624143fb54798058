"""What README says of this project beside the others: each line of the table is checked here.

The same residual flow is built with each package, as its examples and defaults have it, trained for
a little, and asked.
"""

import contextlib
import inspect
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import nflows.transforms
import torch
import typer
from pyro.distributions import TransformModule
from torch import Tensor, nn

from pyro_iresnet import certificate

from .contenders import (
    Contender,
    Work,
    flowcon_iresblock,
    normflows_residual,
    this_project,
    torchflows_resflow,
)
from .report import Fast, Threads, Write, publish, table
from .toy_data import toys

WORK = Work(16, (64, 64), 4, actnorm=True)
# What the packages' layers are told to be.
TOLD = 0.97
# An error of an inversion that a user would want to hear of.
LARGE = 1e-4
FRAMEWORKS = {"Pyro": TransformModule, "nflows": nflows.transforms.Transform}


@dataclass(frozen=True)
class Package:
    """A flow, and what its package calls things.

    Arguments:
        module: its name, to import it by.
        make: the flow.
        from_noise: its inverse, as the package has it by default.
        layer_norm: the largest spectral norm of a layer, over what it is told to be.
    """

    module: str
    make: Callable[[], Contender]
    from_noise: Callable[[nn.Module, Tensor], Tensor]
    layer_norm: Callable[[nn.Module], float]

    def trained(self, steps: int) -> Contender:
        """After so many steps of Adam, in eval mode."""
        torch.manual_seed(0)
        contender = self.make()
        contender.log_prob(data(1000))
        optimizer = torch.optim.Adam(contender.module.parameters(), 5e-3)
        for _ in range(steps):
            loss = -contender.log_prob(data(256)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            contender.after_step()
        contender.module.eval()
        return contender


def data(count: int) -> Tensor:
    """Sixteen coordinates: the eight toy densities beside each other."""
    return torch.cat([toy.sample(count) for toy in toys().values()], 1)


@torch.no_grad()
def norm_of(kind: str, told: float, module: nn.Module) -> float:
    """The largest spectral norm of the affine maps of a class, over what they are told to be."""
    norms = []
    for layer in module.modules():
        if type(layer).__name__ == kind:
            # normflows' layer of 64 inputs says nothing of its width but in its weight.
            width = next(p.shape[1] for p in layer.parameters() if p.ndim == 2)
            weight = layer(torch.eye(width)) - layer(torch.zeros(1, width))
            norms.append(torch.linalg.matrix_norm(weight, 2).item() / told)
    return max(norms)


def norm_of_ours(flow: nn.Module) -> float:
    """The same by :func:`pyro_iresnet.certificate`: norms of what acts over the proven bounds."""
    return max(row.norm / row.bound for row in certificate(flow).rows if row.norm is not None)


def packages() -> dict[str, Package]:
    """By name."""
    return {
        "this project": Package(
            "pyro_iresnet",
            lambda: this_project(WORK),
            lambda flow, z: flow._transform.inverse(z)[0],
            norm_of_ours,
        ),
        "normflows": Package(
            "normflows",
            lambda: normflows_residual(WORK, brute_force=False),
            lambda model, z: model.forward(z),
            partial(norm_of, "InducedNormLinear", TOLD),
        ),
        "flowcon": Package(
            "flowcon",
            lambda: flowcon_iresblock(WORK, brute_force=False),
            lambda flow, z: flow._transform.inverse(z)[0],
            partial(norm_of, "ParametrizedLinear", TOLD),
        ),
        "torchflows": Package(
            "torchflows",
            lambda: torchflows_resflow(WORK),
            lambda flow, z: flow.bijection.inverse(z)[0],
            # Its layers do not use what they are told.
            partial(norm_of, "SpectralLinear", 1.0),
        ),
    }


def jacobian(contender: Contender, x: Tensor) -> tuple[Tensor, Tensor]:
    """The noise, and the dense Jacobian of the whole flow; differentiable."""
    x = x.clone().requires_grad_()
    z = contender.to_noise(x)
    rows = [torch.autograd.grad(z[:, i].sum(), x, create_graph=True)[0] for i in range(WORK.dim)]
    return z, torch.stack(rows, 1)


def exact(contender: Contender, x: Tensor) -> Tensor:
    """The log-density by the dense Jacobian; differentiable."""
    z, j = jacobian(contender, x)
    logdet = torch.linalg.slogdet(j)[1]
    return logdet - z.square().sum(1) / 2 - WORK.dim / 2 * math.log(2 * math.pi)


def density(contender: Contender, draws: int) -> tuple[float, float]:
    """In eval mode: the largest difference of two calls, and the mean error, nats."""
    x = data(200)
    truth = exact(contender, x).detach()
    found = torch.stack([contender.log_prob(x).detach() for _ in range(draws)])
    return (found[0] - found[1]).abs().max().item(), (found - truth).mean(1).abs().mean().item()


@dataclass(frozen=True)
class Mean:
    """A mean over draws, with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


def in_training(contender: Contender, draws: int) -> Mean:
    """In train mode: what is returned less the log-density, nats, over points and draws."""
    x = data(200)
    truth = exact(contender, x).mean().item()
    contender.module.train()
    found = torch.tensor([contender.log_prob(x).mean().item() for _ in range(draws)])
    contender.module.eval()
    return Mean((found.mean() - truth).item(), (found.std() / math.sqrt(draws)).item())


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """What is printed, logged to the terminal or warned of, filled at the end."""
    heard: list[str] = []
    printed = io.StringIO()
    with (
        warnings.catch_warnings(record=True) as warned,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        warnings.simplefilter("always")
        yield heard
    # What torch says of deprecated calls says nothing of the number.
    heard += [str(w.message) for w in warned if issubclass(w.category, RuntimeWarning)]
    heard += [printed.getvalue()] if printed.getvalue() else []


def inverse(contender: Contender, package: Package) -> tuple[float, bool]:
    """The largest error of a round trip, and whether anything was said."""
    x = data(2000)
    with torch.no_grad(), listening() as heard:
        z = contender.to_noise(x)
        found = package.from_noise(contender.module, z)
    return (found - x).norm(dim=1).max().item(), bool(heard)


def through_inverse(contender: Contender, package: Package) -> float:
    """The error over its length of a gradient through the inverse; NaN where there is none."""
    x, w = data(64), torch.linspace(-1, 1, WORK.dim)
    z, j = (v.detach() for v in jacobian(contender, x))
    truth = torch.linalg.solve(j.mT, w.expand_as(x))
    z.requires_grad_()
    found = package.from_noise(contender.module, z)
    if not found.requires_grad:
        return math.nan
    gradient = torch.autograd.grad((found @ w).sum(), z)[0]
    return ((gradient - truth).norm() / truth.norm()).item()


def frameworks(package: Package) -> list[str]:
    """Those of which some class of the package is a transform."""
    modules = [m for name, m in sys.modules.items() if name.split(".")[0] == package.module]
    classes = {c for m in modules for c in vars(m).values() if inspect.isclass(c)}
    own = [c for c in classes if c.__module__.split(".")[0] == package.module]
    return [name for name, base in FRAMEWORKS.items() if any(issubclass(c, base) for c in own)]


def weighted(contender: Contender, draws: int) -> Mean:
    """The error of the gradient of a weighted loss over its length, of the mean over draws."""
    x = data(64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(0, 2, 64)[order]
    parameters = [p for p in contender.module.parameters() if p.requires_grad]

    def gradient(log_prob: Tensor) -> Tensor:
        found = torch.autograd.grad((weights * log_prob).mean(), parameters, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    truth = gradient(exact(contender, x))
    contender.module.train()
    found = torch.stack([gradient(contender.log_prob(x)) for _ in range(draws)])
    contender.module.eval()
    noise = (found.var(0).sum() / draws).sqrt()
    return Mean(*((v / truth.norm()).item() for v in ((found.mean(0) - truth).norm(), noise)))


QUESTIONS = {
    "largest norm of a layer, over what it is told to be": "bound",
    "two calls of `log_prob` in eval mode differ by, nats": "repeat",
    "error of the mean of 20 of them, nats": "error",
    "what is trained on, less the log-density, nats": "training",
    "error of the gradient of a weighted loss, of its length": "weighted",
    "largest error of an inversion, by default": "inverse",
    "error of a gradient through the inverse, of its length": "through",
    "is a transform of": "frameworks",
}


def answers(package: Package, steps: int, draws: int) -> dict[str, str]:
    """To each question."""
    contender = package.trained(steps)
    repeat, error = density(contender, 20)
    lost, said = inverse(contender, package)
    through = through_inverse(contender, package)
    return {
        "bound": f"{package.layer_norm(contender.module):.5f}",
        "repeat": f"{repeat:.2g}",
        "error": f"{error:.1g}",
        "training": str(in_training(contender, draws)),
        "weighted": str(weighted(contender, draws)),
        "inverse": f"{lost:.1g}{', and nothing is said' if lost > LARGE and not said else ''}",
        "through": "has none" if math.isnan(through) else f"{through:.1g}",
        "frameworks": ", ".join(frameworks(package)) or "neither Pyro nor nflows",
    }


def main(fast: Fast = False, write: Write = False, threads: Threads = 1) -> None:
    """Check what is said of each package."""
    torch.set_num_threads(threads)
    steps, draws = (5, 5) if fast else (2000, 400)
    found = {name: answers(package, steps, draws) for name, package in packages().items()}
    rows = [[text, *(found[name][key] for name in found)] for text, key in QUESTIONS.items()]
    body = (
        f"{table(['', *found], rows)}\n\n"
        f"The same flow of 4 blocks of 64-64 on 16 coordinates, {steps:,} steps of Adam at 5e-3. "
        "Exact log-densities are those of the dense Jacobian of the whole flow; means are over "
        f"{draws} draws, with their standard errors. The weights lie between 0 and 2. Where a "
        "gradient has no error, its line reads as much as the noise of the draws. Each inverse has "
        "its defaults."
    )
    publish("claims", "What other packages keep", body, fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
