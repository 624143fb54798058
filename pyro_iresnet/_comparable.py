"""Contents of a user's objects, taken so that a later look can be compared with an earlier one."""

import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# Values that never change.
PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, Enum),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
)
# Libraries whose functions and classes hold no data of a user.
LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "pyro", "nflows", "pyro_iresnet"}
# A larger object costs more to compare than the call that it would save.
LARGEST = 1000
# An object without slots, whose state is all in its `__dict__`: a head and two pointers.
SMALLEST = object.__basicsize__ + 16
# The state that torch keeps in a module: compared apart, or without effect on a value.
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
OF_TORCH = frozenset(vars(nn.Module())) - {"training", *HOOKS}


class IncomparableError(Exception):
    """An object may change without a trace."""


def contents_of(module: nn.Module, tensors: list[Tensor]) -> list[object]:
    """Return the contents of a user's module beside its parameters, buffers and parts.

    The contents are the attributes of the module and of its class, and the variables from outside
    that its methods name, with the functions and classes among them. Each tensor goes to
    ``tensors``. Raises :class:`IncomparableError` if two looks at an object cannot be compared.
    """
    return list(_Look(tensors).at_module(module))


def contents_of_value(value: object, tensors: list[Tensor]) -> object:
    """Return the contents of one attribute; arguments and errors as above."""
    return _Look(tensors).at(value)


def hooks_of(module: nn.Module, tensors: list[Tensor]) -> list[object]:
    """Return the contents of the hooks on a module's call; arguments and errors as above."""
    look = _Look(tensors)
    return [look.at(hook) for name in HOOKS for hook in getattr(module, name).values()]


class _Look:
    """One walk through an object.

    ``seen`` holds the objects on the way, by identity, each with its number. An object held there
    lends its identity to no other.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors
        self.seen: dict[int, tuple[int, object]] = {}

    def at_module(self, module: nn.Module) -> Iterator[object]:
        self._first_time(module)
        for name, value in vars(module).items():
            if name not in OF_TORCH:
                yield name
                yield self.at(value)
        yield self.at(type(module))

    def at_class(self, kind: type) -> list[object]:
        """Look at the methods and the data of a user's class, and of the classes it rests on."""
        return [
            (name, self.at(value))
            for each in kind.__mro__
            if not _of_library(each)
            for name, value in vars(each).items()
            # Python and abc keep their own affairs under the other names.
            if name != "_abc_impl" and (not name.startswith("__") or isinstance(value, _METHODS))
        ]

    def at_function(self, function: FunctionType) -> object:
        """Look at the variables from outside that a function names."""
        if _of_library(function) and not function.__closure__:
            return function
        names = list(_names_in(function.__code__))
        return (
            function,
            [self.at_cell(cell) for cell in function.__closure__ or ()],
            list(self.at_named(function.__globals__, names)),
            self.at(function.__defaults__),
            self.at(function.__kwdefaults__),
            self.at(vars(function)) if vars(function) else None,
        )

    def at_named(self, variables: dict[str, Any], names: list[str]) -> Iterator[object]:
        """Look at the variables of some names; of a module at its variables of these names."""
        for name in names:
            value = variables.get(name)
            if isinstance(value, ModuleType):
                yield value
                if not _of_library(value) and self._first_time(value):
                    yield list(self.at_named(vars(value), names))
            elif value is not None:
                yield self.at(value)

    def at_cell(self, cell: Any) -> object:
        try:
            return self.at(cell.cell_contents)
        except ValueError:
            return "empty"

    def at(self, value: Any) -> object:
        """Return the contents of a value; equal for two looks if nothing has changed."""
        if isinstance(value, PLAIN):
            return type(value), value
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return Tensor
        if _is_array(value):
            return value.dtype, value.shape, value.tobytes()
        if isinstance(value, type | ModuleType) and _of_library(value):
            return value
        if not self._first_time(value):
            return "seen", self.seen[id(value)][0]
        return type(value), self._inside(value)

    def _first_time(self, value: object) -> bool:
        if id(value) in self.seen:
            return False
        self.seen[id(value)] = len(self.seen), value
        if len(self.seen) > LARGEST:
            raise IncomparableError
        return True

    def _inside(self, value: Any) -> object:
        if isinstance(value, type):
            return value, self.at_class(value)
        if isinstance(value, weakref.ref):
            return self.at(value())
        if isinstance(value, nn.Module):
            # A module in a list is no registered part.
            held = [*value._parameters.values(), *value._buffers.values()]
            return list(self.at_module(value)), self._each([*held, *value._modules.values()])
        if isinstance(value, FunctionType):
            return self.at_function(value)
        if isinstance(value, BuiltinFunctionType | MethodType):
            name = getattr(value, "__name__", "")
            return name, self._each([value.__self__, getattr(value, "__func__", None)])
        if isinstance(value, property):
            return self.at(value.fget)
        if isinstance(value, staticmethod | classmethod):
            return self.at(value.__func__)
        if isinstance(value, cached_property):
            return self._each([value.func, *vars(value).values()])
        if isinstance(value, partial):
            return self._each([value.func, value.args, value.keywords, *vars(value).values()])
        # A frozen strategy is its fields: what else its class holds, such as a counter, is no data.
        frozen = is_dataclass(value) and type(value).__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
        by_class = None if frozen else self.at_class(type(value))
        return self._items(value), by_class, self._attributes(value)

    def _each(self, values: Iterable[object]) -> list[object]:
        return [self.at(v) for v in values]

    def _items(self, value: Any) -> object:
        """Look at what an object holds beside its attributes."""
        if isinstance(value, list | tuple):
            return self._each(value)
        if isinstance(value, dict):
            return [(self.at(k), self.at(v)) for k, v in value.items()]
        if isinstance(value, set | frozenset) and all(isinstance(v, PLAIN) for v in value):
            return frozenset(value)
        if is_dataclass(value):
            return [self.at(getattr(value, f.name)) for f in fields(value)]
        kind = type(value)
        # An object written in C, or of a class with slots, keeps its state out of sight.
        slots = any("__slots__" in vars(each) for each in kind.__mro__[:-1])
        if slots or kind.__basicsize__ > SMALLEST or kind.__itemsize__:
            raise IncomparableError
        return None

    def _attributes(self, value: Any) -> object:
        held = getattr(value, "__dict__", None)
        return [(name, self.at(v)) for name, v in held.items()] if held else None


# Attributes of a class that hold code.
_METHODS = (FunctionType, property, staticmethod, classmethod, cached_property)


def _names_in(code: CodeType) -> Iterator[str]:
    """Iterate over the names in a function, and in the functions and loops inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _of_library(value: Any) -> bool:
    """Return True for a module, a class or a function that holds no data of a user."""
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    return isinstance(name, str) and name.partition(".")[0] in LIBRARIES


def _is_array(value: object) -> bool:
    """Return True for an array or a number of numpy, which torch can do without."""
    if type(value).__module__ != "numpy":
        return False
    dtype: Any = getattr(value, "dtype", None)
    return dtype is not None and not dtype.hasobject
