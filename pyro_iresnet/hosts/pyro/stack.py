"""Stacks of Pyro transforms: one evaluation and one memory for all parts."""

import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

from pyro.distributions import ComposeTransformModule
from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransform,
)
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import ComposeTransform, Transform, _InverseTransform

from ..._modules import contractions_of, modules_of
from ..._torch import is_compiling
from ...blocks import Block, Evaluation
from ...cached import together
from ...errors import ArgumentError, ArgumentTypeError
from ...operators.linearization import vjp_of
from .cached_transform import CachedTransform
from .conditional import raise_unconditioned


def evaluate(transform: Any, x: Tensor) -> Evaluation:
    """Evaluate any bijective torch transform at ``x``."""
    if isinstance(transform, CachedTransform):
        return transform.evaluate(x)
    if isinstance(transform, _InverseTransform):
        return evaluate_inverse(transform.inv, x).inverted()
    return _evaluation(transform, x, transform(x))


def evaluate_inverse(transform: Any, y: Tensor) -> Evaluation:
    """Evaluate any bijective torch transform at the ``x`` of ``y``."""
    if isinstance(transform, CachedTransform):
        return transform.evaluate_inverse(y)
    if isinstance(transform, _InverseTransform):
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


def _checked(parts: Iterable[Any], kinds: tuple[type, ...], example: str) -> list[Any]:
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
        parts = _checked(parts, kinds, example)
        _check_neighbours(parts)
        super().__init__(parts, cache_size=cache_size)
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
            for part in self.parts:
                steps.append(evaluate(part, steps[-1].y if steps else x))
        return _chain(steps, self._ends()[2])

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        if not self.parts:
            return _identity(y)
        steps: list[Evaluation] = []
        with together(contractions_of(self)):
            for part in reversed(self.parts):
                steps.insert(0, evaluate_inverse(part, steps[0].x if steps else y))
        return _chain(steps, self._ends()[2])

    def check(self, x: Tensor, name: str) -> Tensor:
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(
                f"Expected {name} to be a torch.Tensor; got {type(x).__name__}."
            )
        entrance = 0 if name == "x" else len(self.parts) - 1
        for i, part in enumerate(self.parts):
            inner = part.inv if isinstance(part, _InverseTransform) else part
            if isinstance(inner, CachedTransform) and (i == entrance or inner.widens):
                x = inner.check(x, name)
        return x

    @property
    def inv(self) -> Transform:
        if is_compiling():
            # A compiler follows no weak reference.
            return _InverseTransform(self)
        reference: Any = self._inv
        inverse = None if reference is None else reference()
        if inverse is None:
            inverse = _InverseTransform(self)
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
        parts = tuple(map(id, self.parts))
        if self._derived is None or self._derived[0] != parts:
            base: Any = ComposeTransform
            domain, codomain = base.domain.fget(self), base.codomain.fget(self)
            extra_dims, event_dim = [], domain.event_dim
            for part in self.parts:
                extra_dims.append(event_dim - part.domain.event_dim)
                event_dim += part.codomain.event_dim - part.domain.event_dim
            self._derived = parts, (domain, codomain, extra_dims)
        return self._derived[1]

    def with_cache(self, cache_size: int = 1) -> "Stack":
        """Return a stack of the same parts with another cache."""
        if cache_size == self._cache_size:
            return self
        other = Stack(self.parts, cache_size)
        other.training = self.training
        return other


class ConditionalStack(ConditionalComposeTransformModule):
    """Transforms in turn, conditional or not, as one module; each context makes a :class:`Stack`.

    The density of ``[stack.inv]`` needs no inversion. Every ``condition`` shares the parts, so an
    ActNorm starts once, from the first batch under any context, and a change of mode reaches the
    stacks conditioned before it.

    Arguments:
        parts: the transforms, in the order they act.
        cache_size: of the stacks that ``condition`` makes.

    Raises:
        ArgumentError, ArgumentTypeError: a part is no transform, or is no module and holds modules,
            whose parameters would not be registered.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import actnorm, conditional_iresnet
        >>> from pyro_iresnet.hosts.pyro import ConditionalStack
        >>> stack = ConditionalStack([actnorm(2), conditional_iresnet(2, context_dim=3)])
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> family = dist.ConditionalTransformedDistribution(base, [stack.inv])
        >>> family.condition(torch.randn(100, 3)).log_prob(torch.randn(100, 2)).shape
        torch.Size([100])
    """

    def __init__(
        self, parts: Sequence[Transform | ConditionalTransform], cache_size: int = 1
    ) -> None:
        kinds = Transform, ConditionalTransform
        example = "a transform or a conditional transform, such as conditional_iresnet(2, 3)"
        parts = _checked(parts, kinds, example)
        for i, part in enumerate(parts):
            if not isinstance(part, nn.Module) and modules_of(part):
                raise ArgumentError(
                    f"Expected parts[{i}] to be a module, since its parameters would not be "
                    f"registered; got {type(part).__name__}. "
                    "Pass the module in it, or ConditionalStack([module]).inv for its inverse."
                )
        super().__init__(parts, cache_size=cache_size)

    def forward(self, *_: object, **__: object) -> NoReturn:
        """Raise, since there is no transform without a context."""
        raise_unconditioned(self)

    def condition(self, context: Tensor) -> Stack:
        """Return the stack at a context, as :meth:`ConditionalIResNet.condition` does."""
        stack = Stack([part.condition(context) for part in self.transforms], self._cache_size)
        stack.training = self.training
        return stack


def _identity(x: Tensor) -> Evaluation:
    return Evaluation(x, x, lambda: x.new_zeros(()), lambda w: w, lambda w: w)


def _event_shape(part: Any) -> tuple[int, ...] | None:
    inner = part.inv if isinstance(part, _InverseTransform) else part
    return inner.event_shape if isinstance(inner, CachedTransform) else None  # pyright: ignore[reportAttributeAccessIssue]


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
