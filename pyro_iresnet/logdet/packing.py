"""Truncations and series as text and numbers, which a graph of the compiler can hold."""

from collections.abc import Callable
from dataclasses import Field
from typing import Any, TypeVar

from .truncation import Truncation

T = TypeVar("T")


def pack(truncation: Truncation) -> tuple[str, list[float]] | None:
    """Return the name of a class and its fields, or None unless it is a dataclass of numbers."""
    values = [getattr(truncation, f.name) for f in _fields(type(truncation))]
    if not values or not all(isinstance(value, int | float) for value in values):
        return None
    return qualified_name(type(truncation)), [float(value) for value in values]


def unpack_truncation(name: str, settings: list[float]) -> Truncation:
    """Return the truncation that :func:`pack` took apart."""
    kind: Any = subclass_named(Truncation, name)
    pairs = zip(_fields(kind), settings, strict=True)
    return kind(**{f.name: int(v) if f.type in (int, "int") else v for f, v in pairs})


def qualified_name(kind: type) -> str:
    """Return the name of a class with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def subclass_named(base: type[T], name: str) -> Callable[..., T]:
    """Return the subclass of ``base`` with a qualified name."""
    waiting, found = [base], {}
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            found[qualified_name(kind)] = kind
    return found[name]


def _fields(kind: type[Truncation]) -> list[Field]:
    # As dataclasses.fields, which the compiler does not follow; a ClassVar is no field.
    found: list[Any] = list(getattr(kind, "__dataclass_fields__", {}).values())
    return [f for f in found if f._field_type.name == "_FIELD"]
