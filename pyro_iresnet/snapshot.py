"""What a computation of a module rested on, to tell whether it would come out the same."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .anatomy import modules_of, settings_of


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The settings and tensors of a module, and what the tensors held.

    Writes are found by value: Pyro's optimisers, and users, write through ``.data``, which leaves a
    tensor's identity and its version as they were.

    Arguments:
        settings: of the module and its parts.
        tensors: parameters, buffers and others, held so that no other can take their place.
        needs: which of them require gradients.
        values: copies of them; None where they were not to be compared.
    """

    settings: list[tuple[object, ...]]
    tensors: list[Tensor]
    needs: list[bool]
    values: list[Tensor] | None

    @classmethod
    def of(cls, module: nn.Module, *others: Tensor, by_value: bool = True) -> "Snapshot":
        """Of a module, and of other tensors that it was called with."""
        settings, tensors = _see(module, others)
        values = [t.detach().clone() for t in tensors] if by_value else None
        return cls(settings, tensors, [t.requires_grad for t in tensors], values)

    def holds(self, module: nn.Module, *others: Tensor) -> bool:
        """Whether all is as it was."""
        settings, tensors = _see(module, others)
        if settings != self.settings or len(tensors) != len(self.tensors):
            return False
        if any(a is not b for a, b in zip(tensors, self.tensors, strict=True)):
            return False
        if any(t.requires_grad != n for t, n in zip(tensors, self.needs, strict=True)):
            return False
        return self.values is None or all(
            t.dtype == v.dtype and t.device == v.device and torch.equal(t, v)
            for t, v in zip(tensors, self.values, strict=True)
        )


def _see(
    module: nn.Module, others: tuple[Tensor, ...]
) -> tuple[list[tuple[object, ...]], list[Tensor]]:
    settings, tensors = [], list(others)
    for m in modules_of(module):
        settings.append(settings_of(m))
        tensors += [t for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    return settings, tensors
