"""One block with a dense contraction, as the builders of both hosts make it."""

from collections.abc import Callable, Sequence

from ..block import ResidualBlock
from ..contractive import Activation, DenseContraction, Norm
from ..coordinates import Chart, Metric
from ..errors import check_positive_int
from ..inverse import Solver
from ..logdet import LogDet


def dense_block(
    input_dim: int,
    hidden_dims: Sequence[int] | None,
    *,
    context_dim: int | None,
    lipschitz: float,
    activation: Callable[[], Activation],
    norm: Norm,
    metric: Metric,
    chart: Chart | None,
    logdet: LogDet | None,
    solver: Solver | None,
) -> ResidualBlock:
    """A :class:`ResidualBlock` over a :class:`DenseContraction`; arguments as theirs."""
    contraction = DenseContraction(
        check_positive_int(input_dim, "input_dim"),
        hidden_dims,
        context_dim=context_dim,
        lipschitz=lipschitz,
        activation=activation,
        norm=norm,
    )
    return ResidualBlock(contraction, logdet=logdet, solver=solver, metric=metric, chart=chart)
