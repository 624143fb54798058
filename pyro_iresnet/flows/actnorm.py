"""ActNorm for Pyro: an affine map of each coordinate, started from data."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..adapters.memo import Evaluated, MemoTransform
from ..errors import check_positive_int, check_tensor
from ..torch_modes import disable_compiler, in_torch_func
from .starts_from_data import StartsFromData


class ActNorm(StartsFromData, MemoTransform):
    r"""A scale and a shift for each coordinate, :math:`y = e^{s} \circ x + t`, started from data.

    The first forward call in train mode decides the start. With a batch of 16 rows or more, ``s``
    and ``t`` are set so that the output has mean 0 and standard deviation 1 in each coordinate (a
    constant coordinate keeps scale 1). Fewer rows do not tell a scale (of two standard normal
    points the deviation is below a tenth in one case of nine), so they leave the identity. After
    that call they change by training only. Call :meth:`eval` to look before you start.

    Arguments:
        input_dim: the number of coordinates.
        cache_size: 1 to remember the last call, 0 for none.

    Raises:
        ArgumentError, ArgumentTypeError: ``input_dim`` is not an integer of at least 1; in a call
            also an input of another shape, dtype or device.

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
        super().__init__(cache_size=cache_size)
        self.input_dim = check_positive_int(input_dim, "input_dim")
        self.log_scale = nn.Parameter(torch.zeros(input_dim))
        self.shift = nn.Parameter(torch.zeros(input_dim))
        self.register_buffer("initialized", torch.tensor(False))

    def evaluate(self, x: Tensor) -> Evaluated:
        check_tensor(x, (self.input_dim,), self.log_scale, "x")
        if self.training and not in_torch_func() and not self.has_started():
            self._start(x.detach().reshape(-1, self.input_dim))
        return x * self.log_scale.exp() + self.shift, lambda: self._logdet(x)

    def evaluate_inverse(self, y: Tensor) -> Evaluated:
        check_tensor(y, (self.input_dim,), self.log_scale, "y")
        return (y - self.shift) * torch.exp(-self.log_scale), lambda: self._logdet(y)

    def pushing(self, x: Tensor, logdet: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda w: w * torch.exp(-self.log_scale.detach())

    def with_cache(self, cache_size: int = 1) -> "ActNorm":
        """The same transform, parameters and buffer shared, with that cache."""
        if cache_size == self._cache_size:
            return self
        other = ActNorm(self.input_dim, cache_size=cache_size)
        other._parameters, other._buffers = self._parameters, self._buffers
        other.training = self.training
        return other

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}"

    @disable_compiler("ActNorm starts from the data of its first call: make that call uncompiled")
    @torch.no_grad()
    def _start(self, rows: Tensor) -> None:
        if not bool(self.initialized):
            self.standardise(rows)
            self.settle()

    def _logdet(self, x: Tensor) -> Tensor:
        return self.log_scale.sum().expand(x.shape[:-1])


def actnorm(input_dim: int) -> ActNorm:
    """An :class:`ActNorm` transform.

    Arguments:
        input_dim: the number of coordinates.

    Example:
        >>> actnorm(3)
        ActNorm(input_dim=3)
    """
    return ActNorm(input_dim)
