"""Blocks of one shape whose parameters are rows of stacked tensors."""

from collections.abc import Sequence

from .. import activations
from ..contractions import DenseContraction
from ..contractions.packed import pack
from ..coordinates import DiagonalScale
from .base import Block


def pack_blocks(blocks: Sequence[Block]) -> None:
    """Store the parameters of blocks of one shape as stacked tensors, in place.

    An optimiser then has one tensor for each weight of all blocks, and one batched norm takes the
    tensor as it is. Blocks of different shape or settings, conditional blocks, and blocks with a
    network or an activation of the user's stay as they are.
    """
    if all(_is_dense(block) for block in blocks):
        pack([block.contraction for block in blocks])
    scales = [c for block in blocks if (c := block.coordinates) is not None]
    if len(scales) == len(blocks) and all(type(c.strategy) is DiagonalScale for c in scales):
        pack(scales)


def _is_dense(block: Block) -> bool:
    g = block.contraction
    return (
        type(g) is DenseContraction
        and g.conditioner is None
        and all(type(a).__module__.startswith(f"{activations.__name__}.") for a in g.activations)
    )
