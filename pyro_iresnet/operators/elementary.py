"""Maps that hold one tensor: a matrix, a diagonal, a permutation."""

from dataclasses import dataclass

from torch import Tensor

from .linear_map import LinearMap


@dataclass(frozen=True)
class Dense(LinearMap):
    """One matrix for all samples, shape ``(event_out, event_in)``."""

    weight: Tensor

    def mv(self, v: Tensor) -> Tensor:
        return v @ self.weight.T

    def vm(self, v: Tensor) -> Tensor:
        return v @ self.weight

    def select(self, index: Tensor) -> "Dense":
        return self

    def trace(self, weight: Tensor | None = None) -> Tensor:
        return self.weight.trace() if weight is None else (self.weight * weight.T).sum()

    def mean(self) -> Tensor:
        return self.weight

    def packed(self) -> tuple[list[str], list[Tensor]]:
        return ["dense"], [self.weight]

    def cost(self) -> int:
        return self.weight.numel()

    def widths(self) -> tuple[int, ...]:
        return (self.weight.shape[1], self.weight.shape[0])


@dataclass(frozen=True)
class Diagonal(LinearMap):
    """A diagonal matrix for each sample, such as the slopes of an activation.

    Arguments:
        diagonal: the entries, shape ``(*batch, *event)``.
        event_dim: the number of trailing dimensions that form one event.
    """

    diagonal: Tensor
    event_dim: int = 1

    def mv(self, v: Tensor) -> Tensor:
        return self.diagonal * v

    def vm(self, v: Tensor) -> Tensor:
        return self.diagonal * v

    def select(self, index: Tensor) -> "Diagonal":
        return Diagonal(self._rows().index_select(0, index), self.event_dim)

    def trace(self, weight: Tensor | None = None) -> Tensor:
        flat = self.diagonal.flatten(self.diagonal.dim() - self.event_dim)
        return flat.sum(-1) if weight is None else flat @ weight.diagonal()

    def mean(self) -> Tensor:
        return self.mean_entries().flatten().diag()

    def mean_entries(self) -> Tensor:
        """Return the mean of the diagonal over the batch."""
        return self._rows().mean(0)

    def packed(self) -> tuple[list[str], list[Tensor]]:
        return [f"diagonal{self.event_dim}"], [self.diagonal]

    def cost(self) -> int:
        return 0

    def widths(self) -> tuple[int, ...]:
        return (self.diagonal.shape[-1],) * 2 if self.event_dim == 1 else ()

    def _rows(self) -> Tensor:
        event = self.diagonal.shape[self.diagonal.dim() - self.event_dim :]
        return self.diagonal.reshape(-1, *event)


@dataclass(frozen=True)
class Matrices(LinearMap):
    """One matrix for each sample, shape ``(*batch, event_out, event_in)``."""

    matrices: Tensor

    def mv(self, v: Tensor) -> Tensor:
        return (self.matrices @ v[..., None])[..., 0]

    def vm(self, v: Tensor) -> Tensor:
        return (self.matrices.mT @ v[..., None])[..., 0]

    def select(self, index: Tensor) -> "Matrices":
        return Matrices(self.matrices.reshape(-1, *self.matrices.shape[-2:])[index])

    def widths(self) -> tuple[int, ...]:
        return (self.matrices.shape[-1], self.matrices.shape[-2])
