r"""``(I + J) w = v`` and its transpose, for the gradient of the inverse."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import LinearSolveError, check_positive
from .linearization import Linearization
from .torch_modes import refuse_transforms


@dataclass(frozen=True)
class LinearSolve(ABC):
    """A way to solve with ``I + J``. To write one, define :meth:`__call__`."""

    @abstractmethod
    def __call__(
        self, linearization: Linearization, v: Tensor, *, transpose: bool, lipschitz: float
    ) -> Tensor:
        """``(I + J)^{-1} v``, or ``(I + J)^{-T} v``, shape ``(*batch, *event)``.

        Arguments:
            linearization: holds ``J``.
            v: the right-hand side, shape ``(*batch, *event)``.
            transpose: whether to solve with the transpose.
            lipschitz: a bound of ``||J||_2``, below 1.
        """


@dataclass(frozen=True)
class DenseSolve(LinearSolve):
    """By LU factors of the dense matrix: exact, for small D."""

    def __call__(
        self, linearization: Linearization, v: Tensor, *, transpose: bool, lipschitz: float
    ) -> Tensor:
        j = linearization.as_matrix()
        if transpose:
            j = j.mT
        eye = torch.eye(j.shape[-1], dtype=j.dtype, device=j.device)
        flat = v.reshape(*linearization.batch_shape, linearization.event_size, 1)
        return torch.linalg.solve(eye + j, flat).reshape(v.shape)


@dataclass(frozen=True)
class NeumannSolve(LinearSolve):
    r"""By the Neumann series :math:`w = \sum_k (-J)^k v`, one product for each term.

    Stops where the certified error :math:`\lVert r_k \rVert / (1 - L) \le
    \text{rtol} \lVert v \rVert` holds for every sample, which is after at most
    :math:`\log(\text{rtol}(1 - L)) / \log L` terms.

    Arguments:
        rtol: above 0; by default 1e-6 in float32, 1e-10 in float64.
    """

    rtol: float | None = None

    def __post_init__(self) -> None:
        if self.rtol is not None:
            check_positive(self.rtol, "rtol")

    def __call__(
        self, linearization: Linearization, v: Tensor, *, transpose: bool, lipschitz: float
    ) -> Tensor:
        refuse_transforms("The gradient of the inverse with more than 32 coordinates", v)
        product: Callable[[Tensor], Tensor] = linearization.vm if transpose else linearization.mv
        rtol = default_rtol(v.dtype) if self.rtol is None else self.rtol
        rtol = max(rtol, floor(v.dtype, lipschitz))
        # Solved at size 1, since the squares of a tiny v would underflow in its norm.
        largest = v.flatten(v.dim() - linearization.event_dim).abs().amax(-1)
        scale = largest.clamp(min=torch.finfo(v.dtype).tiny)
        scale = scale.reshape(*scale.shape, *(1,) * linearization.event_dim)
        v = v / scale
        size = linearization.norm(v)
        asked = (rtol * (1 - lipschitz)) * size
        steps = math.ceil(math.log(rtol * (1 - lipschitz)) / math.log(lipschitz)) + 1
        w = residual = v
        for _ in range(steps):
            residual = -product(residual)
            w = w + residual
            size = linearization.norm(residual)
            # A NaN is no reason to go on: it comes from v, and stays visible in w.
            if not bool((size > asked).any()):
                return w * scale
        raise LinearSolveError(
            f"The Neumann series did not reach the tolerance {rtol:.1e} in {steps} terms (worst "
            f"residual {float(size.max()):.1e}), so the Jacobian exceeds the bound {lipschitz:.3g}."
            " Correct the bound given with g."
        )


def default_rtol(dtype: torch.dtype) -> float:
    """The relative tolerance of an inverse: 1e-10 in float64, 1e-6 in lower precision."""
    return 1e-10 if dtype == torch.float64 else 1e-6


def floor(dtype: torch.dtype, lipschitz: float) -> float:
    r"""The relative error :math:`8\,\epsilon / (1 - L)` below which rounding hides the residual."""
    return 8 * torch.finfo(dtype).eps / (1 - lipschitz)


def auto_linear_solve(event_size: int) -> LinearSolve:
    """``DenseSolve()`` up to 32 coordinates, ``NeumannSolve()`` above."""
    return DenseSolve() if event_size <= 32 else NeumannSolve()
