"""The log-determinant of a whole flow with its standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro.distributions.conditional import ConditionalDistribution, ConditionalTransform
from torch import Tensor, nn
from torch.distributions import Transform, TransformedDistribution

from .._modules import evaluating, modules_of
from ..blocks import Block
from ..errors import ArgumentError, ArgumentTypeError, check_dense, check_positive_int
from ..logdet import LogDet, auto_logdet

# Rows that one call evaluates, if the draws allow it.
ROWS = 4096


class LogDetEstimate(NamedTuple):
    """Mean and standard error of a log-determinant, nats, shape ``(*batch,)`` each.

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
    r"""Estimate the log-determinant of a flow at ``x`` by many draws, with its standard error.

    .. math:: \bar\ell = \tfrac1n \sum_i \ell_i, \qquad
              \mathrm{se} = \sqrt{\tfrac{1}{n (n - 1)} \sum_i (\ell_i - \bar\ell)^2}

    The blocks are in the mode of the flow, train or eval. All other modules are in eval mode, so
    that nothing starts or counts. A block that draws with :class:`Subsample`, the default in train
    mode, draws with ``Roulette()`` here: the same expectation, less variance, and independent
    samples. Each draw takes new probes, also for :class:`PowerSeries` and
    :class:`ConvergedSeries`, whose probes are otherwise fixed. An exact log-determinant has
    standard error 0. The cut of a :class:`PowerSeries` is a bias that no draw shows: see
    :meth:`PowerSeries.truncation_error`. Mean and error are in nats, shape ``(*batch,)``.

    Arguments:
        flow: a :class:`Block` or a torch or Pyro transform, for ``log|det dy/dx|``; an nflows
            ``Transform``, for the value of its ``forward``; a ``TransformedDistribution`` or an
            nflows ``Flow``, for the map from data to noise, the part that ``log_prob`` adds to the
            density of the noise. Objects of Pyro may be conditional.
        x: the points, shape ``(*batch, *event)``.
        draws: the number of draws, at least 2.
        context: shape ``(*batch, size)``, for a conditional flow.

    Raises:
        ArgumentError, ArgumentTypeError: ``flow`` is none of these, there are fewer than 2 draws,
            or a context is missing or superfluous.

    Example:
        >>> import torch
        >>> from pyro_iresnet import iresnet, logdet_with_error
        >>> mean, error = logdet_with_error(iresnet(20), torch.randn(5, 20), draws=50)
        >>> mean.shape, bool((error > 0).all())
        (torch.Size([5]), True)
    """
    draws = check_positive_int(draws, "draws", 2)
    check_dense(x, "x")
    logdet = logdets_of(flow, context is not None)
    modules = modules_of(flow)
    blocks = [m for m in modules if isinstance(m, Block)]
    fixed = any(_reseeded(block, x, 1) != _reseeded(block, x, 2) for block in blocks)
    rows = max(1, x.numel() // max(1, x.shape[-1] if x.dim() else 1))
    at_once = 1 if fixed else max(1, ROWS // rows)
    estimates = []
    with unchanged(modules, blocks):
        for block in blocks:
            block.logdet = _estimator(block, x).for_likelihood()
        for start in range(0, draws, at_once):
            if fixed:
                for block in blocks:
                    seed = int(torch.randint(2**31, ()))
                    block.logdet = _reseeded(block, x, seed)
            with naming("x", x):
                estimates.append(logdet(x, context, min(at_once, draws - start)))
    values = torch.cat(estimates)
    mean = values.mean(0)
    squares = (values - mean).square().sum(0)
    return LogDetEstimate(mean, (squares / (draws * (draws - 1))).sqrt())


def is_flow(flow: object) -> bool:
    """Return True for an object of which :func:`logdet_with_error` has a log-determinant."""
    kinds = (
        Block | Transform | TransformedDistribution | ConditionalTransform | ConditionalDistribution
    )
    of_nflows = ("flows", "Flow"), ("transforms", "Transform")
    return isinstance(flow, kinds) or any(_is_of_nflows(flow, *name) for name in of_nflows)


def logdets_of(flow: Any, has_context: bool) -> Callable[[Tensor, Tensor | None, int], Tensor]:
    """Return a function of x, context and a number of copies, shape ``(copies, *batch)``."""
    if not is_flow(flow):
        raise ArgumentTypeError(
            "Expected flow to be a Block, a torch or Pyro transform or "
            "TransformedDistribution, conditional or not, or an nflows Transform or Flow; got "
            f"{type(flow).__name__}. The flow of a guide is guide.transform."
        )
    if isinstance(flow, Block):
        return lambda x, context, n: _of_block(flow, x, context, n)
    if _is_of_nflows(flow, "flows", "Flow"):
        return lambda x, context, n: _of_nflows(
            flow._transform, x, None if context is None else flow._embedding_net(context), n
        )
    if _is_of_nflows(flow, "transforms", "Transform"):
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
    return lambda x, context, n: _of_distribution(flow, _copies(x, n))


@contextmanager
def naming(name: str, x: Tensor) -> Iterator[None]:
    """Name the argument of the caller in the errors of a flow, which sees copies of the points."""
    try:
        yield
    except ArgumentError as error:
        if not str(error).startswith(("Expected x ", "Expected inputs ")):
            raise
        raise ArgumentError(
            f"Expected {name} to be points that the flow accepts; got shape {tuple(x.shape)} and "
            f"dtype {x.dtype}. The flow, called with copies of the points: {error}"
        ) from error


def _is_of_nflows(flow: object, module: str, name: str) -> bool:
    # An object of nflows exists only if nflows is imported, and its import takes seconds.
    nflows = sys.modules.get(f"nflows.{module}")
    return nflows is not None and isinstance(flow, getattr(nflows, name))


def _copies(x: Tensor, n: int) -> Tensor:
    return x.expand(n, *x.shape).clone()


def _of_block(block: Block, x: Tensor, context: Tensor | None, n: int) -> Tensor:
    x, context = block.check(x, context)
    repeated = None if context is None else _copies(context, n)
    return block.forward_and_log_det(_copies(x, n), repeated)[1]


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


def _estimator(block: Block, x: Tensor) -> LogDet:
    size = block.contraction.event_size or x.shape[-block.event_dim :].numel()
    return auto_logdet(size) if block.logdet is None else block.logdet


def _reseeded(block: Block, x: Tensor, seed: int) -> LogDet:
    return _estimator(block, x).with_seed(seed).for_mode(block.training)


@contextmanager
def unchanged(modules: list[nn.Module], blocks: list[Block]) -> Iterator[None]:
    """Put all modules but the blocks into eval mode, then back; no ActNorm or BatchNorm counts."""
    estimators = [block.logdet for block in blocks]
    inside = {id(m) for block in blocks for m in block.modules()}
    try:
        with evaluating([m for m in modules if id(m) not in inside]):
            yield
    finally:
        for block, estimator in zip(blocks, estimators, strict=True):
            block.logdet = estimator
