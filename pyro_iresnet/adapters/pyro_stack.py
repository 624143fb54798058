"""Stacks of Pyro transforms that know their log-determinant without inverting themselves."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from pyro.distributions import ComposeTransformModule
from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransform,
)
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import ComposeTransform, Transform, _InverseTransform

from ..anatomy import modules_of
from ..block import ResidualBlock
from ..errors import ArgumentError, ArgumentTypeError
from .memo import Retraced
from .pyro_conditional import raise_unconditioned


def _checked(parts: Iterable[Any], kinds: tuple[type, ...], example: str) -> list[Any]:
    """The parts as a list, or raise."""
    if not isinstance(parts, Iterable):
        raise ArgumentTypeError(
            f"Expected parts to be a sequence of transforms; got {type(parts).__name__}."
        )
    parts = list(parts)
    for i, part in enumerate(parts):
        if not isinstance(part, kinds):
            hint = " Wrap it: IResNet(block)." if isinstance(part, ResidualBlock) else ""
            raise ArgumentTypeError(
                f"Expected parts[{i}] to be {example}; got {type(part).__name__}.{hint}"
            )
    return parts


class Stack(ComposeTransformModule):
    """Transforms in turn, as one module; as Pyro's, but for its inverse.

    The ``inv`` of torch's composition recovers the points between its parts by inverting them,
    unless every part remembers its last call. Here ``stack.inv.log_abs_det_jacobian(x, y)`` runs
    the parts forward from ``y``, so that the density of ``[stack.inv]`` needs no inversion, with
    or without a memory, which a compiled graph does not have.

    Arguments:
        parts: the transforms, in the order they act.
        cache_size: as in torch; the parts have memories of their own.

    Raises:
        ArgumentTypeError: ``parts`` is no sequence, or a part no transform.

    Example:
        >>> import torch
        >>> from pyro_iresnet import Stack, actnorm, iresnet
        >>> stack = Stack([actnorm(2), iresnet(2), actnorm(2)])
        >>> x = torch.randn(100, 2)
        >>> y = stack(x)
        >>> stack.log_abs_det_jacobian(x, y).shape
        torch.Size([100])
    """

    def __init__(self, parts: Sequence[Transform], cache_size: int = 0) -> None:
        kinds, example = (Transform,), "a transform, such as iresnet(2)"
        super().__init__(_checked(parts, kinds, example), cache_size=cache_size)
        self._derived: Any = None

    def retrace(self, y: Tensor) -> Retraced:
        """``x``, the log-determinant there and what carries a gradient from ``x`` to ``y``.

        For a stack of this package's transforms; each looks up its last call once.
        """
        steps: list[Retraced] = []
        parts: Any = reversed(self.parts)
        for part in parts:
            steps.append(part.retrace(y))
            y = steps[-1].x

        def push(w: Tensor) -> Tensor:
            for step in reversed(steps):
                w = step.push(w)
            return w

        return Retraced(y, torch.stack([step.logdet for step in steps]).sum(0), push)

    # Torch derives both from the parts whenever it asks, which is dozens of times in a step.
    @property
    def domain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._ends()[0]

    @property
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._ends()[1]

    def _ends(self) -> tuple[constraints.Constraint, constraints.Constraint]:
        parts = tuple(map(id, self.parts))
        if self._derived is None or self._derived[0] != parts:
            base: Any = ComposeTransform
            self._derived = parts, (base.domain.fget(self), base.codomain.fget(self))
        return self._derived[1]

    @property
    def inv(self) -> Transform:
        return _InverseTransform(self)

    def with_cache(self, cache_size: int = 1) -> "Stack":
        """The same parts under a stack with that cache."""
        return self if cache_size == self._cache_size else Stack(self.parts, cache_size)

    def _inverse(self, y: Tensor) -> Tensor:
        x = y
        for part in reversed(self.parts):
            # Torch's inverse of a transform has none of its own, but that transform.
            x = part.inv(x) if isinstance(part, _InverseTransform) else part._inv_call(x)
        return x  # pyright: ignore[reportReturnType]


class ConditionalStack(ConditionalComposeTransformModule):
    """Transforms in turn, conditional or not, as one module; each context makes a :class:`Stack`.

    As Pyro's, but for the inverse: the density of ``[stack.inv]`` needs no inversion. Every
    ``condition`` shares the parts, so an ActNorm starts once, from the first batch under whatever
    context, and a change of mode reaches what was conditioned before it.

    Arguments:
        parts: the transforms, in the order they act.
        cache_size: of the stacks it makes, as in torch; the parts have memories of their own.

    Raises:
        ArgumentTypeError: a part is no transform.
        ArgumentError: a part is no module and holds some, whose parameters would not be registered.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import ConditionalStack, actnorm, conditional_iresnet
        >>> stack = ConditionalStack([actnorm(2), conditional_iresnet(2, context_dim=3)])
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> family = dist.ConditionalTransformedDistribution(base, [stack.inv])
        >>> family.condition(torch.randn(100, 3)).log_prob(torch.randn(100, 2)).shape
        torch.Size([100])
    """

    def __init__(
        self, parts: Sequence[Transform | ConditionalTransform], cache_size: int = 0
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
        """Raise: there is no transform without a context."""
        raise_unconditioned(self)

    def condition(self, context: Tensor) -> Stack:
        """The stack of ``x`` alone at a context; it shares the parameters and the mode.

        Arguments:
            context: shape ``(*batch, size)``, which broadcasts against the batch of ``x``.

        Raises:
            ArgumentError: a context of another size.
            ArgumentTypeError: a dtype other than that of the parameters.
        """
        stack = Stack([part.condition(context) for part in self.transforms], self._cache_size)
        stack.training = self.training
        return stack
