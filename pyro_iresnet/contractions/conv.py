"""The convolutional contraction."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from ..activations import Activation, LipSwish, make_activations
from ..errors import ArgumentError, check_dims
from ..norms import Cholesky, Norm
from .film import FiLM, MakeConditioner, make_conditioner
from .layers import Conv
from .sequential import Perceptron

PADDINGS = ("zeros", "circular")


class ConvContraction(Perceptron):
    """A convolutional network for images with a proven Lipschitz bound.

    Kernels have sides 3, 1, ..., 1, 3 and stride 1, with activations between them, as in Behrmann
    et al. (2019), Section 5. The bound of each operator holds for images of any size
    (:mod:`pyro_iresnet.norms.convolution`). The acting weights do not depend on the size of the
    image, so one network serves all sizes. A context shifts and gates the channels.

    Arguments:
        event_shape: channels, height and width; the network takes other heights and widths too.
        hidden_channels: the channels of the hidden layers; default two of ``8 * channels``, at
            least 32 and at most 256.
        padding: ``"zeros"``, or ``"circular"`` for an image that goes on at its other side.
        activation: an :class:`Activation` class, or a callable that makes one; by default
            :class:`LipSwish`.
        context_dim, lipschitz, norm, conditioner: as in :class:`DenseContraction`, with the
            same errors.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Invertible Residual Networks (Behrmann et al., 2019), Section 5; The Singular Values of
        Convolutional Layers (Sedghi, Gupta and Long, 2019).

    Example:
        >>> import torch
        >>> g = ConvContraction((1, 8, 8), [16, 16], lipschitz=0.9)
        >>> g(torch.zeros(5, 1, 8, 8)).shape, g(torch.zeros(5, 1, 12, 9)).shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5, 1, 12, 9]))
    """

    kind = nn.Conv2d

    def __init__(
        self,
        event_shape: Sequence[int],
        hidden_channels: Sequence[int] | None = None,
        *,
        context_dim: int | None = None,
        lipschitz: float = 0.97,
        padding: str = "zeros",
        activation: Callable[[], Activation] = LipSwish,
        norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
        conditioner: MakeConditioner = FiLM,
    ) -> None:
        shape = check_dims(event_shape, "event_shape", "(1, 28, 28)")
        if len(shape) != 3:
            raise ArgumentError(
                f"Expected event_shape to be (channels, height, width); got {tuple(shape)}."
            )
        if padding not in PADDINGS:
            raise ArgumentError(f"Expected padding to be one of {PADDINGS}; got {padding!r}.")
        channels = shape[0]
        super().__init__((channels, -1, -1), context_dim, lipschitz, norm)
        if hidden_channels is None:
            hidden_channels = 2 * [min(max(32, 8 * channels), 256)]
        hidden = check_dims(hidden_channels, "hidden_channels")
        self.image_shape = shape
        self.padding = padding
        self.affine = partial(Conv, circular=padding == "circular")
        self.activations = make_activations(activation, hidden, len(shape))
        sides = [3, *[1] * (len(hidden) - 1), 3] if hidden else [3]
        self.layers = nn.ModuleList(
            nn.Conv2d(n_in, n_out, side)
            for n_in, n_out, side in zip(
                (channels, *hidden), (*hidden, channels), sides, strict=True
            )
        )
        self.conditioner = make_conditioner(conditioner, context_dim, hidden or (channels,))

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "padding": self.padding}

    def extra_repr(self) -> str:
        return (
            f"event_shape={self.image_shape}, padding={self.padding}, lipschitz={self.lipschitz}, "
            f"norm={self.norm}"
        )
