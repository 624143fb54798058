"""Stacks of Pyro transforms: one evaluation and one memory for all parts."""

import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from pyro.distributions import ComposeTransformModule
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from ..._modules import contractions_of, evaluating, modules_of
from ..._torch import InverseTransform, is_compiling
from ...blocks import Block, Evaluation
from ...cached import together
from ...errors import ArgumentError, ArgumentTypeError
from ...operators.linearization import vjp_of
from ..data_dependent_init import DataDependentInit
from .cached_transform import CachedTransform


def evaluate(transform: Any, x: Tensor) -> Evaluation:
    """Evaluate any bijective torch transform at ``x``."""
    if isinstance(transform, CachedTransform):
        return transform.evaluate(x)
    if isinstance(transform, InverseTransform):
        return evaluate_inverse(transform.inv, x).inverted()
    return _evaluation(transform, x, transform(x))


def evaluate_inverse(transform: Any, y: Tensor) -> Evaluation:
    """Evaluate any bijective torch transform at the ``x`` of ``y``."""
    if isinstance(transform, CachedTransform):
        return transform.evaluate_inverse(y)
    if isinstance(transform, InverseTransform):
        return evaluate(transform.inv, y).inverted()
    return _evaluation(transform, transform._inv_call(y), y)


def _evaluation(transform: Any, x: Tensor, y: Tensor) -> Evaluation:
    log_det = partial(transform.log_abs_det_jacobian, x, y)
    vjp = partial(vjp_of, transform, x)
    return Evaluation(x, y, log_det, vjp, partial(vjp_of, transform._inv_call, y))


def _chain(steps: Sequence[Evaluation], extra_dims: Sequence[int]) -> Evaluation:
    """Make the evaluation of bijections; ``extra_dims`` of a log-determinant are no batch."""

    def log_det() -> Tensor:
        total: Any = 0.0
        for step, extra in zip(steps, extra_dims, strict=True):
            value = step.log_det()
            total = total + (sum_rightmost(value, extra) if extra else value)
        return total

    def vjp(w: Tensor) -> Tensor:
        for step in reversed(steps):
            w = step.vjp(w)
        return w

    def inverse_vjp(w: Tensor) -> Tensor:
        for step in steps:
            w = step.inverse_vjp(w)
        return w

    return Evaluation(steps[0].x, steps[-1].y, log_det, vjp, inverse_vjp)


def checked_parts(parts: Iterable[Any], kinds: tuple[type, ...], example: str) -> list[Any]:
    """Return the parts as a list, or raise."""
    if not isinstance(parts, Iterable):
        raise ArgumentTypeError(
            f"Expected parts to be a sequence of transforms; got {type(parts).__name__}."
        )
    parts = list(parts)
    for i, part in enumerate(parts):
        if not isinstance(part, kinds):
            hint = " Wrap it: IResNet(block)." if isinstance(part, Block) else ""
            raise ArgumentTypeError(
                f"Expected parts[{i}] to be {example}; got {type(part).__name__}.{hint}"
            )
    return parts


class Stack(CachedTransform, ComposeTransformModule):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Transforms in turn, as one module.

    The stack normalises the weights of all its parts together, once in each call, and remembers its
    last evaluation. The ``inv`` of torch's composition recovers the points between its parts by
    inverting them. Here ``stack.inv.log_abs_det_jacobian(x, y)`` runs the parts forward from ``y``,
    so the density of ``[stack.inv]`` needs no inversion.

    Arguments:
        parts: the transforms, in the order they act.
        cache_size: 1 to remember the last call, 0 for no memory.

    Raises:
        ArgumentError, ArgumentTypeError: ``parts`` is no sequence, a part is no transform, or
            neighbouring parts act on different event shapes.

    Example:
        >>> import torch
        >>> from pyro_iresnet import actnorm, iresnet
        >>> from pyro_iresnet.hosts.pyro import Stack
        >>> stack = Stack([actnorm(2), iresnet(2), actnorm(2)])
        >>> x = torch.randn(100, 2)
        >>> y = stack(x)
        >>> stack.log_abs_det_jacobian(x, y).shape
        torch.Size([100])
    """

    widens = True

    def __init__(self, parts: Sequence[Transform], cache_size: int = 1) -> None:
        kinds, example = (Transform,), "a transform, such as iresnet(2)"
        parts = checked_parts(parts, kinds, example)
        _check_neighbours(parts)
        # Torch would give its own cache, by identity alone, to each part.
        super().__init__(parts, cache_size=0)
        self._cache_size = cache_size
        self._derived: Any = None

    def _call(self, x: Tensor) -> Tensor:
        return self.evaluation(x=x).y

    def _inverse(self, y: Tensor) -> Tensor:
        return self.evaluation(y=y).x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log|det dy/dx|`` at ``x``, shape ``(*batch,)``."""
        return self.evaluation(x, y).log_det()

    def evaluate(self, x: Tensor) -> Evaluation:
        if not self.parts:
            return _identity(x)
        steps: list[Evaluation] = []
        with together(contractions_of(self)):
            for i, part in enumerate(self.parts):
                x = self._checked_behind(i, x, "x")
                steps.append(evaluate(part, x))
                x = steps[-1].y
        return _chain(steps, self._ends()[2])

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        if not self.parts:
            return _identity(y)
        steps: list[Evaluation] = []
        with together(contractions_of(self)):
            for i in reversed(range(len(self.parts))):
                y = self._checked_behind(i, y, "y")
                steps.insert(0, evaluate_inverse(self.parts[i], y))
                y = steps[0].x
        return _chain(steps, self._ends()[2])

    def evaluate_pair(self, x: Tensor, y: Tensor) -> Evaluation:
        if is_compiling():
            return self.evaluate(x)
        # A question about a pair starts no ActNorm.
        with evaluating([m for m in modules_of(self) if isinstance(m, DataDependentInit)]):
            return self.evaluate(x)

    def check(self, x: Tensor, name: str) -> Tensor:
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(
                f"Expected {name} to be a torch.Tensor; got {type(x).__name__}."
            )
        parts = self.parts if name == "x" else self.parts[::-1]
        for i, part in enumerate(parts):
            ours = _ours(part)
            if ours is None:
                # The shape behind a foreign part is known there only.
                break
            if i == 0 or ours.widens:
                x = ours.check(x, name)
        return x

    @property
    def remembers(self) -> bool:
        # A foreign part that is no module may change unseen.
        for part in self.parts:
            if _ours(part) is None and not isinstance(part, nn.Module):
                return False
        return super().remembers

    def _checked_behind(self, i: int, x: Tensor, name: str) -> Tensor:
        """Check the tensor before part ``i`` if a foreign part made it."""
        ours, before = _ours(self.parts[i]), self.parts[:i] if name == "x" else self.parts[i + 1 :]
        if ours is None or not before:
            return x
        neighbour = before[-1] if name == "x" else before[0]
        behind_foreign = ours.widens and any(_ours(part) is None for part in before)
        return ours.check(x, name) if _ours(neighbour) is None or behind_foreign else x

    @property
    def inv(self) -> Transform:
        if is_compiling():
            # A compiler follows no weak reference.
            return InverseTransform(self)
        reference: Any = self._inv
        inverse = None if reference is None else reference()
        if inverse is None:
            inverse = InverseTransform(self)
            vars(self)["_inv"] = weakref.ref(inverse)
        return inverse

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        """Return the event shape of the first part that has one, or None."""
        shapes = [_event_shape(part) for part in self.parts]
        return next((shape for shape in shapes if shape is not None), None)

    # Torch derives both from the parts at each request, which is dozens of times in a step.
    @property
    def domain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._ends()[0]

    @property
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._ends()[1]

    def _ends(self) -> tuple[constraints.Constraint, constraints.Constraint, list[int]]:
        """Return domain, codomain, and the extra dimensions of each part's log-determinant."""
        key = tuple(map(id, self.parts))
        if self._derived is None or self._derived[0] != key:
            parts = [(part, part.domain.event_dim, part.codomain.event_dim) for part in self.parts]
            # The event dimensions at both ends are the largest that any part asks for.
            first = parts[-1][2] if parts else 0
            for _, before, after in reversed(parts):
                first = max(first + before - after, before)
            extra_dims, last = [], first
            for _, before, after in parts:
                extra_dims.append(last - before)
                last = max(last + after - before, after)
            domain = _widened(parts[0][0].domain if parts else constraints.real, first)
            codomain = _widened(parts[-1][0].codomain if parts else constraints.real, last)
            self._derived = key, (domain, codomain, extra_dims)
        return self._derived[1]

    def with_cache(self, cache_size: int = 1) -> "Stack":
        """Return a stack of the same parts with another cache."""
        if cache_size == self._cache_size:
            return self
        other = Stack(self.parts, cache_size)
        other.training = self.training
        return other


def _identity(x: Tensor) -> Evaluation:
    return Evaluation(x, x, lambda: x.new_zeros(x.shape), lambda w: w, lambda w: w)


def _ours(part: Any) -> Any:
    """Return the transform of this package that a part is, or is the inverse of; else None."""
    inner = part.inv if isinstance(part, InverseTransform) else part
    return inner if isinstance(inner, CachedTransform) else None


def _widened(constraint: Any, event_dim: int) -> constraints.Constraint:
    extra = event_dim - constraint.event_dim
    return constraints.independent(constraint, extra) if extra > 0 else constraint


def _event_shape(part: Any) -> tuple[int, ...] | None:
    ours = _ours(part)
    return None if ours is None else ours.event_shape


def _check_neighbours(parts: Sequence[Any]) -> None:
    """Raise if two parts in a row act on different event shapes."""
    for i, (first, second) in enumerate(pairwise(map(_event_shape, parts))):
        if first is None or second is None:
            continue
        pairs = zip(first, second, strict=False)
        if len(first) != len(second) or any(-1 not in p and p[0] != p[1] for p in pairs):
            raise ArgumentError(
                f"Expected parts that act on one event shape; parts[{i}] acts on {first} and "
                f"parts[{i + 1}] on {second}."
            )
