r"""``(I + J) w = v`` and its transpose: in Newton's method, and in the gradient of the inverse."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from .errors import LinearSolveError, check_positive, check_positive_int
from .linear_maps import LinearMap
from .linearization import Linearization
from .torch_modes import refuse_transforms


class Solved(NamedTuple):
    """What a linear solve returns.

    Arguments:
        value: the solution, the shape of the right-hand side.
        products: how many products with the Jacobian it took; shape ``(*batch,)``, or one number.
        failed: the mask of the samples that missed the tolerance, shape ``(*batch,)``; None if none
            did.
    """

    value: Tensor
    products: Tensor | int
    failed: Tensor | None = None


@dataclass(frozen=True)
class LinearSolve(ABC):
    """A way to solve with ``I + J``. To write one, define :meth:`__call__`."""

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
        """``(I + J)^{-1} v``, or ``(I + J)^{-T} v``.

        Arguments:
            linearization: holds ``J``.
            v: the right-hand side, shape ``(*batch, *event)``.
            transpose: whether to solve with the transpose.
            lipschitz: a bound of ``||J||_2``, below 1.
            throw: raise where a sample fails; else what is returned says which did.

        Raises:
            LinearSolveError: with ``throw``, if a sample misses the tolerance.
        """


@dataclass(frozen=True)
class DenseSolve(LinearSolve):
    """By LU factors of the dense matrix: exact, for small D.

    Example:
        >>> from pyro_iresnet import DenseSolve, Newton
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
        j = linearization.as_matrix()
        if transpose:
            j = j.mT
        size = linearization.event_size
        eye = torch.eye(size, dtype=j.dtype, device=j.device)
        flat = v.reshape(*linearization.batch_shape, size, 1)
        if throw:
            return Solved(torch.linalg.solve(eye + j, flat).reshape(v.shape), size)
        value, info = torch.linalg.solve_ex(eye + j, flat)
        return Solved(value.reshape(v.shape), size, info != 0)


@dataclass(frozen=True)
class Product:
    """``v -> J v``, or ``J^T v``, for rows."""

    jacobian: LinearMap
    transpose: bool

    def __call__(self, v: Tensor) -> Tensor:
        return self.jacobian.vm(v) if self.transpose else self.jacobian.mv(v)

    def select(self, index: Tensor) -> "Product":
        return Product(self.jacobian.select(index), self.transpose)


class State(Protocol):
    """What an iterative solve carries from step to step, one entry for each row."""

    def select(self, index: Tensor) -> Self:
        """That of the rows ``index`` only."""
        ...


@dataclass(frozen=True)
class IterativeSolve(LinearSolve):
    r"""By products with ``J`` alone, one for each step.

    A sample leaves the batch where its error is certified, :math:`\lVert v - (I + J) w \rVert /
    (1 - L) \le \text{rtol} \lVert v \rVert`. To write one, define :meth:`init` and :meth:`step`; a
    step has to shrink the residual by L at least, as a term of the Neumann series does.

    Attributes:
        rtol: above 0; by default 1e-6 in float32, 1e-10 in float64.
    """

    rtol: float | None = None

    def __post_init__(self) -> None:
        if self.rtol is not None:
            check_positive(self.rtol, "rtol")

    @abstractmethod
    def init(self) -> State:
        """The state before the first step."""

    @abstractmethod
    def step(self, product: Product, residual: Tensor, state: Any) -> tuple[Tensor, Tensor, State]:
        """What to add to ``w``, the residual after that, and the next state.

        Arguments:
            product: multiplies rows by ``J``, or its transpose.
            residual: ``v - (I + J) w``, shape ``(n, *event)``.
            state: as the last step left it.
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
        refuse_transforms("The gradient of the inverse with more than 32 coordinates", v)
        rtol = default_rtol(v.dtype) if self.rtol is None else self.rtol
        rtol = max(rtol, floor(v.dtype, lipschitz))
        batch = linearization.batch_shape
        if batch.numel() == 0:
            return Solved(v.clone(), 0)
        rows = torch.arange(batch.numel(), device=v.device)
        residual = v.reshape(-1, *linearization.event_shape)
        # Solved at size 1, since the squares of a tiny v would underflow in its norm.
        scale = residual.flatten(1).abs().amax(1).clamp(min=torch.finfo(v.dtype).tiny)
        scale = scale.reshape(-1, *(1,) * linearization.event_dim)
        residual = residual / scale
        jacobian = linearization.jacobian
        product = Product(jacobian if len(batch) == 1 else jacobian.select(rows), transpose)
        asked = rtol * (1 - lipschitz) * _norm(residual)
        w, products = torch.zeros_like(residual), torch.zeros_like(rows)
        state = self.init()
        limit = math.ceil(math.log(rtol * (1 - lipschitz)) / math.log(lipschitz)) + 2
        for k in range(1, limit + 1):
            step, residual, state = self.step(product, residual, state)
            w.index_add_(0, rows, step)
            # A NaN is no reason to go on: it comes from v, and stays visible in w.
            waits = _norm(residual) > asked
            if not bool(waits.all()):
                products[rows[~waits]] = k
                kept = torch.nonzero(waits).reshape(-1)
                if len(kept) == 0:
                    return Solved((w * scale).reshape(v.shape), products.reshape(batch))
                rows, residual, asked = rows[kept], residual[kept], asked[kept]
                product, state = product.select(kept), state.select(kept)
        worst = float((_norm(residual) / asked).max()) * rtol
        if throw:
            raise LinearSolveError(
                f"{type(self).__name__} did not reach the tolerance {rtol:.1e} in {limit} products "
                f"for {len(rows)} of {len(products)} samples (worst error bound {worst:.1e}), so "
                f"the Jacobian exceeds the bound {lipschitz:.3g}. Correct the bound given with g."
            )
        products[rows] = limit
        failed = torch.zeros_like(products, dtype=torch.bool)
        failed[rows] = True
        return Solved((w * scale).reshape(v.shape), products.reshape(batch), failed.reshape(batch))


@dataclass(frozen=True)
class NeumannSolve(IterativeSolve):
    r"""By the Neumann series :math:`w = \sum_k (-J)^k v`.

    Arguments:
        rtol: above 0; by default 1e-6 in float32, 1e-10 in float64.

    Example:
        >>> from pyro_iresnet import NeumannSolve, Newton
        >>> solver = Newton(linear_solve=NeumannSolve(rtol=0.1))
    """

    def init(self) -> "_Basis":
        return _Basis()

    def step(
        self, product: Product, residual: Tensor, state: "_Basis"
    ) -> tuple[Tensor, Tensor, "_Basis"]:
        return residual, -product(residual), state


@dataclass(frozen=True)
class KrylovSolve(IterativeSolve):
    r"""By generalized conjugate residuals: the least residual over the Krylov space.

    In exact arithmetic it is GMRES: after k products the residual is the least that any polynomial
    of degree k in J gives, where the Neumann series takes one polynomial for all. After ``restart``
    directions it starts afresh.

    Arguments:
        rtol: above 0; by default 1e-6 in float32, 1e-10 in float64.
        restart: how many directions to keep, at least 1; two vectors for each.

    References:
        Variational Iterative Methods for Nonsymmetric Systems of Linear Equations (Eisenstat,
        Elman and Schultz, 1983).

    Example:
        >>> from pyro_iresnet import KrylovSolve, Newton
        >>> solver = Newton(linear_solve=KrylovSolve(rtol=0.1))
    """

    restart: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int(self.restart, "restart")

    def init(self) -> "_Basis":
        return _Basis()

    def step(
        self, product: Product, residual: Tensor, state: "_Basis"
    ) -> tuple[Tensor, Tensor, "_Basis"]:
        if len(state.steps) == self.restart:
            state = _Basis()
        step, image = residual, residual + product(residual)
        for earlier, its_image in zip(state.steps, state.images, strict=True):
            share = _dot(its_image, image)
            step, image = step - share * earlier, image - share * its_image
        size = _dot(image, image).sqrt().clamp(min=torch.finfo(image.dtype).tiny)
        step, image = step / size, image / size
        share = _dot(image, residual)
        state = _Basis([*state.steps, step], [*state.images, image])
        return share * step, residual - share * image, state


@dataclass(frozen=True)
class _Basis:
    """Directions, and their orthonormal images under ``I + J``."""

    steps: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)

    def select(self, index: Tensor) -> "_Basis":
        return _Basis([v[index] for v in self.steps], [v[index] for v in self.images])


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row, to multiply rows with."""
    return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.dim() - 1))


def default_rtol(dtype: torch.dtype) -> float:
    """The relative tolerance of an inverse: 1e-10 in float64, 1e-6 in lower precision."""
    return 1e-10 if dtype == torch.float64 else 1e-6


def floor(dtype: torch.dtype, lipschitz: float) -> float:
    r"""The relative error :math:`8\,\epsilon / (1 - L)` below which rounding hides the residual."""
    return 8 * torch.finfo(dtype).eps / (1 - lipschitz)


def auto_linear_solve(event_size: int) -> LinearSolve:
    """``DenseSolve()`` up to 32 coordinates, ``KrylovSolve()`` above."""
    return DenseSolve() if event_size <= 32 else KrylovSolve()
