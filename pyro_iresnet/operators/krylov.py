r"""Solves of ``(I + J) w = v`` by products with ``J`` alone."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from .._torch import refuse_transforms
from ..errors import (
    ArgumentError,
    LinearSolveError,
    check_positive,
    check_positive_int,
    store_checked,
)
from .linear_map import LinearMap, row_norm
from .linearization import Linearization
from .solve import DENSE, LinearSolve, Solved, beyond_bound, check_solve, default_rtol, floor

# Rows that have ended leave once the share of the others is as small: a copy of all tensors costs
# more than a few rows too many.
KEPT = 3 / 4


@dataclass(frozen=True)
class Product:
    """The product ``v -> J v``, or ``v -> J^T v``, of each row."""

    jacobian: LinearMap
    transpose: bool

    def __call__(self, v: Tensor) -> Tensor:
        return self.jacobian.vm(v) if self.transpose else self.jacobian.mv(v)

    def select(self, index: Tensor) -> "Product":
        return Product(self.jacobian.select(index), self.transpose)


class State(Protocol):
    """The state of an iterative solve between two steps, one entry for each row."""

    def select(self, index: Tensor) -> Self:
        """Return the state of the rows ``index`` only."""
        ...


@dataclass(frozen=True)
class IterativeSolve(LinearSolve):
    r"""Base class of solves by products with ``J`` alone, one product for each step.

    A sample leaves the batch once its error is certified, :math:`\lVert v - (I + J) w \rVert /
    (1 - L) \le \text{rtol} \lVert v \rVert`. An error at the floor of the arithmetic is enough,
    :math:`8 \epsilon / (1 - L)` relative to the larger of v and w. A step returns the residual
    that it leaves. If rounding may have moved this residual, it is computed anew before the sample
    leaves.

    To write one, define :meth:`init` and :meth:`step`. A step must shrink the residual by the
    factor L at least, as a term of the Neumann series does.
    """

    rtol: float | None = None

    def __post_init__(self) -> None:
        if self.rtol is not None:
            store_checked(self, check_positive, "rtol")
            if self.rtol > 1:
                raise ArgumentError(f"Expected rtol in (0, 1]; got {self.rtol}.")

    @abstractmethod
    def init(self) -> State:
        """Return the state before the first step."""

    @abstractmethod
    def step(self, product: Product, residual: Tensor, state: Any) -> tuple[Tensor, Tensor, State]:
        """Return the increment of ``w``, the residual after it, and the next state.

        ``product`` multiplies rows by ``J``, or by its transpose; ``residual`` is
        ``v - (I + J) w``, shape ``(n, *event)``.
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
        refuse_transforms(f"The gradient of the inverse with more than {DENSE} coordinates", v)
        rtol = default_rtol(v.dtype) if self.rtol is None else self.rtol
        rtol = max(rtol, floor(v.dtype, lipschitz))
        batch = linearization.batch_shape
        if batch.numel() == 0:
            return Solved(v.clone(), 0)
        rows = torch.arange(batch.numel(), device=v.device)
        residual = v.reshape(-1, *linearization.event_shape)
        # Scaled to size 1: the squares of a tiny v would underflow in its norm.
        scale = residual.flatten(1).abs().amax(1).clamp(min=torch.finfo(v.dtype).tiny)
        scale = scale.reshape(-1, *(1,) * linearization.event_dim)
        right = residual = residual / scale
        jacobian = linearization.jacobian
        product = Product(jacobian if len(batch) == 1 else jacobian.select(rows), transpose)
        asked = rtol * (1 - lipschitz) * row_norm(residual)
        w, ended = torch.zeros_like(residual), torch.zeros_like(rows, dtype=torch.bool)
        work = _Work(rows, w, right, asked, ended)
        value, products = torch.zeros_like(residual), torch.zeros_like(rows)
        missed, small = ended, asked
        state, at_work = self.init(), len(rows)
        limit = _limit(rtol, lipschitz)
        for k in range(1, limit + 1):
            step, residual, state = self.step(product, residual, state)
            work.w.add_(step)
            # A NaN is no reason to go on: it comes from v, and stays visible in w.
            waits = row_norm(residual) > work.asked
            if bool((waits | work.ended).all()):
                continue
            residual, waits = work.certified(product, residual, waits)
            index = torch.nonzero(~(waits | work.ended)).reshape(-1)
            there = work.rows.index_select(0, index)
            value.index_copy_(0, there, work.w.index_select(0, index))
            products[there] = k
            at_work -= len(index)
            if at_work == 0:
                break
            work = replace(work, ended=work.ended | ~waits)
            if at_work <= KEPT * len(work.rows):
                kept = torch.nonzero(~work.ended).reshape(-1)
                work, residual = work.select(kept), residual.index_select(0, kept)
                product, state = product.select(kept), state.select(kept)
        else:
            kept = torch.nonzero(~work.ended).reshape(-1)
            there = work.rows.index_select(0, kept)
            value.index_copy_(0, there, work.w.index_select(0, kept))
            products[there] = limit
            missed = torch.zeros_like(missed).index_fill(0, there, True)
        failed = missed | beyond_bound(right, value, lipschitz, linearization.event_dim, small)
        if throw and bool(failed.any()):
            seen = (
                f"did not reach the tolerance {rtol:.1e} in {limit} products"
                if bool(missed.any())
                else f"found ||J w|| > {lipschitz:.3g} ||w||"
            )
            raise LinearSolveError(
                f"{type(self).__name__} {seen} for {int(failed.sum())} of {len(failed)} samples, "
                f"so the Jacobian exceeds the bound {lipschitz:.3g}. Correct the bound given "
                "with g."
            )
        return Solved(
            (value * scale).reshape(v.shape), products.reshape(batch), failed.reshape(batch)
        )


def _limit(rtol: float, lipschitz: float) -> int:
    """Return the number of products that the Neumann series needs, and ten more for rounding."""
    if lipschitz == 0.0:
        return 3
    return math.ceil(math.log(rtol * (1 - lipschitz)) / math.log(lipschitz)) + 10


@dataclass(frozen=True)
class _Work:
    """The rows at work.

    Arguments:
        rows: the place in the batch.
        w: the solution so far, written in place.
        right: the right-hand side.
        asked: the norm of a residual that is small enough.
        ended: True if the row has ended, and waits to leave.
    """

    rows: Tensor
    w: Tensor
    right: Tensor
    asked: Tensor
    ended: Tensor

    def select(self, index: Tensor) -> "_Work":
        return _Work(*(v.index_select(0, index) for v in vars(self).values()))

    def certified(self, product: Product, residual: Tensor, waits: Tensor) -> tuple[Tensor, Tensor]:
        """Return residuals and the mask of rows that go on, with a second look at rows that leave.

        ``residual`` is that of the last step, and ``waits`` the mask of rows that go on by it.
        """
        eps = torch.finfo(self.w.dtype).eps
        size = row_norm(self.w)
        doubtful = ~(waits | self.ended) & (self.asked < 512 * eps * size)
        index = torch.nonzero(doubtful).reshape(-1)
        if len(index) == 0:
            return residual, waits
        at = self.w.index_select(0, index)
        true = self.right.index_select(0, index) - at - product.select(index)(at)
        enough = torch.maximum(self.asked, 8 * eps * size).index_select(0, index)
        residual = residual.index_copy(0, index, true)
        return residual, waits.index_copy(0, index, row_norm(true) > enough)


@dataclass(frozen=True)
class NeumannSolve(IterativeSolve):
    r"""Solve by the Neumann series :math:`w = \sum_k (-J)^k v`.

    Arguments:
        rtol: relative tolerance, in (0, 1]; by default 1e-6 in float32, 1e-10 in float64.

    Raises:
        ArgumentError, ArgumentTypeError: ``rtol`` outside (0, 1].
        LinearSolveError: in a call: a sample did not reach the tolerance.

    Example:
        >>> from pyro_iresnet import Newton
        >>> from pyro_iresnet.operators import NeumannSolve
        >>> solver = Newton(linear_solve=NeumannSolve(rtol=0.1))
    """

    def init(self) -> "_Stateless":
        return _Stateless()

    def step(
        self, product: Product, residual: Tensor, state: "_Stateless"
    ) -> tuple[Tensor, Tensor, "_Stateless"]:
        return residual, -product(residual), state


class _Stateless:
    """The empty state."""

    def select(self, index: Tensor) -> "_Stateless":
        return self


@dataclass(frozen=True)
class KrylovSolve(IterativeSolve):
    """Solve by generalized conjugate residuals: the least residual over the Krylov space.

    In exact arithmetic this is GMRES: after k products the residual is the least that any
    polynomial of degree k in J gives. The Neumann series takes one polynomial for every J. After
    ``restart`` directions the solve starts afresh.

    Arguments:
        rtol: as in :class:`NeumannSolve`, with the same errors.
        restart: the number of directions to keep, an integer of at least 1; each takes two vectors.

    Raises:
        ArgumentError, ArgumentTypeError: ``rtol`` outside (0, 1], or ``restart`` no integer of at
            least 1.
        LinearSolveError: in a call: a sample did not reach the tolerance.

    References:
        Variational Iterative Methods for Nonsymmetric Systems of Linear Equations (Eisenstat, Elman
        and Schultz, 1983).

    Example:
        >>> from pyro_iresnet import Newton
        >>> from pyro_iresnet.operators import KrylovSolve
        >>> solver = Newton(linear_solve=KrylovSolve(rtol=0.1))
    """

    restart: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        store_checked(self, check_positive_int, "restart")

    def init(self) -> "_Basis":
        return _Basis()

    def step(
        self, product: Product, residual: Tensor, state: "_Basis"
    ) -> tuple[Tensor, Tensor, "_Basis"]:
        step, image = residual, residual + product(residual)
        if len(state.steps) == self.restart:
            state = _Basis()
        shares = [_dot(other, image) for other in state.images]
        for share, other_step, other in zip(shares, state.steps, state.images, strict=True):
            step = torch.addcmul(step, share, other_step, value=-1)
            image = torch.addcmul(image, share, other, value=-1)
        size = _dot(image, image).sqrt().clamp(min=torch.finfo(image.dtype).tiny)
        step, image = step / size, image / size
        share = _dot(image, residual)
        rest = torch.addcmul(residual, share, image, value=-1)
        return share * step, rest, _Basis((*state.steps, step), (*state.images, image))


@dataclass(frozen=True)
class _Basis:
    """Directions, and their orthonormal images under ``I + J``; each of shape ``(n, *event)``."""

    steps: tuple[Tensor, ...] = ()
    images: tuple[Tensor, ...] = ()

    def select(self, index: Tensor) -> "_Basis":
        steps, images = ([v.index_select(0, index) for v in vs] for vs in (self.steps, self.images))
        return _Basis(tuple(steps), tuple(images))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, shaped to multiply rows."""
    return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (b.dim() - 1))
