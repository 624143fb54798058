r"""Solves of ``(I + J) w = v``: their base class, and the solve by the dense matrix."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from .._torch import COARSE, has_values
from ..errors import (
    ArgumentError,
    ContractionError,
    LinearSolveError,
    check_flag,
    check_instance,
    check_not_negative,
    check_tensor,
)
from .linearization import Linearization

# The coordinates up to which the dense Jacobian is cheaper than products with it.
DENSE = 16
# The relative error that rounding alone may leave.
COARSEST = 0.1


class Solved(NamedTuple):
    """The result of a linear solve.

    Arguments:
        value: the solution, with the shape of the right-hand side.
        products: the number of products with the Jacobian; shape ``(*batch,)``, or one number.
        failed: the mask of failed samples, shape ``(*batch,)``; None if a strategy tells of none.
            A sample fails if it misses the tolerance, or if its Jacobian exceeds its bound.
    """

    value: Tensor
    products: Tensor | int
    failed: Tensor | None = None


@dataclass(frozen=True)
class LinearSolve(ABC):
    """Base class of solves with ``I + J``. To write one, define :meth:`__call__`.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.operators import DenseSolve
        >>> g = DenseContraction(3)
        >>> at = g.linearize(torch.zeros(5, 3))
        >>> v = torch.ones(5, 3)
        >>> w = DenseSolve()(at, v, transpose=False, lipschitz=g.lipschitz).value
        >>> torch.allclose(w + at.mv(w), v, atol=1e-5)
        True
    """

    @abstractmethod
    def __call__(
        self,
        linearization: Linearization,
        v: Tensor,
        *,
        transpose: bool,
        lipschitz: float,
        throw: bool = True,
    ) -> Solved:
        """Return ``(I + J)^{-1} v``, or ``(I + J)^{-T} v`` with ``transpose``.

        Arguments:
            linearization: holds ``J``.
            v: the right-hand side, shape ``(*batch, *event)``.
            transpose: if True, solve with the transpose.
            lipschitz: a bound of ``||J||_2``, below 1.
            throw: if True, raise :class:`LinearSolveError` if a sample fails; else ``failed`` marks
                the sample.
        """


@dataclass(frozen=True)
class DenseSolve(LinearSolve):
    """Solve by LU factors of the dense matrix: exact, for small D.

    Raises:
        LinearSolveError: in a call: ``I + J`` is singular, or the solution shows a Jacobian above
            its bound.

    Example:
        >>> from pyro_iresnet import Newton
        >>> from pyro_iresnet.operators import DenseSolve
        >>> solver = Newton(linear_solve=DenseSolve())
    """

    def __call__(
        self,
        linearization: Linearization,
        v: Tensor,
        *,
        transpose: bool,
        lipschitz: float,
        throw: bool = True,
    ) -> Solved:
        check_solve(linearization, v, transpose, lipschitz, throw)
        j = linearization.as_matrix()
        if transpose:
            j = j.mT
        size = linearization.event_size
        flat = v.reshape(*linearization.batch_shape, size, 1)
        if j.dtype in COARSE:
            j, flat = j.float(), flat.float()
        eye = torch.eye(size, dtype=j.dtype, device=j.device)
        value, info = torch.linalg.solve_ex(eye + j, flat)
        value = value.reshape(v.shape).to(v.dtype)
        failed = (info != 0) | beyond_bound(v, value, lipschitz, linearization.event_dim)
        if throw and has_values(failed) and bool(failed.any()):
            raise LinearSolveError(
                f"I + J is singular, or ||J w|| > {lipschitz:.3g} ||w||, for {int(failed.sum())} "
                f"of {failed.numel()} samples, so the Jacobian exceeds its bound. Correct the "
                "bound given with g."
            )
        return Solved(value, size, failed)


def check_solve(
    linearization: Linearization, v: Tensor, transpose: bool, lipschitz: float, throw: bool
) -> None:
    """Raise unless the arguments of a :class:`LinearSolve` are right."""
    check_instance(linearization, Linearization, "linearization", "contraction.linearize(x)")
    at = linearization.value
    check_tensor(v, tuple(at.shape), at, "v", of="the linearization")
    check_flag(transpose, "transpose")
    check_flag(throw, "throw")
    if check_not_negative(lipschitz, "lipschitz") >= 1:
        raise ArgumentError(f"Expected lipschitz below 1; got {lipschitz}.")


def beyond_bound(
    v: Tensor, w: Tensor, lipschitz: float, event_dim: int, residual: Tensor | float = 0.0
) -> Tensor:
    """Return the mask of samples whose ``J w`` exceeds the bound of ``J`` by more than rounding.

    ``v`` and ``w`` are the right-hand side and the solution; ``J w`` is their difference.
    ``residual`` is an upper bound of the norm of ``v - (I + J) w``.
    """
    slack = 16 * torch.finfo(w.dtype).eps ** 0.5
    batch, event = v.shape[: v.dim() - event_dim], v.shape[v.dim() - event_dim :]
    flat = (u.reshape(*batch, event.numel()) for u in (w, v - w))
    size, moved = (torch.linalg.vector_norm(u, dim=-1) for u in flat)
    return moved > (lipschitz + slack) * size + residual


def default_rtol(dtype: torch.dtype) -> float:
    """Return the relative tolerance of an inverse: 1e-10 in float64, 1e-6 in lower precision."""
    return 1e-10 if dtype == torch.float64 else 1e-6


def floor(dtype: torch.dtype, lipschitz: float) -> float:
    r"""Return the relative error that rounding hides, :math:`8\,\epsilon / (1 - L)`."""
    return 8 * torch.finfo(dtype).eps / (1 - lipschitz)


def check_resolved(dtype: torch.dtype, lipschitz: float) -> float:
    """Return a Lipschitz constant, or raise if a dtype cannot tell it from 1."""
    if floor(dtype, lipschitz) > COARSEST:
        highest = 1 - 8 * torch.finfo(dtype).eps / COARSEST
        raise ArgumentError(
            f"Expected lipschitz of at most {highest:.7g}, which {dtype} tells from 1; got "
            f"{lipschitz}. Take a lower lipschitz, or float64: torch.set_default_dtype, or "
            "module.double()."
        )
    return lipschitz


def raise_unresolved(dtype: torch.dtype, lipschitz: float, what: str) -> NoReturn:
    """Raise for a result of which rounding leaves less than a digit."""
    raise ContractionError(
        f"Rounding in {dtype} leaves no digit of {what} at the Lipschitz bound {lipschitz:.6g}. "
        "Use float32 or float64, or a lower lipschitz."
    )
