"""One residual flow as each package makes it by default, to check the promises of each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyro_iresnet import IResNetTransform, certificate, iresnet, iresnet_flow

from ..targets.toy_data import toys
from .contenders import (
    Contender,
    Work,
    flowcon_iresblock,
    normflows_residual,
    of_nflows,
    torchflows_resflow,
)

WORK = Work(16, (64, 64), 4, actnorm=True)
# The norm asked of the layers of the other packages.
TOLD = 0.97


@dataclass(frozen=True)
class Package:
    """Package, by the calls that each question needs.

    Arguments:
        make: makes the flow.
        from_noise: the inverse of a flow, by the package's default.
        share: the part of its Lipschitz bound that a block takes, by the norms of its layers; at
            most 1 for a bound that is kept.
        blocks: the blocks to try in a flow of Pyro and of nflows.
    """

    make: Callable[[], Contender]
    from_noise: Callable[[nn.Module, Tensor], Tensor]
    share: Callable[[nn.Module], float]
    blocks: Callable[[nn.Module], list[Any]]

    def trained(self, steps: int) -> Contender:
        """Train with Adam; return the flow in eval mode."""
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
    """Draw points of sixteen coordinates: the eight toy densities beside each other."""
    return torch.cat([toy.sample(count) for toy in toys().values()], 1)


@torch.no_grad()
def share_of(kind: str, told: float, module: nn.Module) -> float:
    """Return the product of the norms of a block's layers, over that of the asked norms.

    The block with the largest ratio counts.

    Arguments:
        kind: the class of the layers, whose acting weights are measured.
        told: the norm asked of each layer.
        module: the flow; its blocks have equally many layers.
    """
    norms = []
    for layer in module.modules():
        if type(layer).__name__ == kind:
            # Only the weight of a layer of normflows tells the width.
            width = next(p.shape[1] for p in layer.parameters() if p.ndim == 2)
            with torch.no_grad():
                weight = layer(torch.eye(width)) - layer(torch.zeros(1, width))
            norms.append(torch.linalg.matrix_norm(weight, 2).item() / told)
    depth = len(norms) // WORK.blocks
    return max(math.prod(norms[n : n + depth]) for n in range(0, len(norms), depth))


def share_of_ours(flow: nn.Module) -> float:
    """Return the share of this project, which is asked a constant of each block."""
    rows = certificate(flow).rows
    blocks = {row.block: row.promised for row in rows if row.promised is not None}
    return max(
        math.prod(row.norm for row in rows if row.block == block and row.norm is not None) / told
        for block, told in blocks.items()
    )


def this_project() -> Contender:
    """Make the flow by :func:`pyro_iresnet.iresnet_flow`."""
    return of_nflows(iresnet_flow(WORK.dim, WORK.blocks, hidden_features=WORK.hidden))


def packages() -> dict[str, Package]:
    """Return the packages by name."""
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
