"""Powers of a Jacobian on random probes, the terms of a random series."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..operators import LinearMap
from ..operators.linear_map import row_norm


@dataclass
class Powers:
    """Powers of J, and of the matrix expanded at, on the probes ``u`` of the samples alive.

    Arguments:
        jacobian: J of these samples.
        matrix: the matrix expanded at and its transpose, shape ``(2, D, D)``, or None for 0.
        v: ``(J^T)^k u``.
        apart: ``(J^T)^k u - (matrix^T)^k u``, for the gradient of term k; :meth:`step` replaces it.
        first: ``(J - matrix)^T u``; None without a matrix, as the next.
        back_forth: ``(matrix^T)^k u`` and ``matrix^k u``, shape ``(2, n, D)``.
    """

    jacobian: LinearMap
    matrix: Tensor | None
    u: Tensor
    v: Tensor
    apart: Tensor
    first: Tensor | None = None
    back_forth: Tensor | None = None

    @classmethod
    def start(cls, jacobian: LinearMap, u: Tensor, matrix: Tensor | None) -> "Powers":
        """Make the powers at k = 1."""
        v = jacobian.vm(u)
        if matrix is None:
            return cls(jacobian, None, u, v, v)
        both = torch.stack([matrix, matrix.mT])
        back_forth = u @ both
        apart = v - back_forth[0]
        return cls(jacobian, both, u, v, apart, apart, back_forth)

    def step(self, k: int) -> Tensor:
        """Go on to power k, and return the sampled term without its coefficient and weight."""
        self.v = self.jacobian.vm(self.v)
        if self.matrix is None or self.back_forth is None or self.first is None:
            self.apart = self.v
            return (self.u * self.v).flatten(1).sum(1)
        tangent = self.first * self.back_forth[1]
        self.back_forth = self.back_forth @ self.matrix
        self.apart = self.v - self.back_forth[0]
        return torch.addcmul(tangent.mul_(-k), self.u, self.apart).sum(1)

    def size(self) -> Tensor:
        """Return a scale of the terms to come, 0 if they are 0."""
        if self.back_forth is None:
            return row_norm(self.v)
        others = torch.linalg.vector_norm(self.back_forth, dim=2).amax(0)
        return torch.maximum(row_norm(self.apart), others)

    def keep(self, index: Tensor) -> None:
        """Keep only the samples ``index``."""
        self.jacobian = self.jacobian.select(index)
        self.u, self.v = self.u[index], self.v[index]
        if self.first is not None and self.back_forth is not None:
            self.first, self.back_forth = self.first[index], self.back_forth[:, index]
