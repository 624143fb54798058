"""The block under a context as Pyro's ``ConditionalTransformModule``."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.ops.provenance import ProvenanceTensor
from torch import Tensor
from torch.distributions import constraints

from ..._settings import SavedSettings
from ...blocks import Block, Evaluation
from ...contractions.hooks import HOOKS, refuse_hooks
from ...errors import ArgumentError, check_instance
from .cached_transform import NO_CALL, forget_the_store
from .provenance import evaluate_tracked, without_provenance
from .transform import BlockTransform, reals


class ConditionedIResNet(BlockTransform):
    """A block at one context, as :meth:`ConditionalIResNet.condition` returns it.

    The batch of the context counts as the batch of the transform, as with torch's
    ``AffineTransform``: ``x`` of shape ``(*batch, *event)`` and the context, shape
    ``(*batch, size)``, broadcast, in both directions, and ``forward_shape`` says so. Parameters and
    mode are those of the block. The context is a buffer outside the ``state_dict``, so that a write
    to it is noticed as a write to ``x`` is. ``cache_size`` is 1 to remember the last call, 0 for no
    memory.
    """

    widens = True
    context: Tensor

    def __init__(self, block: Block, context: Tensor, *, cache_size: int = 1) -> None:
        super().__init__(block, cache_size=cache_size)
        self.register_buffer("context", context, persistent=False)

    def check(self, x: Tensor, name: str) -> Tensor:
        return self.block.check(x, without_provenance(self.context), name)[0]

    def evaluate(self, x: Tensor) -> Evaluation:
        if isinstance(self.context, ProvenanceTensor):
            return evaluate_tracked(self.block.evaluate, x, self._context_of(x))
        return self.block.evaluate(x, self._context_of(x))

    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        if isinstance(self.context, ProvenanceTensor):
            return evaluate_tracked(self.block.evaluate_inverse, y, self._context_of(y))
        return self.block.evaluate_inverse(y, self._context_of(y))

    def _context_of(self, x: Tensor) -> Tensor:
        """Return the context with the batch of a checked tensor."""
        batch = x.shape[: x.dim() - self.block.event_dim]
        return self.context.expand(*batch, self.context.shape[-1])

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return ``shape`` with the batch of the context, or raise."""
        like = self.context.new_empty(()).expand(tuple(shape))
        return self.block.check(like, without_provenance(self.context), "shape")[0].shape


def raise_unconditioned(transform: object) -> NoReturn:
    """Raise for a conditional transform that is called without a context."""
    raise ArgumentError(
        f"Expected a context first: {type(transform).__name__} is conditional. Call "
        "transform.condition(context), or use it in a ConditionalTransformedDistribution."
    )


class ConditionalIResNet(SavedSettings, ConditionalTransformModule):
    r"""A conditional block, such as :math:`y = x + g(x; c)` (Behrmann et al., 2019), for Pyro.

    :math:`\mathrm{Lip}(g(\cdot; c)) < 1` holds for every context ``c``, so the transform is a
    bijection under each context, and both directions work for any value. Use it in a
    :class:`~pyro.distributions.ConditionalTransformedDistribution`: as an amortised guide, whose
    encoder makes the context, or as a conditional density, with ``[transform.inv]`` so that
    training needs no inversion. Gradients reach the context in both directions.

    The batch of the context is a batch of the distribution: under a context of shape ``(B, C)`` a
    base of shape ``(D,)`` is sampled afresh for each row, and ``sample((S,))`` has shape
    ``(S, B, D)``. :func:`conditional_iresnet` makes a block and its transform.

    Arguments:
        block: a :class:`Block` whose contraction has a ``context_dim``.

    Raises:
        ArgumentError: the contraction takes no context.
        ArgumentTypeError: ``block`` is no ``Block``.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import ConditionalIResNet, DenseContraction, ResidualBlock
        >>> transform = ConditionalIResNet(ResidualBlock(DenseContraction(10, context_dim=3)))
        >>> base = dist.Normal(torch.zeros(10), torch.ones(10)).to_event(1)
        >>> family = dist.ConditionalTransformedDistribution(base, [transform])
        >>> flow = family.condition(torch.randn(4, 3))
        >>> flow.log_prob(flow.rsample((2,))).shape
        torch.Size([2, 4])
    """

    bijective = True

    def __init__(self, block: Block) -> None:
        super().__init__()
        example = "ResidualBlock(DenseContraction(2, context_dim=3))"
        self.block = check_instance(block, Block, "block", example)
        if block.context_dim is None:
            raise ArgumentError(
                "Expected block to have a contraction with a context; got one without. "
                f"Build it with context_dim, such as {example}, or use IResNet(block)."
            )

    def settings(self) -> dict[str, Any]:
        return {"direction": "forward"}

    @property
    def options(self) -> object:
        """Return the :class:`BlockOptions` of the builder, or None."""
        return self.block.options

    @property
    def domain(self) -> constraints.Constraint:
        """Return all of the event space."""
        return reals(self.block.event_dim)

    @property
    def codomain(self) -> constraints.Constraint:
        """Return all of the event space."""
        return reals(self.block.event_dim)

    def forward(self, *_: object, **__: object) -> NoReturn:
        """Raise, since there is no transform without a context."""
        raise_unconditioned(self)

    def condition(self, context: Tensor) -> ConditionedIResNet:
        """Return the transform of ``x`` alone at a context; it shares the parameters and the mode.

        The context has the shape ``(*batch, size)`` and broadcasts against the batch of ``x``.
        Another size or dtype raises :class:`ArgumentError` or :class:`ArgumentTypeError`.
        """
        if any(map(vars(self).get, HOOKS)):
            refuse_hooks(self, "transform", NO_CALL)
        self.block.contraction.check_context(without_provenance(context))
        conditioned = ConditionedIResNet(self.block, context)
        conditioned.training = self.training
        return conditioned

    def __getstate__(self) -> dict[str, Any]:
        forget_the_store(self)
        return dict(vars(self))
