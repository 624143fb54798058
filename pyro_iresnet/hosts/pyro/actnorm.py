"""ActNorm for Pyro: an affine map of each coordinate, started from data."""

import torch
from pyro.distributions import TransformModule
from torch import Tensor
from torch.distributions import constraints

from ...blocks import Evaluation
from ...errors import check_cache_size, check_positive_int, check_tensor
from ..data_dependent_init import DataDependentInit
from .cached_transform import CachedTransform


class ActNorm(CachedTransform, DataDependentInit, TransformModule):
    r"""A scale and a shift for each coordinate, :math:`y = e^{s} \circ x + t`, started from data.

    The first forward call in train mode with 16 finite rows or more sets ``s`` and ``t`` so that
    the output has mean 0 and standard deviation 1 in each coordinate (a constant coordinate keeps
    scale 1). Fewer rows do not tell a scale (of two standard normal points the deviation is below a
    tenth in one case of nine), so they leave the identity. Once ``s`` or ``t`` is not 0, only
    training changes them: a load, from Pyro's parameter store too, is a start; and after training
    with smaller batches a warning says that no data set the start. Call :meth:`eval` to look before
    you start.

    Under torch.distributed the rows of all ranks count together, as in ``SyncBatchNorm``: every
    rank has to make the calls before the start. Inside ``nn.DataParallel``, under torch.func and
    for a replaced parameter (``torch.func.functional_call``) nothing starts.

    Arguments:
        input_dim: the number of coordinates, at least 1. Another value, and an input of another
            shape, dtype or device, raise :class:`ArgumentError` or :class:`ArgumentTypeError`.
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

    def __init__(self, input_dim: int, *, cache_size: int = 1) -> None:
        size = check_positive_int(input_dim, "input_dim")
        super().__init__(size, cache_size=cache_size)
        self.input_dim = size

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one event."""
        return (self.input_dim,)

    def check(self, x: Tensor, name: str) -> Tensor:
        # A scale of another shape, such as a damaged file holds, would broadcast in x alone.
        check_tensor(x, tuple(self.log_scale.shape), self.log_scale, name)
        return x

    def evaluate(self, x: Tensor) -> Evaluation:
        self.start_from(x)
        return self._evaluation(x, x * self.log_scale.exp() + self.shift)

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        return self._evaluation((y - self.shift) * torch.exp(-self.log_scale), y)

    def evaluate_pair(self, x: Tensor, y: Tensor) -> Evaluation:
        # A question about a pair does not start.
        return self._evaluation(x, y)

    def with_cache(self, cache_size: int = 1) -> "ActNorm":
        """Return the transform, parameters shared, with another cache."""
        if check_cache_size(cache_size) == self._cache_size:
            return self
        other = ActNorm(self.input_dim, cache_size=cache_size)
        other._parameters = self._parameters
        other.training = self.training
        return other

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}"

    def _evaluation(self, x: Tensor, y: Tensor) -> Evaluation:
        log_scale, batch = self.log_scale, x.shape[:-1]
        slope = log_scale.detach()
        return Evaluation(
            x,
            y,
            log_det=lambda: log_scale.sum().expand(batch),
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
