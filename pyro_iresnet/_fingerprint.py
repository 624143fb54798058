"""Fingerprints: the settings and tensors of a module, to tell if a call would repeat the last."""

from dataclasses import dataclass, is_dataclass

import torch
from torch import Tensor, nn

from ._modules import modules_of

# Types of a setting, beside frozen strategies.
PLAIN = (int, float, str, tuple)


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The settings and tensors of a module, and the values of the tensors.

    Writes are found by value, since a write through ``.data`` (Pyro's optimisers, users) leaves the
    identity and the version of a tensor as they were.

    Arguments:
        settings: of the module and its parts.
        tensors: parameters, buffers and others, held so that no other tensor takes their place.
        needs: True for each tensor that requires gradients.
        values: copies of the tensors; None if values are not compared.
    """

    settings: list[object]
    tensors: list[Tensor]
    needs: list[bool]
    values: list[Tensor] | None

    @classmethod
    def of(cls, module: nn.Module, *others: Tensor, by_value: bool = True) -> "Fingerprint":
        """Take the fingerprint of a module, and of other tensors that a call depends on."""
        settings, tensors = _see(module, others)
        values = [t.detach().clone() for t in tensors] if by_value else None
        return cls(settings, tensors, [t.requires_grad for t in tensors], values)

    def holds(self, module: nn.Module, *others: Tensor) -> bool:
        """Return True if nothing has changed."""
        settings, tensors = _see(module, others)
        if settings != self.settings or len(tensors) != len(self.tensors):
            return False
        for i, tensor in enumerate(tensors):
            if tensor is not self.tensors[i] or tensor.requires_grad != self.needs[i]:
                return False
        if self.values is not None:
            for tensor, value in zip(tensors, self.values, strict=True):
                if tensor.dtype != value.dtype or tensor.device != value.device:
                    return False
                if not torch.equal(tensor, value):
                    return False
        return True


def _see(module: nn.Module, others: tuple[Tensor, ...]) -> tuple[list[object], list[Tensor]]:
    # One loop: a training step takes and compares a fingerprint of every module of a flow.
    settings: list[object] = []
    tensors = list(others)
    for m in modules_of(module):
        settings.append(type(m))
        for name, value in vars(m).items():
            if name[0] != "_" and (isinstance(value, PLAIN) or is_dataclass(value)):
                settings.append(value)
        for held in (m._parameters, m._buffers):
            for tensor in held.values():
                if tensor is not None:
                    tensors.append(tensor)
    return settings, tensors
