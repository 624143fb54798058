"""What README says of this project beside the others: each line of the table is checked here.

The same residual flow is built with each package, as its examples and defaults have it, trained for
a little, and asked.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import typer
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


@dataclass(frozen=True)
class Package:
    """A flow, and what its package calls things.

    Arguments:
        make: the flow.
        from_noise: its inverse, as the package has it by default.
        layer_norm: the largest spectral norm of a layer, over what it is told to be.
    """

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
            lambda: this_project(WORK), lambda flow, z: flow._transform.inverse(z)[0], norm_of_ours
        ),
        "normflows": Package(
            lambda: normflows_residual(WORK, brute_force=False),
            lambda model, z: model.forward(z),
            partial(norm_of, "InducedNormLinear", TOLD),
        ),
        "flowcon": Package(
            lambda: flowcon_iresblock(WORK, brute_force=False),
            lambda flow, z: flow._transform.inverse(z)[0],
            partial(norm_of, "ParametrizedLinear", TOLD),
        ),
        "torchflows": Package(
            lambda: torchflows_resflow(WORK),
            lambda flow, z: flow.bijection.inverse(z)[0],
            # Its layers do not use what they are told.
            partial(norm_of, "SpectralLinear", 1.0),
        ),
    }


def exact(contender: Contender, x: Tensor) -> Tensor:
    """The log-density by the dense Jacobian of the whole flow; differentiable."""
    x = x.clone().requires_grad_()
    z = contender.to_noise(x)
    rows = [torch.autograd.grad(z[:, i].sum(), x, create_graph=True)[0] for i in range(WORK.dim)]
    logdet = torch.linalg.slogdet(torch.stack(rows, 1))[1]
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


def inverse(contender: Contender, package: Package) -> float:
    """The largest error of a round trip."""
    x = data(2000)
    with torch.no_grad():
        z = contender.to_noise(x)
        return (package.from_noise(contender.module, z) - x).norm(dim=1).max().item()


def weighted(contender: Contender, draws: int) -> Mean:
    """The error of the gradient of a weighted loss over its length, of the mean over draws."""
    x, weights = data(64), torch.linspace(0, 2, 64)
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
    "mean error of `log_prob` in eval mode, nats": "error",
    "what is trained on, less the log-density, nats": "training",
    "error of the gradient of a weighted loss, of its length": "weighted",
    "largest error of an inversion, by default": "inverse",
}


def answers(package: Package, steps: int, draws: int) -> dict[str, str]:
    """To each question."""
    contender = package.trained(steps)
    repeat, error = density(contender, 20)
    return {
        "bound": f"{package.layer_norm(contender.module):.5f}",
        "repeat": f"{repeat:.2g}",
        "error": f"{error:.1g}",
        "training": str(in_training(contender, draws)),
        "weighted": str(weighted(contender, draws)),
        "inverse": f"{inverse(contender, package):.1g}",
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
        f"{draws} draws, with their standard errors. Where a gradient has no error, its line reads "
        "as much as the noise of the draws. Each inverse has its defaults, and none of the others "
        "says that it is wrong."
    )
    publish("claims", "What other packages keep", body, fast=fast, write=write)


if __name__ == "__main__":
    typer.run(main)
