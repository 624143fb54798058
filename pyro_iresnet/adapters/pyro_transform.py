"""The block as a Pyro ``TransformModule``, in both directions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints

from ..block import Evaluation, ResidualBlock
from ..contractive import Activation, Cholesky, LipSwish, Norm
from ..coordinates import Chart, Diagonal, Metric
from ..errors import check_event_shape, check_instance
from ..inverse import Solver
from ..logdet import LogDet
from .builder import dense_block
from .memo import Evaluated, MemoTransform

# Torch asks for its domain many times in a step, and it does not change.
REALS = [constraints.independent(constraints.real, event_dim) for event_dim in range(5)]


def _real(event_dim: int) -> constraints.Constraint:
    if event_dim < len(REALS):
        return REALS[event_dim]
    return constraints.independent(constraints.real, event_dim)


@dataclass(frozen=True)
class _LogDetOf:
    """The log-determinant of an evaluation, and the evaluation for what else it knows."""

    evaluation: Evaluation

    def __call__(self) -> Tensor:
        return self.evaluation.logdet()


class _OfBlock(MemoTransform):
    """What the two directions share: the block, and the shape of an event."""

    def __init__(self, block: ResidualBlock, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.block = check_instance(
            block, ResidualBlock, "block", "ResidualBlock(DenseContraction(2))"
        )

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _real(self.block.contraction.event_dim)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _real(self.block.contraction.event_dim)

    def with_cache(self, cache_size: int = 1) -> "_OfBlock":
        """The same transform, parameters shared, with that cache."""
        if cache_size == self._cache_size:
            return self
        other = type(self)(self.block, cache_size=cache_size)
        other.training = self.training
        return other

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """``shape``, or raise unless it ends in the event shape."""
        check_event_shape(shape, self.block.contraction.event_shape, "shape")
        return torch.Size(shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """``shape``, or raise unless it ends in the event shape."""
        return self.forward_shape(shape)


class IResNet(_OfBlock):
    r"""The invertible residual block :math:`y = x + g(x)` as a Pyro transform.

    :math:`\mathrm{Lip}(g) < 1` holds by construction, so the transform is bijective on all of
    :math:`\mathbb{R}^D`. Both directions work for any value, not only for one that is cached:
    ``inv`` solves to a certified error. ``log_abs_det_jacobian`` is exact
    or unbiased, as the block's estimator says: with more than 8 coordinates the default draws in
    train mode, so call ``eval()`` for HMC or NUTS, which need a deterministic density. See
    :func:`iresnet` for a block ready made.

    Arguments:
        block: a :class:`ResidualBlock`.
        cache_size: 1 to remember the last call, 0 for none.

    Raises:
        ArgumentTypeError: ``block`` is no ``ResidualBlock``.

    References:
        Invertible Residual Networks (Behrmann et al., 2019).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import DenseContraction, IResNet, ResidualBlock
        >>> transform = IResNet(ResidualBlock(DenseContraction(10)))
        >>> base = dist.Normal(torch.zeros(10), torch.ones(10)).to_event(1)
        >>> flow = dist.TransformedDistribution(base, [transform])
        >>> flow.log_prob(flow.rsample((3,))).shape
        torch.Size([3])
    """

    def evaluate(self, x: Tensor) -> Evaluated:
        evaluation = self.block.evaluate(x)
        return evaluation.y, _LogDetOf(evaluation)

    def pushing(self, x: Tensor, logdet: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
        if isinstance(logdet, _LogDetOf):
            return logdet.evaluation.push
        # A call of the inverse left it, which evaluates at the solution on demand.
        return self.block.evaluate(x).push

    def evaluate_inverse(self, y: Tensor) -> Evaluated:
        evaluation = self.block.evaluate_inverse(y)
        return evaluation.x, lambda: -evaluation.logdet()


class InverseIResNet(_OfBlock):
    r"""The inverse of a residual block as a Pyro transform: ``y`` with :math:`y + g(y) = x`.

    The ``.inv`` of a torch transform is no module, so in a stack its parameters would not be
    registered; this is one. With :class:`IResNet` in turn it makes an implicit flow (Lu et al.,
    2021), which contracts as far as a block expands. Gradients cross the inverse by the implicit
    function theorem.

    Arguments:
        block: a :class:`ResidualBlock`.
        cache_size: 1 to remember the last call, 0 for none.

    Raises:
        ArgumentTypeError: ``block`` is no ``ResidualBlock``.

    References:
        Implicit Normalizing Flows (Lu et al., 2021).

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction, InverseIResNet, ResidualBlock
        >>> transform = InverseIResNet(ResidualBlock(DenseContraction(2)))
        >>> x = torch.randn(5, 2)
        >>> y = transform(x)
        >>> transform.log_abs_det_jacobian(x, y).shape
        torch.Size([5])
    """

    def evaluate(self, x: Tensor) -> Evaluated:
        evaluation = self.block.evaluate_inverse(x)
        return evaluation.x, evaluation.logdet

    def evaluate_inverse(self, y: Tensor) -> Evaluated:
        evaluation = self.block.evaluate(y)
        return evaluation.y, lambda: -evaluation.logdet()

    def logdet(self, x: Tensor, y: Tensor) -> Tensor:
        # The block runs from y to x: with y at hand there is nothing to solve.
        del x
        return self.evaluate_inverse(y)[1]()


def iresnet(
    input_dim: int,
    hidden_dims: Sequence[int] | None = None,
    *,
    lipschitz: float = 0.97,
    activation: Callable[[], Activation] = LipSwish,
    norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
    metric: Metric = Diagonal(),  # noqa: B008
    chart: Chart | None = None,
    logdet: LogDet | None = None,
    solver: Solver | None = None,
) -> IResNet:
    """An :class:`IResNet` with a fully connected ``g``.

    Arguments:
        input_dim: the number of coordinates.
        hidden_dims: the widths of the hidden layers; default two of ``2 * input_dim``, at least 64
            and at most 512.
        lipschitz: the bound of ``Lip(g)``, in (0, 1). Near 1 a block bends more, and its inverse
            takes more steps.
        activation: an :class:`Activation` class, or a callable that makes one.
        norm: how the norm of a weight is taken.
        metric: the norm in which ``g`` contracts: :class:`Diagonal`, :class:`Triangular` or
            :class:`Identity`.
        chart: :class:`Asinh` for a learned nonlinear scale of each coordinate; None for none.
        logdet: the estimator of the log-determinant; by default ``auto_logdet(input_dim)``.
        solver: the inverse's solver and tolerance; by default ``auto_solver(input_dim)``.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> from pyro.distributions.transforms import iterated
        >>> stack = iterated(4, iresnet, 10, [32, 32])
    """
    return IResNet(dense_block(context_dim=None, **locals()))
