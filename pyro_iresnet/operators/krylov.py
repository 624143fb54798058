r"""Solves of ``(I + J) w = v`` by products with ``J`` alone."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

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
from .solve import (
    DENSE,
    DenseSolve,
    LinearSolve,
    Solved,
    beyond_bound,
    check_solve,
    default_rtol,
    floor,
)

# Rows that have ended leave once the share of the others is as small: a copy of all tensors costs
# more than a few rows too many.
KEPT = 3 / 4


@dataclass(frozen=True)
class Product:
    """The product ``v -> J v``, or ``v -> J^T v``, of rows: events flattened."""

    jacobian: LinearMap
    event_shape: torch.Size
    transpose: bool = False

    def __call__(self, v: Tensor) -> Tensor:
        events = v.reshape(-1, *self.event_shape)
        product = self.jacobian.vm(events) if self.transpose else self.jacobian.mv(events)
        return product.reshape(v.shape)

    def select(self, index: Tensor) -> "Product":
        return replace(self, jacobian=self.jacobian.select(index))


@dataclass(frozen=True)
class KrylovSolve(LinearSolve):
    r"""Solve by generalized conjugate residuals: the least residual over the last directions.

    A step takes one product with J, and looks along the residual and the ``directions`` before. So
    the residual shrinks by the factor L at least, as with a term of the Neumann series
    :math:`\sum_k (-J)^k v`. For a symmetric J the residual is the least that any polynomial in J
    gives.

    A sample is done once its error is certified, :math:`\lVert v - (I + J) w \rVert / (1 - L) \le
    \text{rtol} \lVert v \rVert`. An error at the floor of the arithmetic is enough, :math:`8
    \epsilon / (1 - L)` relative to the larger of v and w. If rounding may have moved the residuals
    that the steps tell, they are computed anew, and the solve goes on where they are too large.

    Arguments:
        rtol: relative tolerance, in (0, 1]; by default 1e-6 in float32, 1e-10 in float64.
        directions: the number of directions to keep, an integer of at least 1; each takes two
            vectors.

    Raises:
        ArgumentError, ArgumentTypeError: ``rtol`` outside (0, 1], or ``directions`` no integer of
            at least 1.
        LinearSolveError: in a call: a sample did not reach the tolerance.

    References:
        Variational Iterative Methods for Nonsymmetric Systems of Linear Equations (Eisenstat, Elman
        and Schultz, 1983).

    Example:
        >>> from pyro_iresnet import Newton
        >>> from pyro_iresnet.operators import KrylovSolve
        >>> solver = Newton(linear_solve=KrylovSolve(rtol=0.1))
    """

    rtol: float | None = None
    directions: int = 3

    def __post_init__(self) -> None:
        if self.rtol is not None:
            store_checked(self, check_positive, "rtol")
            if self.rtol > 1:
                raise ArgumentError(f"Expected rtol in (0, 1]; got {self.rtol}.")
        store_checked(self, check_positive_int, "directions")

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
        right = v.reshape(batch.numel(), -1)
        # Scaled to size 1: the squares of a tiny v would underflow in its norm.
        scale = right.abs().amax(1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
        right = right / scale
        jacobian = linearization.jacobian
        if len(batch) != 1:
            jacobian = jacobian.select(torch.arange(batch.numel(), device=v.device))
        product = Product(jacobian, linearization.event_shape, transpose)
        enough = rtol * (1 - lipschitz) * row_norm(right)
        limit = _limit(rtol, lipschitz)
        w, products = self.approximate(product, right, enough, limit)
        eps = torch.finfo(v.dtype).eps
        while bool((enough < 512 * eps * row_norm(w)).any()):
            enough = torch.maximum(enough, 8 * eps * row_norm(w))
            residual = right - w - product(w)
            index = torch.nonzero((row_norm(residual) > enough) & (products < limit)).reshape(-1)
            if len(index) == 0:
                break
            part, more = self.approximate(
                product.select(index),
                residual.index_select(0, index),
                enough.index_select(0, index),
                limit - int(products.index_select(0, index).max()),
            )
            w, products = w.index_add(0, index, part), products.index_add(0, index, more)
        missed = products >= limit
        failed = missed | beyond_bound(right, w, lipschitz, 1, enough)
        if throw and bool(failed.any()):
            seen = (
                f"did not reach the tolerance {rtol:.1e} in {limit} products"
                if bool(missed.any())
                else f"found ||J w|| > {lipschitz:.3g} ||w||"
            )
            raise LinearSolveError(
                f"KrylovSolve {seen} for {int(failed.sum())} of {len(failed)} samples, "
                f"so the Jacobian exceeds the bound {lipschitz:.3g}. Correct the bound given "
                "with g."
            )
        return Solved((w * scale).reshape(v.shape), products.reshape(batch), failed.reshape(batch))

    def approximate(
        self,
        product: Product,
        v: Tensor,
        enough: Tensor,
        limit: int,
        precondition: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return ``w`` and the number of products for each row.

        A row ends when the norm of ``v - (I + J) w``, as far as the steps tell, is at most
        ``enough``, or after ``limit`` products. A row does not depend on the others, and a NaN in
        ``v`` stays visible in ``w``.

        Arguments:
            product: multiplies rows by ``J``, or by its transpose.
            v: the right-hand side, shape ``(n, D)``.
            enough: shape ``(n,)``.
            limit: the largest number of products.
            precondition: applies one matrix near the inverse of ``I + J`` to rows.
        """
        rows = torch.arange(len(v), device=v.device)
        w, products = 0 * v, torch.zeros_like(rows)
        value, total = w, products
        kept: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.directions)
        tiny = torch.finfo(v.dtype).tiny
        for _ in range(limit):
            waits = row_norm(v) > enough
            at_work = int(waits.sum())
            if at_work == 0:
                break
            if at_work <= KEPT * len(rows):
                value, total = value.index_copy(0, rows, w), total.index_copy(0, rows, products)
                index = torch.nonzero(waits).reshape(-1)
                product = product.select(index)
                rows, w, products, v, enough, waits = (
                    t.index_select(0, index) for t in (rows, w, products, v, enough, waits)
                )
                for _ in range(len(kept)):
                    step, image = kept.popleft()
                    kept.append((step.index_select(0, index), image.index_select(0, index)))
            elif at_work < len(rows):
                # A row that is done stands still, so that no row depends on the others.
                v = torch.where(waits[:, None], v, 0.0)
            step = v if precondition is None else precondition(v)
            image = step + product(step)
            for other_step, other in kept:
                share = torch.linalg.vecdot(other, image)[:, None]
                step = torch.addcmul(step, share, other_step, value=-1)
                image = torch.addcmul(image, share, other, value=-1)
            size = row_norm(image)[:, None].clamp(min=tiny)
            step, image = step / size, image / size
            kept.append((step, image))
            share = torch.linalg.vecdot(image, v)[:, None]
            w = torch.addcmul(w, share, step)
            v = torch.addcmul(v, share, image, value=-1)
            products = products + waits
        return value.index_copy(0, rows, w), total.index_copy(0, rows, products)


def _limit(rtol: float, lipschitz: float) -> int:
    """Return the number of products that the Neumann series needs, and ten more for rounding."""
    if lipschitz == 0.0:
        return 3
    return math.ceil(math.log(rtol * (1 - lipschitz)) / math.log(lipschitz)) + 10


def auto_linear_solve(event_size: int) -> LinearSolve:
    """Return ``DenseSolve()`` up to 16 coordinates (faster for a batch), else ``KrylovSolve()``."""
    event_size = check_positive_int(event_size, "event_size")
    return DenseSolve() if event_size <= DENSE else KrylovSolve()
