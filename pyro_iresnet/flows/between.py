"""Blocks, and what stands between them, in either framework."""

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ArgumentTypeError


def interleaved(
    makers: Iterable[Callable[[], Any]],
    between: Callable[[int], Any] | None,
    size: int,
    example: str,
) -> list[Any]:
    """What stands before each block and behind the last, and the blocks.

    Arguments:
        makers: of the blocks, called in turn.
        between: makes what stands between them, called with ``size``; None for nothing.
        size: the number of coordinates.
        example: of a right ``between``, for the error.

    Raises:
        ArgumentTypeError: ``between`` is neither callable nor None.
    """
    if between is not None and not callable(between):
        raise ArgumentTypeError(
            f"Expected between to be a callable that makes a transform, such as {example}, or "
            f"None; got {between!r}."
        )
    parts = []
    for make in makers:
        parts += [make()] if between is None else [between(size), make()]
    return parts if between is None else [*parts, between(size)]
