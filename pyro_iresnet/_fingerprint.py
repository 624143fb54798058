"""Fingerprints: the settings and tensors of a module, to tell if a call would repeat the last."""

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass

import torch
from torch import Tensor, nn

from ._comparable import IncomparableError, contents_of, contents_of_value, hooks_of
from ._modules import modules_of

# Types of a setting, beside frozen strategies.
PLAIN = {bool, int, float, str, type(None)}
# Libraries whose modules show all their state as parameters, buffers and settings of plain types.
KNOWN = ("torch.", "pyro_iresnet.", "pyro.", "nflows.")


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The settings and tensors of a module, and the values of the tensors.

    Writes are found by value, since a write through ``.data`` (Pyro's optimisers, users) leaves the
    identity and the version of a tensor as they were.

    Arguments:
        settings: of the module and its parts.
        tensors: parameters, buffers and others, held so that no other tensor takes their place.
        marks: for each tensor, True if it requires gradients, its node of the graph or None, and a
            copy; None for the copy if values are not compared.
    """

    settings: list[object]
    tensors: list[Tensor]
    marks: Sequence[tuple[bool, object, Tensor | None]]

    @classmethod
    def of(cls, module: nn.Module, *others: Tensor, by_value: bool = True) -> "Fingerprint | None":
        """Take the fingerprint of a module, and of other tensors that a call depends on.

        Return None if the module holds an object of the user's that may change without a trace, or
        a tensor whose values torch cannot compare: a sparse one, or one on the device meta.
        """
        try:
            settings, tensors = _see(module, others)
        except IncomparableError:
            return None
        if by_value:
            for t in tensors:
                if t.layout is not torch.strided or t.is_meta:
                    return None
            marks = [(t.requires_grad, t.grad_fn, t.detach().clone()) for t in tensors]
        else:
            marks = [(t.requires_grad, t.grad_fn, None) for t in tensors]
        return cls(settings, tensors, marks)

    def holds(self, module: nn.Module, *others: Tensor) -> bool:
        """Return True if nothing has changed."""
        try:
            settings, tensors = _see(module, others)
        except IncomparableError:
            return False
        if settings != self.settings or len(tensors) != len(self.tensors):
            return False
        for i, tensor in enumerate(tensors):
            needs, node, _ = self.marks[i]
            if tensor is not self.tensors[i] or tensor.requires_grad != needs:
                return False
            # `detach_` leaves the identity, the value and, with `requires_grad_`, the need.
            if tensor.grad_fn is not node:
                return False
        for tensor, (_, _, value) in zip(tensors, self.marks, strict=True):
            if value is None:
                continue
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
        kind = type(m)
        settings.append(kind)
        if kind is not nn.Module and kind.__module__.startswith(KNOWN):
            for name, value in vars(m).items():
                if name[0] == "_":
                    continue
                kind_of_value = type(value)
                if (
                    kind_of_value in PLAIN
                    or (kind_of_value is tuple and PLAIN.issuperset(map(type, value)))
                    or (is_dataclass(value) and kind_of_value.__module__.startswith(KNOWN))
                ):
                    settings.append(value)
                else:
                    # A user's: a forward, a tensor, a list that another module reads.
                    settings.append(contents_of_value(value, tensors))
        else:
            settings.append(contents_of(m, tensors))
        if m._forward_hooks or m._forward_pre_hooks:
            settings.append(hooks_of(m, tensors))
        for held in (m._parameters, m._buffers):
            for tensor in held.values():
                if tensor is not None:
                    tensors.append(tensor)
    return settings, tensors
