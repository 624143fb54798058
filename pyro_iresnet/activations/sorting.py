"""Activations that sort: they permute entries, and so keep every length."""

import torch
from torch import Tensor

from ..errors import ArgumentError, check_positive_int, check_tensor
from ..operators import LinearMap, Permutation
from .base import Activation


class GroupSort(Activation):
    """Sorts each group of neighbouring entries, smallest first.

    The Jacobian is a permutation, so every gradient keeps its length. Networks of unit norm with
    GroupSort are universal among 1-Lipschitz functions; networks with elementwise activations are
    not (Anil et al. 2019, Theorem 3). So GroupSort suits classifiers and critics. It does not suit
    densities: it is piecewise linear, so the gradient of the log-determinant does not see how the
    Jacobian depends on ``x``, and the density jumps from piece to piece.

    Arguments:
        size: the size of a group, an integer of at least 2 that divides the width of the layer
            before, no convolution; else :class:`ArgumentError` or :class:`ArgumentTypeError`. By
            default 2, for pairs, also called MaxMin.

    Raises:
        ArgumentError, ArgumentTypeError: ``size`` is no integer of at least 2; in a network also if
            ``size`` does not divide the width, or if the layer before is a convolution.

    References:
        Sorting out Lipschitz Function Approximation (Anil, Lucas and Grosse, 2019).

    Example:
        >>> import torch
        >>> GroupSort()(torch.tensor([3.0, 1.0, 0.0, 2.0]))
        tensor([1., 3., 0., 2.])
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.size = check_positive_int(size, "size")
        if self.size < 2:
            raise ArgumentError(f"Expected size to be at least 2; got {size}.")

    def follow(self, width: int, event_dim: int = 1) -> None:
        if width % self.size:
            raise ArgumentError(
                f"Expected hidden widths that are multiples of {self.size}, which {self} sorts "
                f"together; got {width}."
            )

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x, (-1,), None, "x")
        return self._sort(x)[0]

    def linearize(self, x: Tensor, event_dim: int = 1) -> tuple[Tensor, LinearMap]:
        if event_dim != 1:
            raise ArgumentError(f"Expected events of one dimension for {self}; got {event_dim}.")
        value, order = self._sort(x)
        return value, Permutation(order)

    def extra_repr(self) -> str:
        return f"size={self.size}"

    def _sort(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sorted groups, and the position of each entry before sorting."""
        self.follow(x.shape[-1])
        groups = x.unflatten(-1, (-1, self.size))
        value, order = groups.sort(-1)
        start = torch.arange(0, x.shape[-1], self.size, device=x.device)
        return value.flatten(-2), (order + start[:, None]).flatten(-2)
