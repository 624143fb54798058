"""ActNorm for Pyro: an affine map of each coordinate or channel, started from data."""

import torch
from pyro.distributions import TransformModule
from torch import Tensor
from torch.distributions import constraints

from ...blocks import Evaluation
from ...errors import ArgumentError, check_positive_int, check_tensor
from ..data_dependent_init import DataDependentInit
from .cached_transform import CachedTransform
from .transform import reals


class ActNorm(CachedTransform, DataDependentInit, TransformModule):
    r"""A scale and a shift for each coordinate, :math:`y = e^{s} \circ x + t`, started from data.

    The first forward call in train mode with 16 finite rows or more sets ``s`` and ``t`` so that
    the output has mean 0 and standard deviation 1 in each coordinate (a constant coordinate keeps
    scale 1). Fewer rows do not tell a scale (of two standard normal points the deviation is below a
    tenth in one case of twelve), so they leave the identity. Once ``s`` or ``t`` is not 0, only
    training changes them: a load, from Pyro's parameter store too, is a start; and after training
    with smaller batches a warning says that no data set the start. Call :meth:`eval` to look before
    you start.

    Inside ``DistributedDataParallel`` the rows of all ranks count together, as in
    ``SyncBatchNorm``. Elsewhere each process starts from its own rows: if you average gradients by
    yourself, call once on data before, and broadcast the parameters. Inside ``nn.DataParallel``,
    under torch.func and for a replaced parameter (``torch.func.functional_call``) nothing starts.

    Arguments:
        input_dim: the number of coordinates, or of channels of images, at least 1. Another value,
            and an input of another shape, dtype or device, raise :class:`ArgumentError` or
            :class:`ArgumentTypeError`.
        event_dim: 1 for vectors; 3 for images, shape ``(channels, height, width)``; an image
            counts as one row.
        cache_size: 1 to remember the last call, 0 for no memory.

    Raises:
        ArgumentError, ArgumentTypeError: ``input_dim`` is not an integer of at least 1; in a call
            also an input of another shape, dtype or device.
        TracingError: ``torch.jit.trace`` before the start, in train mode.

    References:
        Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018).

    Example:
        >>> import torch
        >>> x = 3 + 2 * torch.randn(100, 2)
        >>> y = ActNorm(2)(x)
        >>> torch.allclose(y.std(0), torch.ones(2), atol=1e-4)
        True
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, input_dim: int, *, event_dim: int = 1, cache_size: int = 1) -> None:
        size = check_positive_int(input_dim, "input_dim")
        super().__init__(size, cache_size=cache_size)
        self.input_dim = size
        number = check_positive_int(event_dim, "event_dim")
        if number not in (1, 3):
            raise ArgumentError(
                f"Expected event_dim to be 1 for vectors or 3 for images; got {event_dim}."
            )
        if number == 3:
            self.domain = self.codomain = reals(3)
        # The shape of a parameter that broadcasts against an event.
        self._spread = (size, *(number - 1) * (1,))

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one event, with -1 for a size that may vary."""
        return (self.input_dim, *(len(self._spread) - 1) * (-1,))

    def check(self, x: Tensor, name: str) -> Tensor:
        # A scale of another shape, such as a damaged file holds, would broadcast in x alone.
        sides = (len(self._spread) - 1) * (-1,)
        check_tensor(x, (*self.log_scale.shape, *sides), self.log_scale, name)
        return x

    def evaluate(self, x: Tensor) -> Evaluation:
        self.start_from(x, dim=-len(self._spread))
        scale, shift = self.log_scale.exp(), self.shift
        y = x * scale.reshape(self._spread) + shift.reshape(self._spread)
        return self._evaluation(x, y)

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        scale = torch.exp(-self.log_scale)
        x = (y - self.shift.reshape(self._spread)) * scale.reshape(self._spread)
        return self._evaluation(x, y)

    def evaluate_pair(self, x: Tensor, y: Tensor) -> Evaluation:
        # A question about a pair does not start.
        return self._evaluation(x, y)

    def extra_repr(self) -> str:
        shown = f"input_dim={self.input_dim}"
        return shown if len(self._spread) == 1 else f"{shown}, event_dim={len(self._spread)}"

    def _evaluation(self, x: Tensor, y: Tensor) -> Evaluation:
        log_scale, event_dim = self.log_scale, len(self._spread)
        batch = x.shape[: x.dim() - event_dim]
        pixels = x.shape[x.dim() - event_dim + 1 :].numel()
        slope = log_scale.detach().reshape(self._spread)
        return Evaluation(
            x,
            y,
            log_det=lambda: (pixels * log_scale.sum()).expand(batch),
            vjp=lambda w: w * slope.exp(),
            inverse_vjp=lambda w: w * torch.exp(-slope),
        )


def actnorm(input_dim: int) -> ActNorm:
    """Make an :class:`ActNorm` transform of ``input_dim`` coordinates.

    Example:
        >>> actnorm(3)
        ActNorm(input_dim=3)
    """
    return ActNorm(input_dim)
