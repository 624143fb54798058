"""Ready-made density estimators: nflows ``Flow`` objects."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Unpack

from nflows.transforms import Transform
from torch import nn

from ...errors import ArgumentTypeError, check_positive_int
from ...options import BlockKeywords, BlockOptions
from ..interleave import interleave
from .actnorm import PatientActNorm
from .composite import IResNetComposite
from .embedding import Embedding
from .flow import IResNetFlow
from .transform import IResNetTransform, widths


def iresnet_flow(
    features: int,
    num_blocks: int = 8,
    *,
    hidden_features: int | Sequence[int] | None = None,
    between: Callable[[int], Transform] | None = PatientActNorm,
    **options: Unpack[BlockKeywords],
) -> IResNetFlow:
    """Make an nflows ``Flow`` of ActNorms and blocks (Behrmann et al. 2019) over a standard normal.

    The flow runs from data to noise, so training needs no inversion. The first batch in train mode
    standardises the data (:class:`PatientActNorm`): let it have a hundred rows or more. A batch of
    fewer than 16 rows does not standardise, and after a step on such a batch no later one does.
    Call ``eval()`` for a deterministic log-density and before you sample.

    Change first: ``num_blocks`` (each stretches by less than 2, in its coordinates), then
    ``hidden_features``. With few rows in many dimensions take ``coordinates=None`` and
    ``norm=Cholesky(damping=1.0)``.

    Arguments:
        features, hidden_features: as in :class:`IResNetTransform`, with the same errors.
        num_blocks: the number of blocks.
        between: makes the transform before each block and at the end, called with ``features``;
            None for no transform.
        options: of each block, as in :class:`IResNetTransform`. As ``options`` a sequence of
            records is taken in turn.

    Example:
        >>> import torch
        >>> from pyro_iresnet import iresnet_flow
        >>> flow = iresnet_flow(features=2, num_blocks=4)
        >>> loss = -flow.log_prob(torch.randn(100, 2)).mean()
        >>> loss.backward()
        >>> flow.eval().sample(10).shape
        torch.Size([10, 2])
    """
    records = BlockOptions.records(options, iresnet_flow, hidden_features=widths(hidden_features))
    return _flow(features, None, num_blocks, between, None, records)


def conditional_iresnet_flow(
    features: int,
    context_features: int,
    num_blocks: int = 8,
    *,
    hidden_features: int | Sequence[int] | None = None,
    between: Callable[[int], Transform] | None = PatientActNorm,
    embedding_net: nn.Module | None = None,
    **options: Unpack[BlockKeywords],
) -> IResNetFlow:
    """Make a flow as :func:`iresnet_flow`, under a context: ``flow.log_prob(inputs, context)``.

    An embedding of the context shifts and gates the hidden layers of each block.

    Arguments:
        features, num_blocks, hidden_features, between, options: as in :func:`iresnet_flow`, with
            the same errors.
        context_features: the size of the context, behind ``embedding_net`` if there is one.
        embedding_net: makes the context of all blocks from the context that the flow is given; None
            for the context itself.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch
        >>> from pyro_iresnet import conditional_iresnet_flow
        >>> flow = conditional_iresnet_flow(features=2, context_features=3, num_blocks=4)
        >>> flow.log_prob(torch.randn(100, 2), torch.randn(100, 3)).shape
        torch.Size([100])
        >>> flow.eval().sample(10, torch.randn(5, 3)).shape
        torch.Size([5, 10, 2])
    """
    context_features = check_positive_int(context_features, "context_features")
    records = BlockOptions.records(
        options, conditional_iresnet_flow, hidden_features=widths(hidden_features)
    )
    return _flow(features, context_features, num_blocks, between, embedding_net, records)


def _flow(
    features: int,
    context_features: int | None,
    num_blocks: int,
    between: Callable[[int], Transform] | None,
    embedding_net: nn.Module | None,
    records: Sequence[BlockOptions],
) -> IResNetFlow:
    size = check_positive_int(features, "features")
    count = check_positive_int(num_blocks, "num_blocks")
    if embedding_net is not None and not isinstance(embedding_net, nn.Module):
        raise ArgumentTypeError(
            f"Expected embedding_net to be a torch module or None; got {embedding_net!r}."
        )
    made = (record.build(size, context_features) for record in islice(cycle(records), count))
    blocks = (IResNetTransform.from_block(block) for block in made)
    parts = interleave(blocks, between, size, Transform, "PatientActNorm")
    embedding = None if embedding_net is None else Embedding(embedding_net)
    return IResNetFlow(IResNetComposite(parts), size, embedding)
