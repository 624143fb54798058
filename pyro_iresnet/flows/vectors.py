"""Ready-made stacks for vectors."""

from collections.abc import Callable, Sequence

from ..adapters import Stack, iresnet
from ..contractive import Activation, Gram, LipSwish, Norm
from ..errors import check_positive_int
from ..inverse import Solver
from ..logdet import LogDet
from .actnorm import actnorm


def iresnet_stack(
    input_dim: int,
    num_blocks: int = 8,
    hidden_dims: Sequence[int] | None = None,
    *,
    lipschitz: float = 0.97,
    activation: Callable[[], Activation] = LipSwish,
    norm: Norm = Gram(),  # noqa: B008  (frozen, so safe to share)
    logdet: LogDet | None = None,
    solver: Solver | None = None,
) -> Stack:
    """ActNorm and residual blocks in turn, and an ActNorm at the end: a Pyro transform.

    A module: ``stack.parameters()`` trains all of it, and ``stack.eval()`` makes the log-density
    deterministic. For a density estimator let it run from data to noise, as
    ``TransformedDistribution(base, [stack.inv])``: then training needs no inversion, and the
    ActNorms start from the first batch of data. For a guide pass it to ``AutoNormalizingFlow``.

    Change first: ``num_blocks`` (each stretches by less than 2), then ``hidden_dims``.

    Arguments:
        input_dim: the number of coordinates.
        num_blocks: how many residual blocks.
        hidden_dims: the widths of the hidden layers of each; default two of ``2 * input_dim``, at
            least 64 and at most 512.
        lipschitz, activation, norm, logdet, solver: of each block, as in :func:`iresnet`.

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
    check_positive_int(num_blocks, "num_blocks")
    parts = []
    for _ in range(num_blocks):
        block = iresnet(
            input_dim,
            hidden_dims,
            lipschitz=lipschitz,
            activation=activation,
            norm=norm,
            logdet=logdet,
            solver=solver,
        )
        parts += [actnorm(input_dim), block]
    return Stack([*parts, actnorm(input_dim)])
