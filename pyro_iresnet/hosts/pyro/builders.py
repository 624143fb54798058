"""Ready-made transforms and stacks for Pyro."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, Unpack

from pyro.distributions import ConditionalTransform
from torch.distributions import Transform

from ...errors import check_positive_int
from ...options import BlockKeywords, BlockOptions
from ..interleave import interleave
from .actnorm import actnorm
from .conditional import ConditionalIResNet
from .conditional_stack import ConditionalStack
from .stack import Stack
from .transform import IResNet


def iresnet(
    input_dim: int, hidden_dims: Sequence[int] | None = None, **options: Unpack[BlockKeywords]
) -> IResNet:
    """Make an :class:`IResNet` with a fully connected ``g``.

    Arguments:
        input_dim: the number of coordinates.
        hidden_dims: the widths of the hidden layers; by default as in :class:`DenseContraction`.
        options: ``block``, ``lipschitz``, ``activation``, ``norm``, ``coordinates``, ``logdet`` and
            ``solver`` as in :class:`BlockOptions`, and ``options``, a record to start from.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> from pyro.distributions.transforms import iterated
        >>> stack = iterated(4, iresnet, 10, [32, 32], lipschitz=0.9)
    """
    size = check_positive_int(input_dim, "input_dim")
    return IResNet(BlockOptions.of(options, iresnet, hidden_dims=hidden_dims).build(size))


def conditional_iresnet(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    **options: Unpack[BlockKeywords],
) -> ConditionalIResNet:
    """Make a :class:`ConditionalIResNet` with a fully connected ``g``.

    An embedding of the context shifts and gates the hidden layers; see :class:`FiLM`.

    Arguments:
        context_dim: the size of the context.
        input_dim, hidden_dims, options: as in :func:`iresnet`, with the same errors.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch
        >>> transform = conditional_iresnet(input_dim=2, context_dim=3)
        >>> transform.condition(torch.randn(5, 3))(torch.randn(2)).shape
        torch.Size([5, 2])
    """
    size = check_positive_int(input_dim, "input_dim")
    context_dim = check_positive_int(context_dim, "context_dim")
    return ConditionalIResNet(
        BlockOptions.of(options, conditional_iresnet, hidden_dims=hidden_dims).build(
            size, context_dim
        )
    )


def iresnet_stack(
    input_dim: int,
    num_blocks: int = 8,
    hidden_dims: Sequence[int] | None = None,
    *,
    between: Callable[[int], Transform] | None = actnorm,
    **options: Unpack[BlockKeywords],
) -> Stack:
    """Make a stack of ActNorms and blocks in turn (Behrmann et al. 2019, Section 5).

    The stack is a module: ``stack.parameters()`` trains all of it, and ``stack.eval()`` makes the
    log-density deterministic. For a density estimator let the stack run from data to noise, as
    ``TransformedDistribution(base, [stack.inv])``: then training needs no inversion, and the
    ActNorms start from the first batch of data. For a guide take
    :class:`AutoIResNet`; ``AutoNormalizingFlow(model, iresnet_stack)`` of Pyro works too.

    Change first: ``num_blocks`` (each stretches by less than 2, in its coordinates), then
    ``hidden_dims``.

    Arguments:
        input_dim, hidden_dims: as in :func:`iresnet`, with the same errors.
        num_blocks: the number of blocks.
        between: makes the transform before each block and at the end, called with ``input_dim``;
            None for no transform.
        options: of each block, as in :func:`iresnet`. As ``options`` a sequence of records is taken
            in turn: a list of two gives every other block the second record.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import iresnet_stack
        >>> stack = iresnet_stack(input_dim=2, num_blocks=4)
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> flow = dist.TransformedDistribution(base, [stack.inv])
        >>> loss = -flow.log_prob(torch.randn(100, 2)).mean()
        >>> loss.backward()
    """
    records = BlockOptions.records(options, iresnet_stack, hidden_dims=hidden_dims)
    return Stack(_parts(IResNet, input_dim, None, num_blocks, between, records))


def conditional_iresnet_stack(
    input_dim: int,
    context_dim: int,
    num_blocks: int = 8,
    hidden_dims: Sequence[int] | None = None,
    *,
    between: Callable[[int], Transform] | None = actnorm,
    **options: Unpack[BlockKeywords],
) -> ConditionalStack:
    """Make a stack of conditional blocks, with ActNorms as in :func:`iresnet_stack`.

    The ActNorms know no context. Use the stack in a
    :class:`~pyro.distributions.ConditionalTransformedDistribution`: as a conditional density with
    ``[stack.inv]``, or as an amortised guide with ``[stack]`` and the context from an encoder,
    which trains too. :class:`ConditionalIResNet` says how a context broadcasts.

    Arguments:
        context_dim: the size of the context.
        input_dim, num_blocks, hidden_dims, between, options: as in :func:`iresnet_stack`, with the
            same errors.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import conditional_iresnet_stack
        >>> stack = conditional_iresnet_stack(input_dim=2, context_dim=3, num_blocks=4)
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> family = dist.ConditionalTransformedDistribution(base, [stack.inv])
        >>> loss = -family.condition(torch.randn(100, 3)).log_prob(torch.randn(100, 2)).mean()
        >>> loss.backward()
    """
    context_dim = check_positive_int(context_dim, "context_dim")
    records = BlockOptions.records(options, conditional_iresnet_stack, hidden_dims=hidden_dims)
    kind = ConditionalIResNet
    return ConditionalStack(_parts(kind, input_dim, context_dim, num_blocks, between, records))


def _parts(
    kind: Callable[..., Any],
    input_dim: int,
    context_dim: int | None,
    num_blocks: int,
    between: Callable[[int], Transform] | None,
    records: Sequence[BlockOptions],
) -> list[Any]:
    """List the blocks and the transforms between them."""
    size = check_positive_int(input_dim, "input_dim")
    count = check_positive_int(num_blocks, "num_blocks")
    in_turn = islice(cycle(records), count)
    blocks = (kind(record.build(size, context_dim)) for record in in_turn)
    kinds = Transform if context_dim is None else (Transform, ConditionalTransform)
    return interleave(blocks, between, size, kinds, "actnorm")
