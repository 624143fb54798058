"""Blocks of one shape whose parameters are rows of stacked tensors."""

from collections import defaultdict

from torch import nn

from .. import activations
from .._modules import modules_of_kind
from .._settings import flatten
from ..contractions import DenseContraction
from ..contractions.packed import pack
from ..coordinates import DiagonalScale
from ..norms import Norm
from .base import Block


def pack_blocks(flow: object) -> None:
    """Store the parameters of blocks of one shape as stacked tensors, in place.

    An optimiser then has one tensor for each weight of all blocks, norms take the stacked tensors
    as they are, and the state dict stays that of blocks apart. Call the function before the
    optimiser is made. A guide is packed already. Training steps of a packed flow take 0.84 to 0.94
    of the time, with Pyro's optimisers, which work tensor by tensor, 0.7.

    A single block of a packed flow computes, loads and saves as before. ``block.parameters()`` and
    ``block.to(dtype)`` concern the stacked tensors, and so all blocks; a weight such as
    ``layers[0].weight`` is a row, made anew in each access: write it in place, without gradients.

    Conditional blocks, convolutions, frozen parameters, networks and activations of the user's, and
    shapes or settings that no other block has, stay as they are.

    Arguments:
        flow: a stack, a flow or a guide of either framework, or a list of blocks or transforms.

    Raises:
        ArgumentTypeError: ``flow`` is none of these.

    Example:
        >>> from pyro_iresnet import iresnet_stack
        >>> from pyro_iresnet.blocks import pack_blocks
        >>> stack = iresnet_stack(2, num_blocks=8, hidden_dims=[64], between=None)
        >>> len(list(stack.parameters()))
        48
        >>> pack_blocks(stack)
        >>> len(list(stack.parameters()))
        6
    """
    groups: dict[object, list[Block]] = defaultdict(list)
    for block in modules_of_kind(flow, Block):  # pyright: ignore[reportAbstractUsage]
        if _is_dense(block) and not _is_packed(block):
            shapes = [(name, p.shape) for name, p in block.named_parameters()]
            settings = flatten({**block.contraction.settings(), **block.settings()})
            groups[str((type(block), shapes, settings))].append(block)
    for blocks in groups.values():
        pack([block.contraction for block in blocks])
        scales = [c for block in blocks if (c := block.coordinates) is not None]
        if all(type(c.strategy) is DiagonalScale for c in scales):
            pack(scales)


def _is_dense(block: Block) -> bool:
    g = block.contraction
    return (
        type(g) is DenseContraction
        and g.conditioner is None
        and type(g.norm).constrain_all is Norm.constrain_all
        and all(type(a).__module__.startswith(f"{activations.__name__}.") for a in g.activations)
    )


def _is_packed(block: nn.Module) -> bool:
    return any("_pack" in vars(m) for m in block.modules())
