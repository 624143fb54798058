"""Transforms of nflows in turn, with the weights of all parts normalised together."""

from collections.abc import Sequence

from nflows.transforms import CompositeTransform, Transform
from torch import Tensor, nn

from ..._modules import contractions_of
from ...cached import together
from ...errors import ArgumentTypeError, check_instance, check_tensor


class IResNetComposite(CompositeTransform):
    """A ``CompositeTransform`` that normalises the weights of all its parts together, in each call.

    The numbers are those of nflows' own ``CompositeTransform``, but for rounding. The parts,
    ``transforms``, are nflows transforms in the order they act.

    Raises:
        ArgumentTypeError: ``transforms`` is no list of nflows transforms.

    Example:
        >>> import torch
        >>> from pyro_iresnet import IResNetTransform
        >>> from pyro_iresnet.hosts.nflows import IResNetComposite
        >>> composite = IResNetComposite([IResNetTransform(2), IResNetTransform(2)])
        >>> outputs, logabsdet = composite(torch.randn(5, 2))
        >>> outputs.shape, logabsdet.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        if not isinstance(transforms, list | tuple | nn.ModuleList):
            raise ArgumentTypeError(
                "Expected transforms to be a list of nflows transforms; got "
                f"{type(transforms).__name__}."
            )
        for i, part in enumerate(transforms):
            check_instance(part, Transform, f"transforms[{i}]", "IResNetTransform(2)")
        super().__init__(transforms)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the parts in turn; return the outputs and ``log|det|`` of all."""
        check_tensor(inputs, (-1,), None, "inputs")
        with together(contractions_of(self)):
            return super().forward(inputs, context)

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the inverses of the parts in turn; return the outputs and ``log|det|`` of all."""
        check_tensor(inputs, (-1,), None, "inputs")
        with together(contractions_of(self)):
            return super().inverse(inputs, context)
