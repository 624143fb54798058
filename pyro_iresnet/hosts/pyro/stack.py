"""Stacks of Pyro transforms: one evaluation and one memory for all parts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import is_
from typing import Any, NamedTuple

from pyro.distributions import ComposeTransformModule
from pyro.distributions.util import sum_rightmost
from pyro.ops.provenance import ProvenanceTensor
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from ..._modules import contractions_of
from ..._settings import SavedSettings
from ..._torch import InverseTransform
from ...blocks import Block, Evaluation
from ...blocks.in_turn import evaluate_in_turn
from ...cached import together
from ...contractions.hooks import HOOKS, refuse_hooks
from ...errors import ArgumentError, ArgumentTypeError, check_cache_size, check_dense
from ..data_dependent_init import without_start
from .any_transform import evaluate_each, evaluate_inverse
from .cached_transform import NO_CALL, CachedTransform
from .registered import module_in, parts_in, slots_of
from .transform import IResNet


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

    drawn_by = ""
    for step in steps:
        drawn_by = drawn_by or step.drawn_by
    return Evaluation(steps[0].x, steps[-1].y, log_det, vjp, inverse_vjp, drawn_by)


def checked_parts(parts: Iterable[Any], kinds: tuple[type, ...], example: str) -> list[Any]:
    """Return the parts as a list, or raise."""
    if not isinstance(parts, Iterable) or isinstance(parts, Tensor | Mapping):
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


class Stack(SavedSettings, CachedTransform, ComposeTransformModule):  # pyright: ignore[reportIncompatibleVariableOverride]
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
        super().__init__([], cache_size=0)
        self.parts = parts
        self._cache_size = check_cache_size(cache_size)

    @property
    def parts(self) -> list[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The transforms, in the order they act."""
        return parts_in(self._slots, self)

    @parts.setter
    def parts(self, parts: Sequence[Any]) -> None:
        self._slots = slots_of(parts)
        # The modules of the parts, and what is derived from the parts; no module is None.
        self._derived: Any = (None,), None
        self._modules.clear()
        for part in parts:
            module = module_in(part)
            if module is not None:
                self.append(module)

    def settings(self) -> dict[str, Any]:
        slots = list(enumerate(self._slots or []))
        others = [(i, slot) for i, slot in slots if slot is not None]
        return {
            "inverted parts": [i for i, slot in others if module_in(slot) is not None],
            "parts without modules": [
                f"{i}: {type(slot).__name__}" for i, slot in others if module_in(slot) is None
            ],
        }

    @property
    def needs_record(self) -> bool:
        # A stack of modules alone has no settings beside theirs.
        return self._slots is not None

    # Parts of other libraries may fall, or be no bijections.
    @property
    def bijective(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(part.bijective for part in self.parts)

    @property
    def sign(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return math.prod(part.sign for part in self.parts)

    def evaluate(self, x: Tensor) -> Evaluation:
        parts, ends = self.parts, self._ends()
        if not parts:
            return _identity(x)
        steps: list[Evaluation] = []
        extra_dims: list[int] = []
        with together(contractions_of(self)):
            for begin, end in ends.runs:
                run = parts[begin:end]
                if ends.mixed:
                    x = _checked_behind(parts[:begin], run[0], x, "x")
                several = len(run) > 1 and not isinstance(x, ProvenanceTensor)
                at_once = evaluate_in_turn([p.block for p in run], x) if several else None
                made = evaluate_each(run, x) if at_once is None else [at_once]
                steps += made
                extra_dims += ends.extra_dims[begin : begin + len(made)]
                x = steps[-1].y
        return _chain(steps, extra_dims)

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        parts, ends = self.parts, self._ends()
        if not parts:
            return _identity(y)
        steps: list[Evaluation] = []
        with together(contractions_of(self)):
            for i in reversed(range(len(parts))):
                if ends.mixed:
                    y = _checked_behind(parts[:i:-1], parts[i], y, "y")
                steps.insert(0, evaluate_inverse(parts[i], y))
                y = steps[0].x
        return _chain(steps, ends.extra_dims)

    def evaluate_pair(self, x: Tensor, y: Tensor) -> Evaluation:
        with without_start(self):
            return self.evaluate(x)

    def check(self, x: Tensor, name: str) -> Tensor:
        check_dense(x, name)
        parts = self.parts
        for i, part in enumerate(parts if name == "x" else parts[::-1]):
            ours = _ours(part)
            if ours is None:
                # The shape behind a foreign part is known there only.
                break
            if any(map(vars(ours).get, HOOKS)):
                refuse_hooks(ours, f"parts[{i if name == 'x' else len(parts) - 1 - i}]", NO_CALL)
            if i == 0 or ours.widens:
                x = ours.check(x, name)
        return x

    @property
    def remembers(self) -> bool:
        if self._ends().mixed:
            # A foreign part that is no module may change unseen.
            for part in self.parts:
                if _ours(part) is None and not isinstance(part, nn.Module):
                    return False
        return super().remembers

    @property
    def event_shape(self) -> tuple[int, ...] | None:
        """Return the event shape of the first part that has one, or None."""
        shapes = [_event_shape(part) for part in self.parts]
        return next((shape for shape in shapes if shape is not None), None)

    # Torch derives both from the parts at each request, which is dozens of times in a step.
    @property
    def domain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._ends().domain

    @property
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._ends().codomain

    def _ends(self) -> "_Ends":
        # The modules themselves, since another module may come to have the id of a freed one.
        key = tuple(self._modules.values())
        held, ends = self._derived
        if len(held) != len(key) or not all(map(is_, held, key)):
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
            mixed = any(_ours(part) is None for part, _, _ in parts)
            runs = _runs([part for part, _, _ in parts])
            ends = _Ends(domain, codomain, extra_dims, mixed, runs)
            self._derived = key, ends
        return ends


class _Ends(NamedTuple):
    """The ends of a stack, derived from the parts.

    Arguments:
        domain, codomain: of the whole stack.
        extra_dims: the dimensions of each part's log-determinant that are no batch.
        mixed: True if a part is of another library.
        runs: the begin and end of blocks in a row, and of every other part alone.
    """

    domain: constraints.Constraint
    codomain: constraints.Constraint
    extra_dims: list[int]
    mixed: bool
    runs: list[tuple[int, int]]


def _runs(parts: Sequence[Any]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for i, part in enumerate(parts):
        if i and type(part) is type(parts[i - 1]) is IResNet:
            runs[-1] = runs[-1][0], i + 1
        else:
            runs.append((i, i + 1))
    return runs


def _checked_behind(before: Sequence[Any], part: Any, x: Tensor, name: str) -> Tensor:
    """Check the tensor before a part if a foreign part made it; ``before`` ran, in its order."""
    ours = _ours(part)
    if ours is None or not before:
        return x
    behind_foreign = ours.widens and any(_ours(earlier) is None for earlier in before)
    return ours.check(x, name) if _ours(before[-1]) is None or behind_foreign else x


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
