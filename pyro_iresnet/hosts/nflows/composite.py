"""Transforms of nflows in turn, with the weights of all parts normalised together."""

from nflows.transforms import CompositeTransform
from torch import Tensor

from ..._modules import contractions_of
from ...cached import together


class IResNetComposite(CompositeTransform):
    """A ``CompositeTransform`` that normalises the weights of all its parts together, in each call.

    The numbers are those of nflows' own ``CompositeTransform``, but for rounding. The parts,
    ``transforms``, are nflows transforms in the order they act.

    Example:
        >>> import torch
        >>> from pyro_iresnet import IResNetTransform
        >>> from pyro_iresnet.hosts.nflows import IResNetComposite
        >>> composite = IResNetComposite([IResNetTransform(2), IResNetTransform(2)])
        >>> outputs, logabsdet = composite(torch.randn(5, 2))
        >>> outputs.shape, logabsdet.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the parts in turn; return the outputs and ``log|det|`` of all."""
        with together(contractions_of(self)):
            return super().forward(inputs, context)

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the inverses of the parts in turn; return the outputs and ``log|det|`` of all."""
        with together(contractions_of(self)):
            return super().inverse(inputs, context)
