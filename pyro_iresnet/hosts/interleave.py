"""Blocks in turn with the transforms between them, in either framework."""

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ArgumentTypeError


def interleave(
    blocks: Iterable[Any],
    between: Callable[[int], Any] | None,
    size: int,
    kinds: type | tuple[type, ...],
    example: str,
) -> list[Any]:
    """List the blocks, with a transform by ``between(size)`` before each and behind the last.

    ``between`` is None for no transform. :class:`ArgumentTypeError` unless ``between`` makes
    transforms of ``kinds``, as ``example`` does.
    """
    if between is not None and not callable(between):
        raise ArgumentTypeError(
            f"Expected between to be a callable that makes a transform, such as {example}, or "
            f"None; got {between!r}."
        )
    if between is None:
        return list(blocks)

    def made() -> Any:
        part = between(size)
        if not isinstance(part, kinds):
            raise ArgumentTypeError(
                f"Expected the result of between to be a transform, such as {example}({size}); got "
                f"{type(part).__name__}."
            )
        return part

    parts = [made()]
    for block in blocks:
        parts += [block, made()]
    return parts
