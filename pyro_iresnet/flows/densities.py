"""Ready-made density estimators: nflows ``Flow`` objects."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from nflows.flows import Flow
from nflows.transforms import CompositeTransform, Transform
from torch import nn

from ..adapters import IResNetTransform
from ..contractive import Activation, Cholesky, LipSwish, Norm
from ..coordinates import Chart, Diagonal, Metric
from ..errors import ArgumentTypeError, check_instance, check_positive_int
from ..inverse import Solver
from ..logdet import LogDet
from .between import interleaved
from .embedding import Embedding
from .noise import Noise
from .patient_actnorm import PatientActNorm


def iresnet_flow(
    features: int,
    num_blocks: int = 8,
    *,
    hidden_features: int | Sequence[int] | None = None,
    lipschitz: float = 0.97,
    activation: Callable[[], Activation] = LipSwish,
    norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
    metric: Metric = Diagonal(),  # noqa: B008
    chart: Chart | None = None,
    logdet: LogDet | None = None,
    solver: Solver | None = None,
    between: Callable[[int], Transform] | None = PatientActNorm,
) -> Flow:
    """An nflows ``Flow`` of ActNorm and residual blocks in turn over a standard normal.

    It runs from data to noise, so training needs no inversion. The first batch in train mode
    standardises the data (:class:`PatientActNorm`): let it be of a hundred rows or more. One of
    fewer than 16 does not, and once a step has been taken on such batches no later one does. Call
    ``eval()`` for a deterministic log-density and before you sample.

    Change first: ``num_blocks`` (each stretches by less than 2, in its metric), then
    ``hidden_features``. With few rows in many dimensions ``metric=Identity()`` and
    ``norm=Cholesky(damping=1.0)``.

    Arguments:
        features: the number of coordinates.
        num_blocks: how many residual blocks.
        hidden_features, lipschitz, activation, norm, metric, chart, logdet, solver: of each block,
            as in :class:`IResNetTransform`.
        between: makes what stands before each block and at the end, called with ``features``;
            None for nothing.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Invertible Residual Networks (Behrmann et al., 2019), Section 5.

    Example:
        >>> import torch
        >>> from pyro_iresnet.flows import iresnet_flow
        >>> flow = iresnet_flow(features=2, num_blocks=4)
        >>> loss = -flow.log_prob(torch.randn(100, 2)).mean()
        >>> loss.backward()
        >>> flow.eval().sample(10).shape
        torch.Size([10, 2])
    """
    return _flow(**locals())


def conditional_iresnet_flow(
    features: int,
    context_features: int,
    num_blocks: int = 8,
    *,
    hidden_features: int | Sequence[int] | None = None,
    lipschitz: float = 0.97,
    activation: Callable[[], Activation] = LipSwish,
    norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
    metric: Metric = Diagonal(),  # noqa: B008
    chart: Chart | None = None,
    logdet: LogDet | None = None,
    solver: Solver | None = None,
    between: Callable[[int], Transform] | None = PatientActNorm,
    embedding_net: nn.Module | None = None,
) -> Flow:
    """As :func:`iresnet_flow`, under a context: ``flow.log_prob(inputs, context)``.

    The context is embedded, and shifts and gates the hidden layers of each block.

    Arguments:
        features, num_blocks, hidden_features, lipschitz, activation, norm, metric, chart, logdet,
            solver, between: as in :func:`iresnet_flow`.
        context_features: the size of the context, behind ``embedding_net`` if there is one.
        embedding_net: makes the context of all blocks from what is given to the flow; None for
            the context itself.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch
        >>> from pyro_iresnet.flows import conditional_iresnet_flow
        >>> flow = conditional_iresnet_flow(features=2, context_features=3, num_blocks=4)
        >>> flow.log_prob(torch.randn(100, 2), torch.randn(100, 3)).shape
        torch.Size([100])
        >>> flow.eval().sample(10, torch.randn(5, 3)).shape
        torch.Size([5, 10, 2])
    """
    check_positive_int(context_features, "context_features")
    return _flow(**locals())


def _flow(
    features: int,
    num_blocks: int,
    *,
    between: Callable[[int], Transform] | None,
    embedding_net: nn.Module | None = None,
    **options: Any,
) -> Flow:
    count = check_positive_int(num_blocks, "num_blocks")
    size = check_positive_int(features, "features")
    if embedding_net is not None and not isinstance(embedding_net, nn.Module):
        raise ArgumentTypeError(
            f"Expected embedding_net to be a torch module or None; got {embedding_net!r}."
        )
    makers = repeat(partial(IResNetTransform, size, **options), count)
    parts = interleaved(makers, between, size, "PatientActNorm")
    for part in parts:
        check_instance(part, Transform, "what between makes", "PatientActNorm(2)")
    embedding = None if embedding_net is None else Embedding(embedding_net)
    return Flow(CompositeTransform(parts), Noise(size), embedding_net=embedding)
