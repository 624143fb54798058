"""Transforms of nflows in turn, with the weights of all parts normalised together."""

from collections.abc import Iterable, Sequence
from typing import cast

from nflows.transforms import CompositeTransform, Transform
from torch import Tensor, nn

from ..._modules import contractions_of
from ...cached import together
from ...contractions.hooks import HOOKS
from ...errors import ArgumentTypeError, check_instance, check_tensor
from .transform import IResNetTransform


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

    def encode(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the outputs of :meth:`forward`, without the log-determinants of blocks."""
        check_tensor(inputs, (-1,), None, "inputs")
        with together(contractions_of(self)):
            for part in self._parts():
                inputs = encoded(part, inputs, context)
        return inputs

    def decode(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the outputs of :meth:`inverse`, without the log-determinants of blocks."""
        check_tensor(inputs, (-1,), None, "inputs")
        with together(contractions_of(self)):
            for part in reversed(self._parts()):
                inputs = decoded(part, inputs, context)
        return inputs

    def _parts(self) -> list[Transform]:
        return list(cast(Iterable[Transform], self._transforms))


OURS = (IResNetTransform, IResNetComposite)


def encoded(transform: Transform, inputs: Tensor, context: Tensor | None = None) -> Tensor:
    """Return the outputs of any transform; log-determinants of blocks are left out."""
    # A hook acts on a call.
    if isinstance(transform, OURS) and not any(map(vars(transform).get, HOOKS)):
        return transform.encode(inputs, context)
    return transform(inputs, context)[0]


def decoded(transform: Transform, inputs: Tensor, context: Tensor | None = None) -> Tensor:
    """Return the outputs of the inverse of any transform, as :func:`encoded`."""
    if isinstance(transform, OURS):
        return transform.decode(inputs, context)
    return transform.inverse(inputs, context)[0]
