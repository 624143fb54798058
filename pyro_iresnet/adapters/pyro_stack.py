"""A stack of Pyro transforms that knows its log-determinant without inverting itself."""

from collections.abc import Sequence

from pyro.distributions import ComposeTransformModule
from torch import Tensor
from torch.distributions.transforms import Transform, _InverseTransform


class Stack(ComposeTransformModule):
    """Transforms in turn, as one module; as Pyro's, but for its inverse.

    The ``inv`` of torch's composition recovers the points between its parts by inverting them,
    unless every part remembers its last call. Here ``stack.inv.log_abs_det_jacobian(x, y)`` runs
    the parts forward from ``y``, so that the density of ``[stack.inv]`` needs no inversion, with
    or without a memory, which a compiled graph does not have.

    Arguments:
        parts: the transforms, in the order they act.
        cache_size: as in torch; the parts have memories of their own.
    """

    def __init__(self, parts: Sequence[Transform], cache_size: int = 0) -> None:
        super().__init__(list(parts), cache_size=cache_size)

    @property
    def inv(self) -> Transform:
        return _InverseTransform(self)

    def with_cache(self, cache_size: int = 1) -> "Stack":
        """The same parts under a stack with that cache."""
        return self if cache_size == self._cache_size else Stack(self.parts, cache_size)

    def _inverse(self, y: Tensor) -> Tensor:
        x = y
        for part in reversed(self.parts):
            x = part._inv_call(x)
        return x  # pyright: ignore[reportReturnType]
