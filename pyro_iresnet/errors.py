"""What can go wrong, and its words: the error classes and the checks of arguments.

Every error that this package raises is an :class:`IResNetError`, and also the built-in error a
caller would expect (``ValueError`` for a value, ``TypeError`` for a type).
"""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeVar

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad

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
    """The inverse missed the tolerance for some samples; ``solution`` holds what was reached."""

    def __init__(self, message: str, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution


class LinearSolveError(IResNetError, RuntimeError):
    """``(I + J) w = v`` was not solved to the tolerance."""


class TracingError(IResNetError, RuntimeError):
    """A data-dependent loop or a random draw met a transform of torch that cannot record it."""


class HigherOrderError(IResNetError, RuntimeError):
    """A derivative was asked whose value would be wrong."""


def check_lipschitz(value: float, name: str = "lipschitz") -> float:
    """Return ``value`` as a float, or raise unless it is a number with ``0 < value < 1``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(f"Expected {name} to be a number in (0, 1); got {value!r}.")
    if not 0.0 < value < 1.0:
        raise ArgumentError(
            f"Expected {name} in (0, 1); got {value}. "
            "x + g(x) is invertible when Lip(g) < 1; 0.9 to 0.99 is usual."
        )
    return float(value)


def check_positive(value: float, name: str) -> float:
    """Return ``value`` as a float, or raise unless it is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(f"Expected {name} to be a number above 0; got {value!r}.")
    if not 0.0 < value < float("inf"):
        raise ArgumentError(f"Expected {name} to be finite and above 0; got {value}.")
    return float(value)


def check_not_negative(value: float, name: str) -> float:
    """Return ``value`` as a float, or raise unless it is a finite number of at least zero."""
    return 0.0 if isinstance(value, int | float) and value == 0 else check_positive(value, name)


def check_positive_int(value: SupportsIndex, name: str) -> int:
    """Return ``value`` as an int, or raise unless it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ArgumentTypeError(f"Expected {name} to be an integer of at least 1; got {value!r}.")
    number = operator.index(value)
    if number < 1:
        raise ArgumentError(f"Expected {name} to be at least 1; got {number}.")
    return number


def check_dims(values: Sequence[int], name: str) -> tuple[int, ...]:
    """Return ``values`` as a tuple, or raise unless they are positive integers (possibly none)."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ArgumentTypeError(
            f"Expected {name} to be a sequence of widths such as [64, 64]; got {values!r}."
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


def check_tensor(
    value: Tensor, event_shape: tuple[int, ...], like: Tensor | None, name: str
) -> None:
    """Raise unless ``value`` is a tensor that ends in ``event_shape`` with the dtype of ``like``.

    A size of -1 in ``event_shape`` stands for any size.
    """
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(
            f"Expected {name} to be a torch.Tensor; got {type(value).__name__}."
        )
    size = len(event_shape)
    tail = tuple(value.shape)[max(value.dim() - size, 0) :]
    if len(tail) != size or any(e not in (-1, t) for e, t in zip(event_shape, tail, strict=True)):
        expected = "(" + ", ".join("any" if e == -1 else str(e) for e in event_shape)
        expected += ",)" if size == 1 else ")"
        raise ArgumentError(
            f"Expected {name} with event shape {expected}; got {tuple(value.shape)}."
        )
    if not value.is_floating_point():
        raise ArgumentTypeError(
            f"Expected {name} of a floating dtype; got {value.dtype}. Convert it: {name}.float()."
        )
    if like is not None and value.dtype != like.dtype:
        raise ArgumentTypeError(
            f"Expected {name} of dtype {like.dtype}, that of the parameters; got {value.dtype}. "
            f"Convert one of them: {name}.to({like.dtype}), or module.to({value.dtype})."
        )


def refuse_forward_mode(what: str, tensor: Tensor) -> None:
    """Raise under forward-mode differentiation, which would go through a random draw."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
        raise HigherOrderError(
            f"{what} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian). Use reverse "
            "mode (grad, jacrev, vjp), or Exact() for the log-determinant."
        )


def refuse_transforms(what: str, tensor: Tensor) -> None:
    """Raise under ``torch.jit.trace``, which would record one run of ``what`` as if it were all,
    and under ``torch.func.vmap``, which knows no loop whose length depends on the data."""
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        raise TracingError(
            f"{what} cannot be traced by torch.jit: its random draws or its number of steps would "
            "be frozen at those of the example. Use Exact() for the log-determinant and keep the "
            "inverse out of the trace."
        )
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise TracingError(
                f"{what} cannot run under torch.func.vmap, nor under what is made of it (jacrev, "
                "hessian) where that runs it again: its steps depend on the data. It takes a batch "
                "as it is: call it without vmap, or use Exact() for the log-determinant."
            )
        tensor = functorch.get_unwrapped(tensor)
