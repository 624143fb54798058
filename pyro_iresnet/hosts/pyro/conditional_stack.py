"""Stacks of conditional transforms: one stack of Pyro transforms for each context."""

from collections.abc import Sequence
from typing import Any, NoReturn

from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransform,
    ConstantConditionalTransform,
)
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from ..._modules import modules_of
from ...contractions.hooks import HOOKS, refuse_hooks
from ...errors import ArgumentError, check_cache_size
from .cached_transform import NO_CALL
from .conditional import raise_unconditioned
from .registered import parts_in, slots_of
from .stack import Stack, checked_parts


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
        parts = checked_parts(parts, kinds, example)
        for i, part in enumerate(parts):
            if not isinstance(part, nn.Module) and modules_of(part):
                raise ArgumentError(
                    f"Expected parts[{i}] to be a module, since its parameters would not be "
                    f"registered; got {type(part).__name__}. "
                    "Pass the module in it, or ConditionalStack([module]).inv for its inverse."
                )
        super().__init__(parts, cache_size=check_cache_size(cache_size))

    @property
    def transforms(self) -> list[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The transforms, each with a method ``condition``."""
        parts = parts_in(self._slots, self)
        return [p if hasattr(p, "condition") else ConstantConditionalTransform(p) for p in parts]

    @transforms.setter
    def transforms(self, transforms: Sequence[Any]) -> None:
        # Pyro registers the modules, and wraps the parts that take no context.
        parts = [
            getattr(t, "transform", t) if isinstance(t, ConstantConditionalTransform) else t
            for t in transforms
        ]
        self._slots = slots_of(parts)

    def forward(self, *_: object, **__: object) -> NoReturn:
        """Raise, since there is no transform without a context."""
        raise_unconditioned(self)

    def condition(self, context: Tensor) -> Stack:
        """Return the stack at a context, as :meth:`ConditionalIResNet.condition` does."""
        if any(map(vars(self).get, HOOKS)):
            refuse_hooks(self, "stack", NO_CALL)
        stack = Stack([part.condition(context) for part in self.transforms], self._cache_size)
        stack.training = self.training
        return stack
