"""A density estimator for sbi's ``NPE``: needs the extra ``sbi``."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from sbi.neural_nets.estimators import NFlowsFlow  # pyright: ignore[reportMissingImports]
from sbi.utils.nn_utils import get_numel  # pyright: ignore[reportMissingImports]
from sbi.utils.sbiutils import standardizing_net  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from .activations import Sine
from .errors import ArgumentError, check_keywords
from .hosts.nflows import conditional_iresnet_flow
from .options import BlockKeywords, BlockOptions

KEYWORDS = BlockKeywords.__annotations__
# Higher frequencies learn the noise of some thousand simulations: docs/how-to/sbi.md.
ACTIVATION = partial(Sine, frequencies=(0.1, 3.0))


def iresnet_builder(
    num_blocks: int = 4, *, embedding_net: nn.Module | None = None, **options: Any
) -> Callable[[Tensor, Tensor], NFlowsFlow]:
    """Return the function that sbi's ``NPE`` takes as ``density_estimator``.

    The flow of the parameters given the data is a :func:`conditional_iresnet_flow`. Data are
    standardised, parameters by the first layer, which waits for a batch of 16 rows: let
    ``training_batch_size`` be 16 or more.

    Arguments:
        num_blocks: the number of residual blocks; 3 for posteriors near a Gaussian, 6 or more for
            thin or separate ones.
        embedding_net: makes a vector of the standardised data of a row; None for data that are
            vectors.
        options: of :func:`conditional_iresnet_flow`, such as ``hidden_features``. The default
            activation is :class:`Sine` with frequencies from 0.1 to 3.

    Raises:
        ArgumentTypeError: an unknown keyword.
        ArgumentError: when the function is called, for data of more than one axis without an
            ``embedding_net``.

    References:
        sbi: A toolkit for simulation-based inference (Tejero-Cantero et al., 2020).

    Example:
        >>> import torch
        >>> from sbi.inference import NPE
        >>> from torch.distributions import MultivariateNormal
        >>> from pyro_iresnet.sbi import iresnet_builder
        >>> prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> inference = NPE(prior, density_estimator=iresnet_builder(), show_progress_bars=False)
    """

    check_keywords(options, ["hidden_features", "between", *KEYWORDS], "iresnet_builder")
    return partial(_built, num_blocks, embedding_net, _with_activation(options))


def _with_activation(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the default activation where none is given."""
    given = options.get("options")
    if given is None:
        return {"activation": ACTIVATION, **options}
    records = given if isinstance(given, list | tuple) else [given]
    whole = [
        replace(record, activation=ACTIVATION)
        if isinstance(record, BlockOptions) and record.activation is None
        else record
        for record in records
    ]
    return {**options, "options": whole}


def _built(
    num_blocks: int,
    embedding_net: nn.Module | None,
    options: dict[str, Any],
    batch_theta: Tensor,
    batch_x: Tensor,
) -> NFlowsFlow:
    """Make the estimator for parameters and data of these shapes."""
    if embedding_net is None and batch_x.dim() != 2:
        raise ArgumentError(
            f"Expected data of shape (batch, features); got {tuple(batch_x.shape)}. Pass an "
            "embedding_net, such as nn.Flatten()."
        )
    embedding = nn.Sequential(standardizing_net(batch_x), embedding_net or nn.Identity())
    size = get_numel(batch_x, embedding)
    flow = conditional_iresnet_flow(
        batch_theta[0].numel(), size, num_blocks, embedding_net=embedding, **options
    )
    return NFlowsFlow(flow, input_shape=batch_theta[0].shape, condition_shape=batch_x[0].shape)
