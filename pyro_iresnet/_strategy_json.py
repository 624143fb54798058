"""Strategies as JSON: classes, partials and objects by the name of their class."""

import inspect
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from .activations import Activation
from .blocks import Block
from .coordinates import Coordinates
from .errors import ArgumentError
from .inverse import AffinePreconditioner, Solver
from .logdet import ControlVariate, LogDet, Truncation
from .norms import Norm
from .operators import LinearSolve

# Classes whose subclasses JSON may name.
KINDS = (
    Activation,
    AffinePreconditioner,
    Block,
    ControlVariate,
    Coordinates,
    LinearSolve,
    LogDet,
    Norm,
    Solver,
    Truncation,
)


def given(value: partial[Any]) -> dict[str, Any]:
    """Return the arguments of a partial by name."""
    return inspect.signature(value.func).bind_partial(*value.args, **value.keywords).arguments


def _name(kind: type) -> str:
    """Return the name of a class, with its module if the class is not of this package."""
    inside = kind.__module__.startswith(f"{__package__}.")
    return kind.__name__ if inside else f"{kind.__module__}.{kind.__qualname__}"


def _known() -> dict[str, type]:
    """Return every class that JSON may name."""
    found, waiting = {}, list(KINDS)
    while waiting:
        kind = waiting.pop()
        # A class comes before its packed form, which has the same name.
        found.setdefault(_name(kind), kind)
        waiting += kind.__subclasses__()
    return found


# The JSON of a class, of a partial of a class, and of an object of a class: the key that names the
# class, and for the last two the settings apart, whose names may be any.
CLASS, PARTIAL, OBJECT, SETTINGS = "class", "partial", "object", "settings"


def encode(value: Any, name: str) -> Any:
    """Return the value of the option ``name`` in plain types of JSON, or raise."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [encode(v, name) for v in value]
    if isinstance(value, type) and issubclass(value, KINDS):
        return {CLASS: _name(value)}
    if isinstance(value, partial) and isinstance(value.func, type):
        settings, key, kind = given(value), PARTIAL, value.func
    elif is_dataclass(value) and isinstance(value, KINDS):
        settings = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        key, kind = OBJECT, type(value)
    else:
        raise ArgumentError(
            f"Expected {name} to be a class, a functools.partial of a class, or a strategy that is "
            f"a dataclass, to be written as JSON; got {value!r}."
        )
    return {key: _name(kind), SETTINGS: {n: encode(v, name) for n, v in settings.items()}}


def decode(value: Any, name: str) -> Any:
    """Return the value that :func:`encode` wrote, or raise."""
    if isinstance(value, list):
        return tuple(decode(v, name) for v in value)
    if not isinstance(value, dict):
        return value
    [key] = [k for k in (CLASS, PARTIAL, OBJECT) if k in value] or [None]
    kind = None if key is None else _known().get(value[key])
    if kind is None:
        raise ArgumentError(
            f"Expected {name} of a known class; got {value}. Import the module that defines the "
            "class first."
        )
    settings = {n: decode(v, name) for n, v in value.get(SETTINGS, {}).items()}
    if key == CLASS:
        return kind
    try:
        signature = inspect.signature(kind)
        (signature.bind_partial if key == PARTIAL else signature.bind)(**settings)
    except TypeError as error:
        raise ArgumentError(
            f"Expected settings of {kind.__name__} for {name}; got {settings}: {error}."
        ) from error
    return partial(kind, **settings) if key == PARTIAL else kind(**settings)
