"""Ready-made stacks for vectors."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice, repeat
from typing import Any

from torch.distributions import Transform

from ..adapters import ConditionalIResNet, ConditionalStack, InverseIResNet, IResNet, Stack
from ..adapters.builder import dense_block
from ..block import ResidualBlock
from ..contractive import Activation, Cholesky, LipSwish, Norm
from ..coordinates import Chart, Diagonal, Metric
from ..errors import ArgumentError, check_positive_int
from ..inverse import Solver
from ..logdet import LogDet
from .actnorm import actnorm
from .between import interleaved


def iresnet_stack(
    input_dim: int,
    num_blocks: int = 8,
    hidden_dims: Sequence[int] | None = None,
    *,
    lipschitz: float = 0.97,
    activation: Callable[[], Activation] = LipSwish,
    norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
    metric: Metric | Sequence[Metric] = Diagonal(),  # noqa: B008
    chart: Chart | Sequence[Chart | None] | None = None,
    logdet: LogDet | None = None,
    solver: Solver | None = None,
    between: Callable[[int], Transform] | None = actnorm,
) -> Stack:
    """ActNorm and residual blocks in turn, and an ActNorm at the end: a Pyro transform.

    A module: ``stack.parameters()`` trains all of it, and ``stack.eval()`` makes the log-density
    deterministic. For a density estimator let it run from data to noise, as
    ``TransformedDistribution(base, [stack.inv])``: then training needs no inversion, and the
    ActNorms start from the first batch of data. For a guide pass it to ``AutoNormalizingFlow``.

    Change first: ``num_blocks`` (each stretches by less than 2, in its metric), then
    ``hidden_dims``.

    Arguments:
        input_dim: the number of coordinates.
        num_blocks: how many residual blocks.
        hidden_dims: the widths of the hidden layers of each; default two of ``2 * input_dim``, at
            least 64 and at most 512.
        lipschitz, activation, norm, logdet, solver: of each block, as in :func:`iresnet`.
        metric, chart: of each block, or a sequence that the blocks take in turn:
            ``chart=(Asinh(), None)`` gives every other block a chart.
        between: makes what stands before each block and at the end, called with ``input_dim``;
            None for nothing.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Invertible Residual Networks (Behrmann et al., 2019), Section 5.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import iresnet_stack
        >>> stack = iresnet_stack(input_dim=2, num_blocks=4)
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> flow = dist.TransformedDistribution(base, [stack.inv])
        >>> loss = -flow.log_prob(torch.randn(100, 2)).mean()
        >>> loss.backward()
    """
    return Stack(_parts([IResNet], context_dim=None, **locals()))


def implicit_stack(
    input_dim: int,
    num_blocks: int = 8,
    hidden_dims: Sequence[int] | None = None,
    *,
    lipschitz: float = 0.97,
    activation: Callable[[], Activation] = LipSwish,
    norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
    metric: Metric | Sequence[Metric] = Diagonal(),  # noqa: B008
    chart: Chart | Sequence[Chart | None] | None = None,
    logdet: LogDet | None = None,
    solver: Solver | None = None,
    between: Callable[[int], Transform] | None = actnorm,
) -> Stack:
    r"""Blocks and inverse blocks in turn, with ActNorms as in :func:`iresnet_stack`.

    A block stretches by at most :math:`1 + L` and shrinks by at most :math:`1 - L`; its inverse
    stretches by up to :math:`1 / (1 - L)`. Together they reach slopes that no stack of plain blocks
    of that size does: with two blocks at L = 0.9 up to 19 instead of 3.6. Both directions solve, in
    every other block; gradients cross by the implicit function theorem. In nflows the same is
    ``CompositeTransform([IResNetTransform(D), InverseTransform(IResNetTransform(D))])``.

    Arguments:
        input_dim, hidden_dims, lipschitz, activation, norm, metric, chart, logdet, solver,
            between: as in :func:`iresnet_stack`.
        num_blocks: how many, blocks and inverse blocks together; the first is a block.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Implicit Normalizing Flows (Lu, Chen, Li, Wang and Zhu, 2021).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import implicit_stack
        >>> stack = implicit_stack(input_dim=2, num_blocks=4)
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> flow = dist.TransformedDistribution(base, [stack.inv])
        >>> loss = -flow.log_prob(torch.randn(100, 2)).mean()
        >>> loss.backward()
    """
    return Stack(_parts([IResNet, InverseIResNet], context_dim=None, **locals()))


def conditional_iresnet_stack(
    input_dim: int,
    context_dim: int,
    num_blocks: int = 8,
    hidden_dims: Sequence[int] | None = None,
    *,
    lipschitz: float = 0.97,
    activation: Callable[[], Activation] = LipSwish,
    norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
    metric: Metric | Sequence[Metric] = Diagonal(),  # noqa: B008
    chart: Chart | Sequence[Chart | None] | None = None,
    logdet: LogDet | None = None,
    solver: Solver | None = None,
    between: Callable[[int], Transform] | None = actnorm,
) -> ConditionalStack:
    """Conditional blocks, with ActNorms as in :func:`iresnet_stack`, which know no context.

    For :class:`~pyro.distributions.ConditionalTransformedDistribution`: a conditional density
    with ``[stack.inv]``, or an amortised guide with ``[stack]`` and the context from an encoder,
    which trains with it. See :class:`ConditionalIResNet` for how a context broadcasts.

    Arguments:
        input_dim, num_blocks, hidden_dims, lipschitz, activation, norm, metric, chart, logdet,
            solver, between: as in :func:`iresnet_stack`.
        context_dim: the size of the context.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import conditional_iresnet_stack
        >>> stack = conditional_iresnet_stack(input_dim=2, context_dim=3, num_blocks=4)
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> flow = dist.ConditionalTransformedDistribution(base, [stack.inv])
        >>> loss = -flow.condition(torch.randn(100, 3)).log_prob(torch.randn(100, 2)).mean()
        >>> loss.backward()
    """
    return ConditionalStack(_parts([ConditionalIResNet], **locals()))


# The builders hand on all their arguments by name, as locals(), so that none is listed twice.
def _parts(
    kinds: Sequence[Callable[[ResidualBlock], Any]],
    *,
    input_dim: int,
    num_blocks: int,
    hidden_dims: Sequence[int] | None,
    metric: Metric | Sequence[Metric],
    chart: Chart | Sequence[Chart | None] | None,
    between: Callable[[int], Transform] | None,
    **options: Any,
) -> list[Any]:
    """The blocks as their kinds in turn, and what stands between them."""

    def made(kind: Callable[[ResidualBlock], Any], m: Metric, c: Chart | None) -> Any:
        return kind(dense_block(input_dim, hidden_dims, metric=m, chart=c, **options))

    settings = zip(cycle(kinds), _in_turn(metric, "metric"), _in_turn(chart, "chart"), strict=False)
    chosen = islice(settings, check_positive_int(num_blocks, "num_blocks"))
    makers = (partial(made, *setting) for setting in chosen)
    return interleaved(makers, between, input_dim, "actnorm")


def _in_turn(value: Any, name: str) -> Iterator[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return repeat(value)
    if len(value) == 0:
        raise ArgumentError(f"Expected {name} to be one or a sequence of some; got none.")
    return cycle(value)
