"""Signatures: what may decide which sites a model has, in a form that compares."""

from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from numbers import Number
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from .log_joint import things_behind

# Integers of a longer tensor are data, such as labels, and no sizes of plates.
FEW = 16
# Entries of a longer container are data, such as the words of texts, and each step comes here.
LONG = 1000
# Containers within containers are followed so far.
DEEP = 50
# Attributes of an argument are followed so far, and of what lies behind a model one step less.
DEPTH = 2
SCALARS = (str, bytes, Number, Enum, range, type, torch.dtype, torch.device, type(None))


def signature(value: Any, depth: int = DEPTH, inside: Mapping[int, int] = {}) -> object:
    """Return everything about an argument of a model that may decide which sites the model has.

    A tensor or an array counts by its shape, dtype and device; with booleans, or with a few
    integers, by its values too. A float counts by its sign unless it is a whole number, since a
    weight that falls from step to step changes no site; another scalar by its value; a container
    by its entries, or by their number above 1,000; an object by its attributes, followed for
    ``depth`` steps; a function by its code and the data behind it. Two signatures of an argument
    that cannot be read, such as an iterator, are never equal.

    Arguments:
        value: the argument.
        depth: the steps left to follow.
        inside: the containers on the way to the value, by their identity, with their numbers.
    """
    kind = type(value)
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, np.ndarray | np.generic):
        few = value.dtype.kind == "b" or (value.dtype.kind in "iu" and value.size <= FEW)
        if isinstance(value, np.floating):
            return kind, signature(float(value))
        return kind, value.shape, value.dtype, value.tobytes() if few else None
    if isinstance(value, float) and not value.is_integer():
        return kind, value > 0
    if isinstance(value, SCALARS):
        return kind, value
    if isinstance(value, Set):
        return kind, len(value) if len(value) > LONG else frozenset(value)
    if isinstance(value, list | tuple | deque | Mapping) and len(value) > LONG:
        return kind, len(value)
    if id(value) in inside:
        # The way leads back, as from a child to its parent.
        return kind, inside[id(value)]
    if len(inside) > DEEP:
        return kind
    inside = {**inside, id(value): len(inside)}
    if isinstance(value, list | tuple | deque):
        return kind, [signature(v, depth, inside) for v in value]
    if isinstance(value, Mapping):
        return kind, [
            (signature(k, depth, inside), signature(v, depth, inside)) for k, v in value.items()
        ]
    if is_dataclass(value):
        return kind, [signature(getattr(value, f.name), depth, inside) for f in fields(value)]
    try:
        shape = getattr(value, "shape", None)
    except Exception:
        # A property of the user's may raise anything.
        shape = None
    if isinstance(shape, tuple):
        return kind, shape
    if depth == 0:
        return kind
    if isinstance(value, FunctionType | MethodType | partial):
        return kind, signature_behind(value, depth - 1)
    attributes = _attributes(value)
    if attributes is None:
        return object() if depth == DEPTH else kind
    return kind, [(name, signature(v, depth - 1, inside)) for name, v in attributes.items()]


def signature_behind(function: Callable[..., Any], depth: int = DEPTH - 1) -> object:
    """Return the code and the signatures of the data that a function leads to.

    :func:`things_behind` tells what a function leads to.
    """
    found = []
    for thing in things_behind(function):
        if isinstance(thing, FunctionType):
            found.append(thing.__code__)
        elif not isinstance(thing, MethodType | partial):
            found.append(signature(thing, depth))
    return found


def _of_tensor(value: Tensor) -> object:
    kind = type(value)
    if value.is_nested:
        return object()
    told = kind, value.shape, value.dtype, value.device
    few = value.dtype is torch.bool or (
        value.numel() <= FEW and not (value.dtype.is_floating_point or value.dtype.is_complex)
    )
    if not few or value.layout is not torch.strided or value.is_meta or value.is_quantized:
        return told
    return *told, value.detach().cpu().numpy().tobytes()


def _attributes(value: object) -> dict[str, Any] | None:
    """Return the attributes of an object, of a module without parameters, or None if unknown."""
    if isinstance(value, nn.Module):
        parts = [m for m in value.modules() if m is value or isinstance(m, PyroModule)]
        found: dict[str, Any] = {}
        for i, part in enumerate(parts):
            own = {**part._buffers, **vars(part)}
            found |= {f"{i}.{k}": v for k, v in own.items() if not k.startswith("_")}
        return found
    slots = [getattr(c, "__slots__", None) for c in type(value).__mro__]
    if not hasattr(value, "__dict__") and slots == [None] * len(slots):
        return None
    names = [n for s in slots if s is not None for n in ([s] if isinstance(s, str) else s)]
    return {n: getattr(value, n) for n in names if hasattr(value, n)} | getattr(
        value, "__dict__", {}
    )
