"""Contents of a user's objects, taken so that a later look can be compared with an earlier one."""

import weakref
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# Values that never change.
PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, type, Enum),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
    *(BuiltinFunctionType, ModuleType),
)
# Values of a global name that count as data. A function or a class there would lead far.
DATA = (bool, int, float, complex, str, list, tuple, dict, set, Tensor)
# A larger object costs more to compare than the call that it would save.
LARGEST = 1000
# The state that torch keeps in a module: compared apart, or without effect on a value.
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
OF_TORCH = frozenset(vars(nn.Module())) - {"training", *HOOKS}


class IncomparableError(Exception):
    """An object may change without a trace."""


def contents_of(module: nn.Module, tensors: list[Tensor]) -> list[object]:
    """Return the contents of a user's module beside its parameters, buffers and parts.

    The contents are the attributes of the module and of its class, and the variables from outside
    that its methods name. Each tensor goes to ``tensors``. Raises :class:`IncomparableError` if two
    looks at an object cannot be compared.
    """
    return list(_Look(tensors).at_module(module))


def hooks_of(module: nn.Module, tensors: list[Tensor]) -> list[object]:
    """Return the contents of the hooks on a module's call; arguments and errors as above."""
    look = _Look(tensors)
    return [look.at(hook) for name in HOOKS for hook in getattr(module, name).values()]


class _Look:
    """One walk through an object; ``seen`` holds the objects on the way, by identity."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.seen: set[int] = set()
        self.size = 0

    def at_module(self, module: nn.Module) -> Iterator[object]:
        self.seen.add(id(module))
        for name, value in vars(module).items():
            if name not in OF_TORCH:
                yield name
                yield self.at(value)
        for kind in type(module).__mro__:
            if kind.__module__.startswith("torch."):
                break
            for name, value in vars(kind).items():
                if isinstance(value, FunctionType):
                    yield self.at_function(value)
                elif isinstance(value, DATA) or _is_array(value):
                    yield name
                    yield self.at(value)

    def at_function(self, function: FunctionType) -> object:
        """Look at the variables from outside that a function names."""
        cells = [self.at_cell(cell) for cell in function.__closure__ or ()]
        named = [function.__globals__.get(name) for name in function.__code__.co_names]
        data = [self.at(v) for v in named if isinstance(v, DATA) or _is_array(v)]
        return (
            function,
            cells,
            data,
            self.at(function.__defaults__),
            self.at(function.__kwdefaults__),
        )

    def at_cell(self, cell: Any) -> object:
        try:
            return self.at(cell.cell_contents)
        except ValueError:
            return "empty"

    def at(self, value: Any) -> object:
        """Return the contents of a value; equal for two looks if nothing has changed."""
        if isinstance(value, PLAIN):
            return type(value), value
        if isinstance(value, weakref.ref):
            return id(value)
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return Tensor
        if _is_array(value):
            return value.dtype, value.shape, value.tobytes()
        self.size += 1
        if id(value) in self.seen:
            return "seen"
        if self.size > LARGEST:
            raise IncomparableError
        self.seen.add(id(value))
        return type(value), self._inside(value)

    def _inside(self, value: Any) -> object:
        if isinstance(value, list | tuple):
            return [self.at(v) for v in value]
        if isinstance(value, dict):
            return [(self.at(k), self.at(v)) for k, v in value.items()]
        if isinstance(value, set | frozenset) and all(isinstance(v, PLAIN) for v in value):
            return frozenset(value)
        if isinstance(value, nn.Module):
            # A module in a list is no registered part.
            held = [*value._parameters.values(), *value._buffers.values()]
            return (
                list(self.at_module(value)),
                self.at(held),
                self.at(list(value._modules.values())),
            )
        if isinstance(value, FunctionType):
            return self.at_function(value)
        if isinstance(value, MethodType):
            return self.at(value.__self__), self.at(value.__func__)
        if isinstance(value, partial):
            return self.at(value.func), self.at(value.args), self.at(value.keywords)
        if is_dataclass(value):
            return [self.at(getattr(value, f.name)) for f in fields(value)]
        # An object of a class with slots, or written in C, keeps its state out of sight.
        for kind in type(value).__mro__[:-1]:
            if "__module__" not in vars(kind) or "__slots__" in vars(kind):
                raise IncomparableError
        return self.at(vars(value))


def _is_array(value: object) -> bool:
    """Return True for an array or a number of numpy, which torch can do without."""
    if type(value).__module__ != "numpy":
        return False
    dtype: Any = getattr(value, "dtype", None)
    return dtype is not None and not dtype.hasobject
