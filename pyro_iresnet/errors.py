"""Error classes, and checks of arguments.

Every error that this package raises is an :class:`IResNetError`, and also the built-in error that
a caller would expect (``ValueError`` for a value, ``TypeError`` for a type).
"""

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, SupportsIndex, TypeVar

from torch import Tensor, nn

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
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"Expected {name} to be a number in (0, 1); got {value!r}.")
    if not 0.0 < value < 1.0:
        raise ArgumentError(
            f"Expected {name} in (0, 1); got {value}. "
            "x + g(x) is invertible when Lip(g) < 1; 0.9 to 0.99 is usual."
        )
    return float(value)


def check_positive(value: float, name: str) -> float:
    """Return ``value`` as a float, or raise unless it is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"Expected {name} to be a number above 0; got {value!r}.")
    if not 0.0 < value < float("inf"):
        raise ArgumentError(f"Expected {name} to be finite and above 0; got {value}.")
    return float(value)


def check_probability(value: float, name: str) -> float:
    """Return ``value`` as a float, or raise unless it is a number with ``0 < value < 1``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"Expected {name} to be a number in (0, 1); got {value!r}.")
    if not 0.0 < value < 1.0:
        raise ArgumentError(f"Expected {name} in (0, 1); got {value}.")
    return float(value)


def check_not_negative(value: float, name: str) -> float:
    """Return ``value`` as a float, or raise unless it is a finite number of at least zero."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"Expected {name} to be a number of at least 0; got {value!r}.")
    if not 0.0 <= value < float("inf"):
        raise ArgumentError(f"Expected {name} to be finite and at least 0; got {value}.")
    return float(value)


def check_int(value: SupportsIndex, name: str) -> int:
    """Return ``value`` as an int, or raise unless it is an integer."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ArgumentTypeError(f"Expected {name} to be an integer; got {value!r}.")
    return operator.index(value)


def check_positive_int(value: SupportsIndex, name: str) -> int:
    """Return ``value`` as an int, or raise unless it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ArgumentTypeError(f"Expected {name} to be an integer of at least 1; got {value!r}.")
    number = operator.index(value)
    if number < 1:
        raise ArgumentError(f"Expected {name} to be at least 1; got {number}.")
    return number


def check_dims(values: Sequence[int], name: str, example: str = "[64, 64]") -> tuple[int, ...]:
    """Return ``values`` as a tuple, or raise unless they are positive integers (possibly none)."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ArgumentTypeError(
            f"Expected {name} to be a sequence of integers such as {example}; got {values!r}."
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
        shown = "" if isinstance(value, nn.Module) else f" {value!r}"
        raise ArgumentTypeError(
            f"Expected {name} to be a {kind.__name__} such as {example}; "
            f"got {type(value).__name__}{shown}."
        )
    return value


def check_event_shape(shape: Sequence[int], event_shape: tuple[int, ...], name: str) -> None:
    """Raise unless ``shape`` ends in ``event_shape``; a size of -1 stands for any size."""
    size = len(event_shape)
    tail = tuple(shape)[max(len(shape) - size, 0) :]
    if len(tail) != size or any(e not in (-1, t) for e, t in zip(event_shape, tail, strict=True)):
        expected = "(" + ", ".join("any" if e == -1 else str(e) for e in event_shape)
        expected += ",)" if size == 1 else ")"
        raise ArgumentError(f"Expected {name} with event shape {expected}; got {tuple(shape)}.")


def check_tensor(
    value: Tensor, event_shape: tuple[int, ...], like: Tensor | None, name: str
) -> None:
    """Raise unless a tensor ends in ``event_shape`` (-1: any size) with the dtype of ``like``."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(
            f"Expected {name} to be a torch.Tensor; got {type(value).__name__}."
        )
    if value.shape[value.dim() - len(event_shape) :] != event_shape:
        check_event_shape(value.shape, event_shape, name)
    if not value.is_floating_point():
        raise ArgumentTypeError(
            f"Expected {name} of a floating dtype; got {value.dtype}. Convert it: {name}.float()."
        )
    if like is not None and value.dtype != like.dtype:
        raise ArgumentTypeError(
            f"Expected {name} of dtype {like.dtype}, that of the parameters; got {value.dtype}. "
            f"Convert one of them: {name}.to({like.dtype}), or module.to({value.dtype})."
        )
