"""The same residual flow as each package makes it by its defaults, to be asked what it keeps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyro_iresnet import IResNetTransform, certificate, iresnet
from pyro_iresnet.flows import iresnet_flow

from .contenders import (
    Contender,
    Work,
    flowcon_iresblock,
    normflows_residual,
    of_nflows,
    torchflows_resflow,
)
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
        share: of its Lipschitz bound that a block takes, by the norms of its layers; at most 1 if
            it keeps it.
        blocks: what stands in a flow of Pyro or of nflows, if something does.
    """

    make: Callable[[], Contender]
    from_noise: Callable[[nn.Module, Tensor], Tensor]
    share: Callable[[nn.Module], float]
    blocks: Callable[[nn.Module], list[Any]]

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
def share_of(kind: str, told: float, module: nn.Module) -> float:
    """The product of a block's layer norms over that of what they are told to be, the largest.

    Arguments:
        kind: the class of the layers, whose affine maps are taken as they act.
        told: what each is told to be.
        module: the flow; its blocks have equally many layers.
    """
    norms = []
    for layer in module.modules():
        if type(layer).__name__ == kind:
            # normflows' layer of 64 inputs says nothing of its width but in its weight.
            width = next(p.shape[1] for p in layer.parameters() if p.ndim == 2)
            with torch.no_grad():
                weight = layer(torch.eye(width)) - layer(torch.zeros(1, width))
            norms.append(torch.linalg.matrix_norm(weight, 2).item() / told)
    depth = len(norms) // WORK.blocks
    return max(math.prod(norms[n : n + depth]) for n in range(0, len(norms), depth))


def share_of_ours(flow: nn.Module) -> float:
    """The same of this project, which is told a constant for each block."""
    rows = certificate(flow).rows
    blocks = {row.block: row.promised for row in rows if row.promised is not None}
    return max(
        math.prod(row.norm for row in rows if row.block == block and row.norm is not None) / told
        for block, told in blocks.items()
    )


def this_project() -> Contender:
    """As :func:`pyro_iresnet.flows.iresnet_flow` makes it."""
    return of_nflows(iresnet_flow(WORK.dim, WORK.blocks, hidden_features=WORK.hidden))


def packages() -> dict[str, Package]:
    """By name."""
    return {
        "this project": Package(
            this_project,
            lambda flow, z: flow._transform.inverse(z)[0],
            share_of_ours,
            lambda flow: [IResNetTransform(WORK.dim), iresnet(WORK.dim)],
        ),
        "normflows": Package(
            lambda: normflows_residual(WORK, brute_force=False),
            lambda model, z: model.forward(z),
            partial(share_of, "InducedNormLinear", TOLD),
            lambda model: [model.flows[0]],
        ),
        "flowcon": Package(
            lambda: flowcon_iresblock(WORK, brute_force=False),
            lambda flow, z: flow._transform.inverse(z)[0],
            partial(share_of, "ParametrizedLinear", TOLD),
            lambda flow: [flow._transform._transforms[1]],
        ),
        "torchflows": Package(
            lambda: torchflows_resflow(WORK),
            lambda flow, z: flow.bijection.inverse(z)[0],
            partial(share_of, "SpectralLinear", TOLD),
            lambda flow: [flow.bijection.layers[1]],
        ),
    }
