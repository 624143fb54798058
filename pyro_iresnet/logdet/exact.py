"""The exact log-determinant, from the dense Jacobian."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..linearization import Linearization
from ..torch_modes import in_torch_func, is_tracing
from .base import LogDet

# How many numbers one pass may hold in its largest tensor: 2^25 in float32 are 128 MiB, and some
# four such tensors are alive at a time.
LARGEST = 2**25


@dataclass(frozen=True)
class Exact(LogDet):
    r"""``log|det(I + J)|`` of the dense Jacobian: no variance, no bias, repeatable.

    In closed form for matrices of side 1, 2 and 3, by LU factors above. The side is D, or the width
    k of the narrowest hidden layer where that is smaller, by Sylvester's identity
    :math:`\det(I_D + L R) = \det(I_k + R L)`. Costs that many products with J, as one batched pass
    from the cheaper side, and a factorisation; large batches are taken in parts, so that the
    memory of an evaluation stays bounded. Differentiable to any order. Reading report Eq. 17; the
    sign is positive for a contraction.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> g = DenseContraction(2)
        >>> Exact()(g.linearize(torch.zeros(5, 2)), lipschitz=g.lipschitz).shape
        torch.Size([5])
    """

    def __call__(self, linearization: Linearization, *, lipschitz: float) -> Tensor:
        count = linearization.batch_shape.numel()
        size = linearization.event_size
        at_once = max(1, LARGEST // (size * max(size, *linearization.jacobian.widths(), 1)))
        if count <= at_once or is_tracing():
            return self._of(linearization)
        parts = torch.arange(count, device=linearization.value.device).split(at_once)
        return torch.cat([self._of(linearization.select(part)) for part in parts]).reshape(
            linearization.batch_shape
        )

    def _of(self, linearization: Linearization) -> Tensor:
        j = linearization.narrowed_matrix()
        match j.shape[-1]:
            case 1:
                return torch.log1p(j[..., 0, 0])
            case 2:
                return torch.log(
                    _det2(1 + j[..., 0, 0], j[..., 0, 1], j[..., 1, 0], 1 + j[..., 1, 1])
                )
            case 3:
                return torch.log(_det3(j))
            case size:
                eye = torch.eye(size, dtype=j.dtype, device=j.device)
                return _logabsdet(eye + j)


def _logabsdet(a: Tensor) -> Tensor:
    if in_torch_func():
        # Forward mode under vmap, which is how torch.func.hessian goes over a batch, gives wrong
        # numbers for slogdet and solve (torch 2.13); for LU factors it gives right ones.
        factors, _ = torch.linalg.lu_factor(a)
        return factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return torch.linalg.slogdet(a).logabsdet


def _det2(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return a * d - b * c


def _det3(j: Tensor) -> Tensor:
    """``det(I + j)`` of 3 x 3 matrices, along the first row."""
    a, b, c = 1 + j[..., 0, 0], j[..., 0, 1], j[..., 0, 2]
    d, e, f = j[..., 1, 0], 1 + j[..., 1, 1], j[..., 1, 2]
    g, h, i = j[..., 2, 0], j[..., 2, 1], 1 + j[..., 2, 2]
    return a * _det2(e, f, h, i) - b * _det2(d, f, g, i) + c * _det2(d, e, g, h)
