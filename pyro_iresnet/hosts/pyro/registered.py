"""Parts of a stack, read from the modules that the stack has registered.

A second list of the modules would go stale where modules are swapped: in the replicas of
``nn.DataParallel``, or in ``stack[0] = other``.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from ..._torch import InverseTransform
from ...errors import ArgumentError


def module_in(part: Any) -> nn.Module | None:
    """Return the module that a part is, or is the inverse of; else None."""
    inner = part.inv if isinstance(part, InverseTransform) else part
    return inner if isinstance(inner, nn.Module) else None


def slots_of(parts: Iterable[Any]) -> list[Any] | None:
    """Return one slot for each part: None for a module, else the part; None if all are modules."""
    slots = [None if isinstance(part, nn.Module) else part for part in parts]
    return slots if any(slot is not None for slot in slots) else None


def parts_in(slots: Sequence[Any] | None, stack: nn.Module) -> list[Any]:
    """Return the parts of a stack, with the modules that the stack has registered now.

    Raises :class:`ArgumentError` if modules came or went beside parts that are no modules, so that
    their order is unknown. ``slots`` are those of :func:`slots_of`.
    """
    modules: list[Any] = list(stack._modules.values())
    if slots is None:
        return modules
    wanted = sum(slot is None or module_in(slot) is not None for slot in slots)
    if len(modules) != wanted:
        raise ArgumentError(
            f"Expected {wanted} modules between the parts that are no modules; got {len(modules)}. "
            "Make a new stack of the parts."
        )
    left, parts = iter(modules), []
    for slot in slots:
        if slot is None:
            parts.append(next(left))
        elif module_in(slot) is None:
            parts.append(slot)
        else:
            module = next(left)
            parts.append(slot if slot.inv is module else InverseTransform(module))
    return parts
