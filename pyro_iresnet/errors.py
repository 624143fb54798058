"""Error classes, and checks of arguments.

Every error that this package raises is an :class:`IResNetError`, and also the built-in error that
a caller would expect (``ValueError`` for a value, ``TypeError`` for a type).
"""

import difflib
import operator
import reprlib
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, SupportsIndex, TypeVar

import torch
from torch import Tensor, nn
from torch.masked import MaskedTensor
from torch.nn.parameter import UninitializedTensorMixin  # pyright: ignore[reportAttributeAccessIssue]

T = TypeVar("T")


class IResNetError(Exception):
    """Base class of every error of this package."""


class ArgumentError(IResNetError, ValueError):
    """An argument has the right type and a wrong value, shape or combination."""


class ArgumentTypeError(IResNetError, TypeError):
    """An argument has the wrong type or dtype."""


class ContractionError(IResNetError, ValueError):
    """``g`` is not known to be a contraction, so the inverse has no certificate."""


class InversionError(IResNetError, RuntimeError):
    """The inverse missed the tolerance for some samples; ``solution`` holds the values reached."""

    def __init__(self, message: str, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution


class LinearSolveError(IResNetError, RuntimeError):
    """``(I + J) w = v`` was not solved to the tolerance."""


class TracingError(IResNetError, RuntimeError):
    """A data-dependent loop or a random draw met a transform of torch that cannot record it."""


class LaplaceError(IResNetError, RuntimeError):
    """A posterior has no mode at which the Laplace approximation is a normal distribution."""


class HigherOrderError(IResNetError, RuntimeError):
    """The value of a requested derivative would be wrong."""


class VarianceWarning(UserWarning):
    """The variance of a chosen estimator is infinite, or may be."""


def check_lipschitz(value: float, name: str = "lipschitz") -> float:
    """Return ``value`` as a float, or raise unless it is a number with ``0 < value < 1``."""
    number = _number(value, name, "in (0, 1)")
    if not 0.0 < number < 1.0:
        raise ArgumentError(
            f"Expected {name} in (0, 1); got {value}. "
            "x + g(x) is invertible when Lip(g) < 1; 0.9 to 0.99 is usual."
        )
    return number


def check_positive(value: float, name: str) -> float:
    """Return ``value`` as a float, or raise unless it is a finite number above zero."""
    number = _number(value, name, "above 0")
    if not 0.0 < number < float("inf"):
        raise ArgumentError(f"Expected {name} to be finite and above 0; got {value}.")
    return number


def check_probability(value: float, name: str) -> float:
    """Return ``value`` as a float, or raise unless it is a number with ``0 < value < 1``."""
    number = _number(value, name, "in (0, 1)")
    if not 0.0 < number < 1.0:
        raise ArgumentError(f"Expected {name} in (0, 1); got {value}.")
    return number


def check_not_negative(value: float, name: str) -> float:
    """Return ``value`` as a float, or raise unless it is a finite number of at least zero."""
    number = _number(value, name, "of at least 0")
    if not 0.0 <= number < float("inf"):
        raise ArgumentError(f"Expected {name} to be finite and at least 0; got {value}.")
    return number


def check_int(value: SupportsIndex, name: str) -> int:
    """Return ``value`` as an int, or raise unless it is an integer of at most 64 bits."""
    return _integer(value, name, "an integer")


def check_positive_int(value: SupportsIndex, name: str, least: int = 1) -> int:
    """Return ``value`` as an int, or raise unless it is an integer of at least ``least``."""
    number = _integer(value, name, f"an integer of at least {least}")
    if number < least:
        raise ArgumentError(f"Expected {name} to be at least {least}; got {number}.")
    return number


def check_cache_size(value: SupportsIndex) -> int:
    """Return the cache size of a transform as an int, or raise unless it is 0 or 1."""
    size = _integer(value, "cache_size", "0 or 1")
    if size not in (0, 1):
        raise ArgumentError(
            "Expected cache_size to be 1, to remember the last call, or 0, for no memory; "
            f"got {size}."
        )
    return size


def check_flag(value: bool, name: str) -> bool:
    """Return ``value``, or raise unless it is True or False."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"Expected {name} to be True or False; got {_shown(value)}.")
    return value


def check_keywords(keywords: Iterable[str], known: Iterable[str], function: str) -> None:
    """Raise unless all keywords of a function are known; the error suggests a near one."""
    known = list(known)
    for name in keywords:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ArgumentTypeError(
                f"Expected keywords of {function} among {', '.join(known)}; got {name!r}.{hint}"
            )


def store_checked(record: object, check: Callable[[Any, str], object], *names: str) -> None:
    """Replace fields of a frozen record by ``check(value, name)``, which may raise."""
    for name in names:
        object.__setattr__(record, name, check(getattr(record, name), name))


def _number(value: Any, name: str, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(
            f"Expected {name} to be a number {expected}; got {_shown(value)}.{_plain(value)}"
        )
    try:
        return float(value)
    except OverflowError as error:
        raise ArgumentError(
            f"Expected {name} to be a number {expected}; got one that no float holds."
        ) from error


def _integer(value: Any, name: str, expected: str) -> int:
    # A bool of NumPy is an index before NumPy 2.
    is_bool = isinstance(value, bool) or getattr(getattr(value, "dtype", 0), "kind", "") == "b"
    # A tensor and an array of NumPy have `__index__`, whatever they hold.
    if not is_bool and isinstance(value, SupportsIndex):
        scalar = not isinstance(value, Tensor) or (value.dim() == 0 and value.dtype != torch.bool)
        try:
            number = operator.index(value) if scalar else None
        except (TypeError, ValueError, RuntimeError):
            number = None
        if number is not None:
            if abs(number) >= 2**63:
                raise ArgumentError(f"Expected {name} to be below 2^63; got {number}.")
            return number
    raise ArgumentTypeError(
        f"Expected {name} to be {expected}; got {_shown(value)}.{_plain(value)}"
    )


def _shown(value: object) -> str:
    """Describe a wrong value in an error; a module or a tensor of many numbers by its class."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    return type(value).__name__ if isinstance(value, nn.Module) else reprlib.repr(value)


def _plain(value: object) -> str:
    return " Pass a number of Python, such as value.item()." if isinstance(value, Tensor) else ""


def check_dims(values: Sequence[int], name: str, example: str = "[64, 64]") -> tuple[int, ...]:
    """Return ``values`` as a tuple, or raise unless they are positive integers (possibly none)."""
    if isinstance(values, str | bytes | bytearray) or not isinstance(values, Sequence):
        raise ArgumentTypeError(
            f"Expected {name} to be a sequence of integers such as {example}; got {_shown(values)}."
        )
    return tuple(check_positive_int(v, f"{name}[{i}]") for i, v in enumerate(values))


def check_instance(value: object, kind: type[T], name: str, example: str) -> T:
    """Return ``value``, or raise unless it is a ``kind``; ``example`` shows a right one."""
    if isinstance(value, type) and issubclass(value, kind):
        raise ArgumentTypeError(
            f"Expected {name} to be an object such as {example}; got the class {value.__name__}. "
            "Call it."
        )
    if not isinstance(value, kind):
        shown = "" if isinstance(value, nn.Module | Tensor) else f" {reprlib.repr(value)}"
        raise ArgumentTypeError(
            f"Expected {name} to be a {kind.__name__} such as {example}; "
            f"got {type(value).__name__}{shown}."
        )
    return value


def check_event_shape(shape: Sequence[int], event_shape: tuple[int, ...], name: str) -> None:
    """Raise unless ``shape`` ends in ``event_shape``; -1 stands for any size of at least 1."""
    if not isinstance(shape, torch.Size):
        try:
            shape = torch.Size(shape)
        except TypeError as error:
            raise ArgumentTypeError(
                f"Expected {name} to be a sequence of sizes such as (10, 2); got {_shown(shape)}."
            ) from error
    size = len(event_shape)
    tail = tuple(shape)[max(len(shape) - size, 0) :]
    pairs = zip(event_shape, tail, strict=False)
    if len(tail) != size or any(t < 1 if e == -1 else t != e for e, t in pairs):
        expected = "(" + ", ".join("any" if e == -1 else str(e) for e in event_shape)
        expected += ",)" if size == 1 else ")"
        # An event without coordinates is no event; a batch without samples is a batch.
        least = ", each size at least 1" if 0 in tail and len(tail) == size else ""
        raise ArgumentError(
            f"Expected {name} with event shape {expected}{least}; got {tuple(shape)}."
        )


def check_tensor(
    value: Tensor,
    event_shape: tuple[int, ...],
    like: Tensor | None,
    name: str,
    of: str = "the parameters",
) -> None:
    """Raise unless a tensor ends in ``event_shape`` (-1: any size) and fits the parameters.

    The tensor must be dense and of a floating dtype; ``like`` gives dtype and device, or is None
    for any. ``of`` names ``like`` in an error.
    """
    # Without a call more, since every call of a flow comes here.
    known = type(value) is Tensor and value.layout is torch.strided
    if not known or value.is_nested or not value.is_floating_point():
        check_dense(value, name)
    if value.shape[value.dim() - len(event_shape) :] != event_shape:
        check_event_shape(value.shape, event_shape, name)
    if like is None or (value.dtype == like.dtype and value.device == like.device):
        return
    owner = "module" if of == "the parameters" else of
    if value.dtype != like.dtype:
        raise ArgumentTypeError(
            f"Expected {name} of dtype {like.dtype}, that of {of}; got {value.dtype}. "
            f"Convert one of them: {name}.to({like.dtype}), or {owner}.to({value.dtype})."
        )
    here, there = str(like.device), str(value.device)
    remedy = f"Move one of them: {name}.to({here!r}), or {owner}.to({there!r})."
    if value.is_meta:
        remedy = f"The device meta has no values: make {name} on {here}, or {owner}.to('meta')."
    if like.is_meta:
        remedy = (
            "The device meta has no values: load the parameters, behind "
            f"module.to_empty(device={there!r})."
        )
    raise ArgumentTypeError(
        f"Expected {name} on device {here}, that of {of}; got {there}. {remedy}"
    )


def check_dense(value: Tensor, name: str) -> None:
    """Raise unless ``value`` is a dense tensor of a floating dtype."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(
            f"Expected {name} to be a torch.Tensor; got {type(value).__name__}. Make one of "
            f"numbers by torch.as_tensor({name})."
        )
    if isinstance(value, UninitializedTensorMixin):
        raise ArgumentTypeError(
            f"Expected {name} with a shape; got the {type(value).__name__} of a lazy module. Run "
            "the module once, which makes its parameters."
        )
    if isinstance(value, MaskedTensor):
        raise ArgumentTypeError(
            f"Expected {name} to be a dense tensor; got a MaskedTensor. Fill the masked entries: "
            f"{name}.to_tensor(0.0)."
        )
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested tensor" if value.is_nested else f"tensor of layout {value.layout}"
        remedy = (
            f"Pass a batch of events of one shape: torch.cat({name}.unbind())"
            if value.is_nested
            else f"Convert it: {name}.to_dense()"
        )
        raise ArgumentTypeError(f"Expected {name} to be a dense tensor; got a {kind}. {remedy}.")
    if not value.is_floating_point():
        remedy = f"{name}.float()"
        if value.is_quantized:
            remedy = f"{name}.dequantize()"
        if value.is_complex():
            remedy = f"torch.view_as_real({name}), or {name}.real"
        raise ArgumentTypeError(
            f"Expected {name} of a floating dtype; got {value.dtype}. Convert it: {remedy}."
        )
    if value.dtype.itemsize < 2:
        raise ArgumentTypeError(
            f"Expected {name} of a floating dtype of 16 bits or more; got {value.dtype}, in which "
            f"torch stores and does not compute. Convert it: {name}.float()."
        )
