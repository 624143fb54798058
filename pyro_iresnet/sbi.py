"""A density estimator for sbi's ``NPE`` and ``NLE``: needs the extra ``sbi``."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from sbi.neural_nets.estimators import NFlowsFlow  # pyright: ignore[reportMissingImports]
from sbi.utils.nn_utils import get_numel  # pyright: ignore[reportMissingImports]
from sbi.utils.sbiutils import standardizing_net  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from .activations import Sine
from .errors import (
    ArgumentError,
    check_flag,
    check_instance,
    check_keywords,
    check_positive_int,
)
from .hosts.nflows import IResNetFlow, conditional_iresnet_flow
from .hosts.nflows.transform import widths
from .options import BlockKeywords, BlockOptions

KEYWORDS = BlockKeywords.__annotations__
# Higher frequencies learn the noise of some thousand simulations: docs/how-to/sbi.md.
ACTIVATION = partial(Sine, frequencies=(0.1, 3.0))


def iresnet_builder(
    num_blocks: int = 4,
    *,
    embedding_net: nn.Module | None = None,
    likelihood: bool = False,
    **options: Any,
) -> Callable[[Tensor, Tensor], NFlowsFlow]:
    """Return the function that sbi's ``NPE`` or ``NLE`` takes as ``density_estimator``.

    The flow of the parameters given the data is a :func:`conditional_iresnet_flow`. Data are
    standardised, parameters by the first layer, which waits for a batch of 16 rows: let
    ``training_batch_size`` be 16 or more. With ``likelihood=True`` data and parameters change
    places.

    Arguments:
        num_blocks: the number of residual blocks; 3 for posteriors near a Gaussian, 6 or more for
            thin or separate ones.
        embedding_net: makes a vector of the standardised data of a row; None for data that are
            vectors.
        likelihood: True for the flow of the data given the parameters, as ``NLE`` needs it;
            ``embedding_net`` then takes the parameters.
        options: of :func:`conditional_iresnet_flow`, such as ``hidden_features``. The default
            activation is :class:`Sine` with frequencies from 0.1 to 3.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type, or an
            unknown keyword; when the function is called, data of more than one axis without an
            ``embedding_net``; in training, data in the place of parameters of the same shape.

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
    count = check_positive_int(num_blocks, "num_blocks")
    if embedding_net is not None:
        check_instance(embedding_net, nn.Module, "embedding_net", "nn.Flatten()")
    options = _with_activation(options)
    # sbi calls the function deep inside its training, too late for these errors.
    of_blocks = {name: value for name, value in options.items() if name in KEYWORDS}
    BlockOptions.records(of_blocks, hidden_features=widths(options.get("hidden_features")))
    is_likelihood = check_flag(likelihood, "likelihood")
    return partial(_built, count, embedding_net, options, is_likelihood)


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
    is_likelihood: bool,
    batch_theta: Tensor,
    batch_x: Tensor,
) -> NFlowsFlow:
    """Make the estimator for parameters and data of these shapes, which come in this order."""
    inputs, given = (batch_x, batch_theta) if is_likelihood else (batch_theta, batch_x)
    if embedding_net is None and given.dim() != 2:
        raise ArgumentError(
            f"Expected data of shape (batch, features); got {tuple(given.shape)}. Pass an "
            "embedding_net, such as nn.Flatten()."
        )
    embedding = nn.Sequential(standardizing_net(given), embedding_net or nn.Identity())
    size = get_numel(given, embedding)
    flow = conditional_iresnet_flow(
        inputs[0].numel(), size, num_blocks, embedding_net=embedding, **options
    )
    return _Estimator(flow, inputs, given, is_likelihood)


class _Estimator(NFlowsFlow):
    """Estimator that refuses to train on data in the place of parameters, or the reverse.

    ``NPE`` and ``NLE`` make an estimator by the same call, and tell its inputs only in training.
    """

    def __init__(
        self, net: IResNetFlow, inputs: Tensor, given: Tensor, is_likelihood: bool
    ) -> None:
        super().__init__(net, input_shape=inputs[0].shape, condition_shape=given[0].shape)
        self._is_likelihood = is_likelihood
        self._first = (inputs, given) if inputs.shape == given.shape else None

    def loss(self, input: Tensor, condition: Tensor) -> Tensor:  # noqa: A002  (sbi's name)
        """Return the loss of each row, behind a look at the first batch."""
        first, self._first = self._first, None
        if first is not None and not _has(first[0], input[0]) and _has(first[1], input[0]):
            right, wrong, trainer = "parameters", "data", "NLE"
            if self._is_likelihood:
                right, wrong, trainer = "data", "parameters", "NPE"
            raise ArgumentError(
                f"Expected {right} as the input of this estimator; got {wrong}, as sbi's {trainer} "
                f"has it. Pass iresnet_builder(likelihood={not self._is_likelihood}) to {trainer}."
            )
        return super().loss(input, condition)


def _has(rows: Tensor, row: Tensor) -> bool:
    return bool((rows == row.to(rows.device)).flatten(1).all(1).any())
