"""The block as an nflows ``Transform``."""

from collections.abc import Sequence
from typing import Any, SupportsIndex, Unpack, cast

from nflows.transforms.base import Transform
from torch import Tensor

from ..._settings import SavedSettings
from ..._torch import COARSE, disable_compiler, unrounded
from ...blocks import Block
from ...errors import ArgumentError, check_dims, check_instance, check_positive_int
from ...options import BlockKeywords, BlockOptions


class IResNetTransform(SavedSettings, Transform):
    """An invertible block, such as :math:`y = x + g(x)` (Behrmann et al., 2019), for nflows.

    ``forward(inputs, context=None)`` and ``inverse(inputs, context=None)`` return
    ``(outputs, logabsdet)`` of shapes ``(batch, features)`` and ``(batch,)``. As with nflows' own
    transforms, a context is ignored if ``context_features`` is None, so that conditional and
    unconditional transforms stack.

    Arguments:
        features: the number of coordinates.
        hidden_features: the width of two hidden layers, or a sequence of widths; by default as in
            :class:`DenseContraction`.
        context_features: the size of the context, or None.
        options: ``block``, ``lipschitz``, ``activation``, ``norm``, ``coordinates``, ``logdet`` and
            ``solver`` as in :class:`BlockOptions`, and ``options``, a record to start from.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch
        >>> from nflows.distributions import StandardNormal
        >>> from nflows.flows import Flow
        >>> from nflows.transforms import CompositeTransform, LULinear
        >>> from pyro_iresnet import IResNetTransform
        >>> transform = CompositeTransform([IResNetTransform(5), LULinear(5), IResNetTransform(5)])
        >>> flow = Flow(transform, StandardNormal([5]))
        >>> flow.log_prob(torch.randn(3, 5)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        features: int,
        hidden_features: int | Sequence[int] | None = None,
        context_features: int | None = None,
        **options: Unpack[BlockKeywords],
    ) -> None:
        super().__init__()
        size = check_positive_int(features, "features")
        if context_features is not None:
            context_features = check_positive_int(context_features, "context_features")
        hidden = widths(hidden_features)
        record = BlockOptions.of(options, type(self), hidden_features=hidden)
        self.block = record.build(size, context_features)

    @classmethod
    def from_block(cls, block: Block) -> "IResNetTransform":
        """Make the transform of any :class:`Block`, or raise :class:`ArgumentTypeError`."""
        transform = cls.__new__(cls)
        Transform.__init__(transform)
        example = "ResidualBlock(DenseContraction(2))"
        transform.block = check_instance(block, Block, "block", example)
        return transform

    def settings(self) -> dict[str, Any]:
        # Pyro's transforms save the same, so each host loads the blocks of the other.
        return {"direction": "forward"}

    @property
    def options(self) -> object:
        """Return the :class:`BlockOptions` of the block, or None if no builder made the block."""
        return self.block.options

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate the block at ``inputs``; return the outputs and ``log|det|``.

        Shapes are ``(batch, features)`` and ``(batch, context_features)``. Another shape, dtype or
        device raises :class:`ArgumentError` or :class:`ArgumentTypeError`.
        """
        # The body of _checked: a training step pays for each call.
        block = self.block
        context = None if block.contraction.context_dim is None else context
        if getattr(inputs, "dtype", None) in COARSE or getattr(context, "dtype", None) in COARSE:
            inputs, context = self._unrounded(inputs, context)
        checked = block.check(inputs, context, "inputs")
        if inputs.dim() != 1 + len(block.contraction.event_shape):
            raise _batch_error(inputs, block.contraction.event_dim)
        evaluation = block.evaluate(*checked)
        return evaluation.y, evaluation.log_det()

    def encode(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the outputs of :meth:`forward`, without the cost of ``log|det|``."""
        return self.block.forward(*self._checked(inputs, context))

    @disable_compiler("its number of steps depends on the data")
    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Invert the block, to the solver's tolerance; shapes and errors as :meth:`forward`.

        :class:`InversionError` if a sample does not reach the tolerance, or is NaN or infinite.
        """
        evaluation = self.block.evaluate_inverse(*self._checked(inputs, context))
        return evaluation.x, -evaluation.log_det()

    @disable_compiler("its number of steps depends on the data")
    def decode(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the outputs of :meth:`inverse`, without the cost of ``log|det|``."""
        return self.block.evaluate_inverse(*self._checked(inputs, context)).x

    def _checked(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # nflows hands a context to every transform.
        contraction = self.block.contraction
        context = None if contraction.context_dim is None else context
        inputs, context = self._unrounded(inputs, context)
        checked = self.block.check(inputs, context, "inputs")
        if inputs.dim() != 1 + len(contraction.event_shape):
            raise _batch_error(inputs, contraction.event_dim)
        return checked

    def _unrounded(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # Autocast rounds the results of other transforms, and a block has full precision.
        like = next(self.block.parameters(), None)
        return unrounded(inputs, like), unrounded(context, like)


def _batch_error(inputs: Tensor, event_dim: int) -> ArgumentError:
    flat = f"inputs.flatten(0, -{event_dim + 1})"
    remedy = f"Flatten the batch: {flat}."
    if inputs.dim() == event_dim:
        remedy = "For a batch of one event, pass inputs[None]."
    elif event_dim == 1:
        # Rows of pixels look like vectors.
        remedy = f"If each row is an event, pass {flat}. An image takes a block of ConvContraction."
    return ArgumentError(
        "Expected inputs with one batch dimension before the event, as nflows has it; got shape "
        f"{tuple(inputs.shape)}. {remedy}"
    )


def widths(
    value: int | Sequence[int] | None, name: str = "hidden_features"
) -> Sequence[int] | None:
    """Return the widths of the hidden layers; one number stands for two layers of that width."""
    if value is None:
        return None
    # An array claims to be an index, whatever its shape.
    if isinstance(value, SupportsIndex) and not getattr(value, "shape", ()):
        return 2 * [check_positive_int(value, name)]
    return check_dims(cast(Sequence[int], value), name)
