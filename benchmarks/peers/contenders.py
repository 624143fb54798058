"""One residual flow as each package builds it, and two yardsticks of another kind.

All run from data to noise, with the same widths and the same number of blocks. A package leaves
some choices open: the order of the layers of a network, the number of power iterations. The choices
are those of its own examples and defaults.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import flowcon.flows
import flowcon.nn.nets.activations
import flowcon.nn.nets.spectral_norm
import flowcon.transforms
import normflows
import torch
import torchflows.flows
from flowcon.distributions import StandardNormal as FlowconNormal
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import ActNorm, AffineCouplingTransform, CompositeTransform
from torch import Tensor, nn
from torchflows.bijections.base import BijectiveComposition
from torchflows.bijections.finite.autoregressive.layers import ElementwiseAffine
from torchflows.bijections.finite.residual.iterative import ResFlowBlock, SpectralLinear

from pyro_iresnet import iresnet_flow
from pyro_iresnet.blocks import pack_blocks
from pyro_iresnet.logdet import LogDet
from pyro_iresnet.norms import Norm
from pyro_iresnet.options import BlockOptions

POWER_ITERATIONS = 5
NORM = BlockOptions().norm


@dataclass(frozen=True)
class Work:
    """Flow to build: ``blocks`` residual blocks on ``dim`` coordinates.

    Arguments:
        dim: the number of coordinates.
        hidden: the widths of the hidden layers of each block.
        blocks: the number of blocks.
        actnorm: True for an affine map of each coordinate before each block and at the end.
    """

    dim: int
    hidden: tuple[int, ...]
    blocks: int = 8
    actnorm: bool = False


@dataclass(frozen=True)
class Contender:
    """Flow to train.

    Arguments:
        module: holds the parameters.
        log_prob: the training objective's log-density, shape ``(batch,)``.
        to_noise: carries ``x`` to ``z`` without a log-determinant, as an exact density needs.
        after_step: the call that the package asks for after each step of the optimiser.
    """

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    to_noise: Callable[[Tensor], Tensor]
    after_step: Callable[[], object] = field(default=lambda: None)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())


def of_nflows(flow: Flow) -> Contender:
    """Make a contender of a flow of nflows."""
    return Contender(flow, flow.log_prob, flow.transform_to_noise)


def this_project(
    work: Work, logdet: LogDet | None = None, norm: Norm = NORM, *, packed: bool = False
) -> Contender:
    """Build an :func:`iresnet_flow`, in the coordinates of ``x``; ``packed`` as by its function."""
    options = {"logdet": logdet, "norm": norm, "coordinates": None}
    between = ActNorm if work.actnorm else None
    hidden = work.hidden
    flow = iresnet_flow(work.dim, work.blocks, hidden_features=hidden, between=between, **options)
    if packed:
        pack_blocks(flow)
    return of_nflows(flow)


def normflows_residual(work: Work, *, brute_force: bool) -> Contender:
    """Build ``normflows.flows.Residual``, whose ``update_lipschitz`` belongs to every step."""
    # The list runs from noise to data.
    flows: list[nn.Module] = [normflows.flows.ActNorm(work.dim)] if work.actnorm else []
    for _ in range(work.blocks):
        net = normflows.nets.LipschitzMLP(
            [work.dim, *work.hidden, work.dim], max_lipschitz_iter=POWER_ITERATIONS
        )
        flows += [normflows.flows.Residual(net, brute_force=brute_force)]
        if work.actnorm:
            flows += [normflows.flows.ActNorm(work.dim)]
    base = normflows.distributions.DiagGaussian(work.dim, trainable=False)
    model = normflows.NormalizingFlow(base, flows)

    update = partial(normflows.utils.update_lipschitz, model, POWER_ITERATIONS)
    return Contender(model, model.log_prob, model.inverse, update)


class _WithContext(nn.Sequential):
    """Layers in turn that take a context, as flowcon passes one, perhaps None."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


def flowcon_iresblock(work: Work, *, brute_force: bool) -> Contender:
    """Build ``flowcon.transforms.iResBlock`` over its own spectrally normalised layers."""
    normed = partial(
        flowcon.nn.nets.spectral_norm.scaled_spectral_norm,
        n_power_iterations=POWER_ITERATIONS,
        domain=2,
        codomain=2,
        coeff=0.97,
    )
    blocks = []
    for _ in range(work.blocks):
        net = _network(work, lambda i, o: normed(nn.Linear(i, o)), _flowcon_swish, _WithContext)
        blocks.append(flowcon.transforms.iResBlock(net, brute_force=brute_force))
    between = partial(flowcon.transforms.ActNorm, work.dim) if work.actnorm else None
    transform = flowcon.transforms.CompositeTransform(_interleave(blocks, between))
    flow = flowcon.flows.Flow(transform, FlowconNormal([work.dim]))
    return Contender(flow, flow.log_prob, flow.transform_to_noise)


def _flowcon_swish() -> nn.Module:
    return flowcon.nn.nets.activations.LipSwish()


def torchflows_resflow(work: Work) -> Contender:
    """Build ``torchflows``' ``ResFlowBlock`` over its own ``SpectralLinear`` layers."""
    event = torch.Size([work.dim])
    linear = partial(SpectralLinear, c=0.97, n_iterations=POWER_ITERATIONS)
    blocks = [
        ResFlowBlock(event, g=_network(work, linear, nn.Tanh, nn.Sequential))
        for _ in range(work.blocks)
    ]
    between = partial(ElementwiseAffine, event) if work.actnorm else None
    flow = torchflows.flows.Flow(BijectiveComposition(_interleave(blocks, between)))

    def to_noise(x: Tensor) -> Tensor:
        for layer in flow.bijection.layers:
            x = x + layer.g(x) if isinstance(layer, ResFlowBlock) else layer.forward(x)[0]
        return x

    return Contender(flow, flow.log_prob, to_noise)


class _ResidualMLP(nn.Module):
    """Network ``x + g(x)`` with an unconstrained ``g``."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def residual_mlp(work: Work) -> Contender:
    """Build the floor: the same networks with no constraint and no log-determinant."""
    net = nn.Sequential(
        *(
            _ResidualMLP(_network(work, nn.Linear, nn.SiLU, nn.Sequential))
            for _ in range(work.blocks)
        )
    )
    return Contender(net, lambda x: -0.5 * net(x).square().sum(-1), net)


def realnvp(work: Work, parameters: int) -> Contender:
    """Build nflows' affine coupling layers, at the width with the nearest size.

    Arguments:
        work: the flow; its widths do not count.
        parameters: the wished number of parameters.
    """

    def make(width: int) -> Flow:
        mask = torch.ones(work.dim)
        mask[::2] = -1
        parts = []
        for _ in range(work.blocks):
            net = partial(ResidualNet, hidden_features=width)
            parts.append(AffineCouplingTransform(mask, net))
            mask = -mask
        return _nflows_flow(work, parts)

    sizes = {width: of_nflows(make(width)).parameters for width in range(8, 257, 8)}
    return of_nflows(make(min(sizes, key=lambda width: abs(sizes[width] - parameters))))


def _network(
    work: Work,
    linear: Callable[[int, int], nn.Module],
    activation: Callable[[], nn.Module],
    sequential: Callable[..., nn.Module],
) -> nn.Module:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise([work.dim, *work.hidden, work.dim]):
        layers += [linear(n_in, n_out), activation()]
    return sequential(*layers[:-1])


def _interleave(
    blocks: Sequence[nn.Module], between: Callable[[], nn.Module] | None
) -> list[nn.Module]:
    if between is None:
        return list(blocks)
    parts: list[nn.Module] = []
    for block in blocks:
        parts += [between(), block]
    return [*parts, between()]


def _nflows_flow(work: Work, blocks: Sequence[nn.Module]) -> Flow:
    between = partial(ActNorm, work.dim) if work.actnorm else None
    transform = CompositeTransform(_interleave(blocks, between))
    return Flow(transform, StandardNormal([work.dim]))
