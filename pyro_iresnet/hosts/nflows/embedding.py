"""The network between a context and the blocks."""

from torch import Tensor, nn

from ...errors import ArgumentError


class Embedding(nn.Sequential):
    """A user's network for a context of shape ``(batch, *context)``; a missing context raises."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)

    def forward(self, context: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if context is None:
            raise ArgumentError(
                "Expected a context for this conditional flow; got none. Pass it, as in "
                "flow.log_prob(inputs, context)."
            )
        return super().forward(context)
