"""Matrix products of a step: their multiply-adds, and the time that they alone would take."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Side of the square matrices whose product tells the rate of the machine.
SIDE = 1024
# Operations whose last two tensors are multiplied.
PRODUCTS = frozenset(
    ("mm", "addmm", "_addmm_activation", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot")
)
# Operations of these families would need a formula of their own.
UNKNOWN = ("conv", "attention", "linalg", "cholesky", "triangular", "_mm", "addr", "cdist", "lstm")
HARMLESS = frozenset(("linalg_vector_norm", "_linalg_check_errors"))


def _cube(part: float) -> Callable[[list[Tensor]], float]:
    """Return the count of a factorisation, which is a part of the cube of the side."""
    return lambda tensors: part * tensors[0].numel() * tensors[0].shape[-1]


def _solution(part: float) -> Callable[[list[Tensor]], float]:
    """Return the count of a solution, which is a part of the side times all right-hand sides."""
    return lambda tensors: part * tensors[0].shape[-1] * tensors[-1].numel()


# Multiply-adds of the calls of LAPACK, by their leading power.
LAPACK: dict[str, Callable[[list[Tensor]], float]] = {
    "linalg_cholesky_ex": _cube(1 / 6),
    "linalg_lu_factor_ex": _cube(1 / 3),
    "_linalg_slogdet": _cube(1 / 3),
    "_linalg_det": _cube(1 / 3),
    "linalg_inv_ex": _cube(1.0),
    "linalg_lu_solve": _solution(1.0),
    "linalg_solve_triangular": _solution(0.5),
    "_linalg_solve_ex": lambda tensors: _cube(1 / 3)(tensors) + _solution(1.0)(tensors),
}


class Products(TorchDispatchMode):
    """Count of the products of matrices inside ``with``, of the backward pass as well.

    Attributes:
        multiply_adds: of all products, by dtype.
        lapack: multiply-adds of the calls of LAPACK, by name, by their leading power.
        matrices: the number of matrices in the calls of LAPACK, by name and shape.

    Raises:
        NotImplementedError: an operation that may hide products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds: Counter[torch.dtype] = Counter()
        self.lapack: Counter[str] = Counter()
        self.matrices: Counter[str] = Counter()

    @property
    def total(self) -> float:
        """Multiply-adds of products and of LAPACK together."""
        return sum(self.multiply_adds.values()) + sum(self.lapack.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        space, _, name = func._schema.name.partition("::")
        name = name if name.startswith("__") else name.removesuffix("_")
        if space not in ("aten", "prim", "prims", "profiler"):
            raise NotImplementedError(f"{space}::{name} may hide products; run without it.")
        tensors = [a for a in args if isinstance(a, Tensor)]
        if name in PRODUCTS:
            first, second = tensors[-2:]
            columns = second.shape[-1] if second.dim() > 1 else 1
            self.multiply_adds[first.dtype] += first.numel() * columns
        elif name in LAPACK:
            rows, columns = tensors[0].shape[-2:]
            self.lapack[name] += LAPACK[name](tensors)
            self.matrices[f"{name} {rows} x {columns}"] += tensors[0].shape[:-2].numel()
        else:
            # In inference mode an operation made of others arrives whole.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            if name not in HARMLESS and any(part in name for part in UNKNOWN):
                raise NotImplementedError(f"The products of {space}::{name} have no formula.")
        return func(*args, **kwargs)


def products_of(step: Callable[[], object], calls: int) -> Products:
    """Count the products of a step; the counts are of all calls together."""
    with Products() as found:
        for _ in range(calls):
            step()
    return found


def big_product(dtype: torch.dtype) -> Callable[[], Tensor]:
    """Make the product whose time tells the rate of the machine: ``SIDE ** 3`` multiply-adds."""
    a, b, out = torch.randn(3, SIDE, SIDE, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)
