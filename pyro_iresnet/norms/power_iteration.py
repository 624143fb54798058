"""Power iteration, a lower bound."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import check_positive_int, store_checked
from .base import Norm
from .checks import check_weight


@dataclass(frozen=True)
class PowerIteration(Norm):
    r"""Power iteration (Miyato et al. 2018): a LOWER bound.

    .. math:: v \leftarrow W^\top u / \lVert W^\top u \rVert,\quad
              u \leftarrow W v / \lVert W v \rVert,\quad \lVert W \rVert_2 \approx u^\top W v

    The result is never above ``||W||_2``, so weights scaled by it may exceed the bound:
    ``lipschitz_bound()`` then gives their exact norm, and ``inverse`` refuses a contraction whose
    proven bound is 1 or more. Every call starts from the same vector, so the norm is a pure
    function of W. The gradient is :math:`u v^\top`, with ``u`` and ``v`` held fixed.

    Arguments:
        steps: iterations, an integer of at least 1.

    Raises:
        ArgumentError, ArgumentTypeError: ``steps`` is no integer of at least 1.

    Example:
        >>> import torch
        >>> norm = PowerIteration(steps=50)
        >>> round(norm(torch.diag(torch.tensor([3.0, 1.0]))).item(), 4)
        3.0
    """

    steps: int = 10

    def __post_init__(self) -> None:
        store_checked(self, check_positive_int, "steps")

    @property
    def certified(self) -> bool:
        return False

    def __call__(self, weight: Tensor) -> Tensor:
        check_weight(weight)
        with torch.no_grad():
            tiny = torch.finfo(weight.dtype).tiny
            # A vector of ones is orthogonal to the leading singular vector of many a structured W;
            # the slope makes this a coincidence of measure zero.
            rows = weight.shape[-2]
            u = torch.linspace(1.0, 2.0, rows, dtype=weight.dtype, device=weight.device)[:, None]
            v = u
            for _ in range(self.steps):
                v = weight.mH @ u
                v = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True).clamp(min=tiny)
                u = weight @ v
                u = u / torch.linalg.vector_norm(u, dim=-2, keepdim=True).clamp(min=tiny)
        return (u.conj() * (weight @ v)).sum((-2, -1)).real
