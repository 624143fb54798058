"""The log-determinant of a whole flow with its standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from nflows.flows import Flow
from nflows.transforms import Transform as NflowsTransform
from pyro.distributions.conditional import ConditionalDistribution, ConditionalTransform
from torch import Tensor, nn
from torch.distributions import Transform, TransformedDistribution

from ..anatomy import evaluating, modules_of
from ..block import ResidualBlock
from ..errors import ArgumentError, ArgumentTypeError, check_positive_int
from ..logdet import LogDet, auto_logdet

# Rows that one call evaluates, if the draws allow it.
ROWS = 4096


class LogDetEstimate(NamedTuple):
    """What :func:`logdet_with_error` returns.

    Arguments:
        mean: the log-determinant of each sample, nats, shape ``(*batch,)``.
        standard_error: of that mean, nats, shape ``(*batch,)``.

    Example:
        >>> import torch
        >>> from pyro_iresnet import Exact, iresnet, logdet_with_error
        >>> estimate = logdet_with_error(iresnet(3, logdet=Exact()), torch.zeros(5, 3))
        >>> estimate.mean.shape, estimate.standard_error.max().item() < 1e-6
        (torch.Size([5]), True)
    """

    mean: Tensor
    standard_error: Tensor


@torch.no_grad()
def logdet_with_error(
    flow: object, x: Tensor, draws: int = 100, *, context: Tensor | None = None
) -> LogDetEstimate:
    r"""The log-determinant of a flow at ``x`` as the mean of many draws, with its standard error.

    .. math:: \bar\ell = \tfrac1n \sum_i \ell_i, \qquad
              \mathrm{se} = \sqrt{\tfrac{1}{n (n - 1)} \sum_i (\ell_i - \bar\ell)^2}

    In the mode the flow is in, train or eval, as far as its blocks go; what stands between them is
    taken in eval mode, so that nothing starts or counts. Each draw takes new probes, those of
    :class:`PowerSeries` and :class:`ConvergedSeries` too, which are otherwise fixed; an exact
    log-determinant has standard error 0. What a :class:`PowerSeries` cuts off is a bias, which no
    draw shows: see :meth:`PowerSeries.truncation_error`.

    Arguments:
        flow: a :class:`ResidualBlock` or a torch or Pyro transform, for ``log|det dy/dx|``; an
            nflows ``Transform``, for what its ``forward`` returns; a ``TransformedDistribution``
            or an nflows ``Flow``, for the map from data to noise, which is what ``log_prob`` adds
            to the density of the noise. Those of Pyro also conditional.
        x: where, shape ``(*batch, *event)``.
        draws: how many, at least 2.
        context: shape ``(*batch, size)``, for what is conditional.

    Returns:
        mean and standard error, nats, shape ``(*batch,)`` each.

    Raises:
        ArgumentTypeError: ``flow`` is none of these.
        ArgumentError: fewer than 2 draws, a context for a flow that takes none, or none for one
            that does.

    Example:
        >>> import torch
        >>> from pyro_iresnet import iresnet, logdet_with_error
        >>> mean, error = logdet_with_error(iresnet(20), torch.randn(5, 20), draws=50)
        >>> mean.shape, bool((error > 0).all())
        (torch.Size([5]), True)
    """
    if isinstance(draws, int) and not isinstance(draws, bool) and draws < 2:
        raise ArgumentError(f"Expected draws to be at least 2; got {draws}.")
    draws = check_positive_int(draws, "draws")
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(f"Expected x to be a torch.Tensor; got {type(x).__name__}.")
    logdet = logdets_of(flow, context is not None)
    modules = modules_of(flow)
    blocks = [m for m in modules if isinstance(m, ResidualBlock)]
    fixed = any(_reseeded(block, x, 1) != _reseeded(block, x, 2) for block in blocks)
    rows = max(1, x.numel() // max(1, x.shape[-1] if x.dim() else 1))
    at_once = 1 if fixed else max(1, ROWS // rows)
    estimates = []
    with unchanged(modules, blocks):
        for start in range(0, draws, at_once):
            if fixed:
                for block in blocks:
                    seed = int(torch.randint(2**31, ()))
                    block.logdet = _reseeded(block, x, seed)
            estimates.append(logdet(x, context, min(at_once, draws - start)))
    values = torch.cat(estimates)
    return LogDetEstimate(values.mean(0), values.std(0) / draws**0.5)


def logdets_of(flow: object, has_context: bool) -> Callable[[Tensor, Tensor | None, int], Tensor]:
    """What computes the log-determinants of several copies, shape ``(copies, *batch)``."""
    if isinstance(flow, ResidualBlock):
        return lambda x, context, n: _of_block(flow, x, context, n)
    if isinstance(flow, Flow):
        return lambda x, context, n: _of_nflows(
            flow._transform, x, None if context is None else flow._embedding_net(context), n
        )
    if isinstance(flow, NflowsTransform):
        return lambda x, context, n: _of_nflows(flow, x, context, n)
    if isinstance(flow, ConditionalTransform | ConditionalDistribution):
        if not has_context:
            raise ArgumentError(
                f"Expected a context for a {type(flow).__name__}; got none. Pass context=..."
            )
        return lambda x, context, n: _of_conditional(flow, x, context, n)
    if has_context:
        raise ArgumentError(
            "Expected no context for a torch or Pyro transform or distribution that is not "
            "conditional, or is conditioned already; got one."
        )
    if isinstance(flow, Transform):
        return lambda x, context, n: _of_transform(flow, _copies(x, n))
    if isinstance(flow, TransformedDistribution):
        return lambda x, context, n: _of_distribution(flow, _copies(x, n))
    raise ArgumentTypeError(
        "Expected flow to be a ResidualBlock, a torch or Pyro transform or "
        "TransformedDistribution, conditional or not, or an nflows Transform or Flow; got "
        f"{type(flow).__name__}."
    )


def _copies(x: Tensor, n: int) -> Tensor:
    return x.expand(n, *x.shape).clone()


def _of_block(block: ResidualBlock, x: Tensor, context: Tensor | None, n: int) -> Tensor:
    x, context = block.contraction.check(x, context)
    repeated = None if context is None else _copies(context, n)
    return block.forward_and_logdet(_copies(x, n), repeated)[1]


def _of_nflows(transform: nn.Module, x: Tensor, context: Tensor | None, n: int) -> Tensor:
    if x.dim() < 2:
        raise ArgumentError(
            f"Expected x of shape (batch, features) for nflows; got {tuple(x.shape)}."
        )
    if context is not None and len(context) != len(x):
        raise ArgumentError(
            f"Expected a context for each of the {len(x)} rows of x; got {len(context)}."
        )
    rows = _copies(x, n).flatten(0, 1)
    repeated = None if context is None else _copies(context, n).flatten(0, 1)
    return transform(rows, repeated)[1].reshape(n, len(x))


def _of_conditional(
    flow: ConditionalTransform | ConditionalDistribution, x: Tensor, context: Tensor | None, n: int
) -> Tensor:
    at_context: Any = flow.condition(context)
    # The copies stand before the batch of both.
    if isinstance(at_context, Transform):
        x = x.expand(at_context.forward_shape(x.shape))
    elif isinstance(at_context, TransformedDistribution):
        shape = at_context.batch_shape + at_context.event_shape
        x = x.expand(torch.broadcast_shapes(x.shape, shape))
    return logdets_of(at_context, False)(x, None, n)


def _of_transform(transform: Transform, x: Tensor) -> Tensor:
    return transform.log_abs_det_jacobian(x, transform(x))


def _of_distribution(flow: TransformedDistribution, y: Tensor) -> Tensor:
    total = y.new_zeros(())
    event_dim = len(flow.event_shape)
    for transform in reversed(flow.transforms):
        x: Tensor = transform.inv(y)  # pyright: ignore[reportAssignmentType]
        logdet = transform.log_abs_det_jacobian(x, y)
        extra = event_dim - transform.codomain.event_dim
        total = total - (logdet.flatten(-extra).sum(-1) if extra else logdet)
        event_dim += transform.domain.event_dim - transform.codomain.event_dim
        y = x
    return total


def _reseeded(block: ResidualBlock, x: Tensor, seed: int) -> LogDet:
    size = block.contraction.event_size or x.shape[-block.contraction.event_dim :].numel()
    logdet = auto_logdet(size) if block.logdet is None else block.logdet
    return logdet.with_seed(seed).for_mode(block.training)


@contextmanager
def unchanged(modules: list[nn.Module], blocks: list[ResidualBlock]) -> Iterator[None]:
    """All but the blocks in eval mode, for as long as it is open; then everything as it was.

    In train mode an ActNorm would start from copies of ``x``, and a BatchNorm count them.
    """
    estimators = [block.logdet for block in blocks]
    inside = {id(m) for block in blocks for m in block.modules()}
    try:
        with evaluating([m for m in modules if id(m) not in inside]):
            yield
    finally:
        for block, estimator in zip(blocks, estimators, strict=True):
            block.logdet = estimator
