"""The block as a Pyro ``TransformModule``, in both directions."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TransformModule
from torch import Tensor
from torch.distributions import constraints

from ..._settings import SavedSettings
from ...blocks import Block, Evaluation
from ...errors import check_event_shape, check_instance
from .cached_transform import CachedTransform

# Torch asks for the domain many times in a step, and the domain does not change.
REALS = [constraints.independent(constraints.real, event_dim) for event_dim in range(5)]


def reals(event_dim: int) -> constraints.Constraint:
    """Return the constraint of real events with a number of dimensions."""
    if event_dim < len(REALS):
        return REALS[event_dim]
    return constraints.independent(constraints.real, event_dim)


class BlockTransform(SavedSettings, CachedTransform, TransformModule):
    """A block as a Pyro transform: the block, the shape of an event, the checks."""

    def __init__(self, block: Block, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.block = check_instance(block, Block, "block", "ResidualBlock(DenseContraction(2))")

    def settings(self) -> dict[str, Any]:
        return {"direction": "forward"}

    @property
    def options(self) -> object:
        """Return the :class:`BlockOptions` of the builder, or None."""
        return self.block.options

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return reals(self.block.event_dim)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return reals(self.block.event_dim)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Return the shape of one event, with -1 for a size that may vary."""
        return self.block.event_shape

    def check(self, x: Tensor, name: str) -> Tensor:
        return self.block.check(x, None, name)[0]

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``shape``, or raise unless it ends in the event shape."""
        check_event_shape(shape, self.block.event_shape, "shape")
        return torch.Size(shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``shape``, or raise unless it ends in the event shape."""
        return self.forward_shape(shape)


class IResNet(BlockTransform):
    r"""An invertible block, such as :math:`y = x + g(x)` (Behrmann et al., 2019), for Pyro.

    :math:`\mathrm{Lip}(g) < 1` holds by construction, so the transform is bijective on all of
    :math:`\mathbb{R}^D`. Both directions work for any value, not only for a remembered one: ``inv``
    solves to a certified error. ``log_abs_det_jacobian`` is exact or unbiased, by the estimator of
    the block. With more than 8 coordinates the default estimator draws in train mode: call
    ``eval()`` for HMC or NUTS, which need a deterministic density. :func:`iresnet` makes a block
    and its transform.

    Arguments:
        block: a :class:`ResidualBlock`, a :class:`CayleyBlock` or another :class:`Block`; else
            :class:`ArgumentTypeError`.
        cache_size: 1 to remember the last call, 0 for no memory.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import DenseContraction, IResNet, ResidualBlock
        >>> transform = IResNet(ResidualBlock(DenseContraction(10)))
        >>> base = dist.Normal(torch.zeros(10), torch.ones(10)).to_event(1)
        >>> flow = dist.TransformedDistribution(base, [transform])
        >>> flow.log_prob(flow.rsample((3,))).shape
        torch.Size([3])
    """

    def evaluate(self, x: Tensor) -> Evaluation:
        return self.block.evaluate(x)

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        return self.block.evaluate_inverse(y)


class InverseIResNet(BlockTransform):
    """The inverse of a block as a Pyro transform: ``y`` with :math:`y + g(y) = x`.

    The ``.inv`` of a torch transform is no module, so a stack would not register its parameters.
    This class is a module. With :class:`IResNet` in turn it makes an implicit flow, which contracts
    as far as a block expands. Gradients cross the inverse by the implicit function theorem.
    Arguments and errors as in :class:`IResNet`.

    References:
        Implicit Normalizing Flows (Lu et al., 2021).

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, InverseIResNet, ResidualBlock
        >>> transform = InverseIResNet(ResidualBlock(DenseContraction(2)))
        >>> x = torch.randn(5, 2)
        >>> y = transform(x)
        >>> transform.log_abs_det_jacobian(x, y).shape
        torch.Size([5])
    """

    def settings(self) -> dict[str, Any]:
        return {"direction": "inverse"}

    def evaluate(self, x: Tensor) -> Evaluation:
        return self.block.evaluate_inverse(x).inverted()

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        return self.block.evaluate(y).inverted()

    def evaluate_pair(self, x: Tensor, y: Tensor) -> Evaluation:
        # The block runs from y to x: with y at hand there is nothing to solve.
        return self.evaluate_inverse(y)
