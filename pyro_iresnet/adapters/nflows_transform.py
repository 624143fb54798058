"""The block as an nflows ``Transform``."""

from collections.abc import Callable, Sequence
from typing import SupportsIndex

from nflows.transforms.base import Transform
from torch import Tensor

from ..block import ResidualBlock
from ..contractive import Activation, Cholesky, LipSwish, Norm
from ..coordinates import Chart, Diagonal, Metric
from ..errors import check_dims, check_instance, check_positive_int
from ..inverse import Solver
from ..logdet import LogDet
from .builder import dense_block


class IResNetTransform(Transform):
    r"""The invertible residual block :math:`y = x + g(x)` as an nflows transform.

    ``forward(inputs, context=None)`` and ``inverse(inputs, context=None)`` return
    ``(outputs, logabsdet)`` of shapes ``(batch, features)`` and ``(batch,)``. As with nflows' own
    transforms, a context is ignored where ``context_features`` is None, so that conditional and
    unconditional transforms stack.

    Arguments:
        features: the number of coordinates.
        hidden_features: the width of two hidden layers, or a sequence of widths; default
            ``2 * features``, at least 64 and at most 512.
        context_features: the size of the context, or None.
        lipschitz: the bound of ``Lip(g)``, in (0, 1).
        activation: an :class:`Activation` class, or a callable that makes one.
        norm: how the norm of a weight is taken.
        metric: the norm in which ``g`` contracts: :class:`Diagonal`, :class:`Triangular` or
            :class:`Identity`.
        chart: :class:`Asinh` for a learned nonlinear scale of each coordinate; None for none.
        logdet: the estimator of the log-determinant; by default ``auto_logdet(features)``.
        solver: the inverse's solver and tolerance; by default ``auto_solver(features)``.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    References:
        Invertible Residual Networks (Behrmann et al., 2019).

    Example:
        >>> import torch
        >>> from nflows.distributions import StandardNormal
        >>> from nflows.flows import Flow
        >>> from nflows.transforms import CompositeTransform, LULinear
        >>> from pyro_iresnet import IResNetTransform
        >>> transform = CompositeTransform([IResNetTransform(5), LULinear(5), IResNetTransform(5)])
        >>> flow = Flow(transform, StandardNormal([5]))
        >>> flow.log_prob(torch.randn(3, 5)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        features: int,
        hidden_features: int | Sequence[int] | None = None,
        context_features: int | None = None,
        *,
        lipschitz: float = 0.97,
        activation: Callable[[], Activation] = LipSwish,
        norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
        metric: Metric = Diagonal(),  # noqa: B008
        chart: Chart | None = None,
        logdet: LogDet | None = None,
        solver: Solver | None = None,
    ) -> None:
        super().__init__()
        check_positive_int(features, "features")
        if context_features is not None:
            check_positive_int(context_features, "context_features")
        if isinstance(hidden_features, SupportsIndex):
            hidden_features = 2 * [check_positive_int(hidden_features, "hidden_features")]
        elif hidden_features is not None:
            check_dims(hidden_features, "hidden_features")
        self.block = dense_block(
            features,
            hidden_features,
            context_dim=context_features,
            lipschitz=lipschitz,
            activation=activation,
            norm=norm,
            metric=metric,
            chart=chart,
            logdet=logdet,
            solver=solver,
        )

    @classmethod
    def from_block(cls, block: ResidualBlock) -> "IResNetTransform":
        """The transform of any block: a wrapped network, a user's own contraction.

        Arguments:
            block: a :class:`ResidualBlock`.

        Raises:
            ArgumentTypeError: ``block`` is no ``ResidualBlock``.
        """
        transform = cls.__new__(cls)
        Transform.__init__(transform)
        transform.block = check_instance(
            block, ResidualBlock, "block", "ResidualBlock(DenseContraction(2))"
        )
        return transform

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``inputs + g(inputs)`` and ``log|det|`` of it.

        Arguments:
            inputs: shape ``(batch, features)``.
            context: shape ``(batch, context_features)``.

        Raises:
            ArgumentError, ArgumentTypeError: one of another shape, dtype or device.
        """
        return self.block.forward_and_logdet(*self._checked(inputs, context))

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The inverse, to the solver's tolerance, and ``log|det|`` of it.

        Arguments:
            inputs: shape ``(batch, features)``.
            context: shape ``(batch, context_features)``.

        Raises:
            ArgumentError, ArgumentTypeError: one of another shape, dtype or device.
            InversionError: a sample did not reach the tolerance, or is NaN or infinite.
        """
        return self.block.inverse_and_logdet(*self._checked(inputs, context))

    def _checked(self, inputs: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both by the names that nflows has for them; it hands a context to every transform."""
        g = self.block.contraction
        return g.check(inputs, None if g.context_dim is None else context, "inputs")
