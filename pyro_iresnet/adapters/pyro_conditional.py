"""The block under a context as Pyro's ``ConditionalTransformModule``."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor
from torch.distributions import constraints

from ..block import ResidualBlock
from ..contractive import Activation, Cholesky, LipSwish, Norm
from ..coordinates import Chart, Diagonal, Metric
from ..errors import ArgumentError, check_instance
from ..inverse import Solver
from ..logdet import LogDet
from .builder import dense_block
from .memo import Evaluated, forget_the_store
from .pyro_transform import _OfBlock, _real


class ConditionedIResNet(_OfBlock):
    """A residual block at one context: what :meth:`ConditionalIResNet.condition` returns.

    The batch of the context counts as that of the transform, as with torch's ``AffineTransform``:
    ``x`` of shape ``(*batch, *event)`` and the context broadcast, in both directions, and
    ``forward_shape`` says so. Parameters and mode are those of the block. The context is a buffer
    that no ``state_dict`` holds, so that a write to it is noticed as one to ``x`` is.

    Arguments:
        block: a conditional :class:`ResidualBlock`.
        context: shape ``(*batch, size)``.
        cache_size: 1 to remember the last call, 0 for none.
    """

    context: Tensor

    def __init__(self, block: ResidualBlock, context: Tensor, *, cache_size: int = 1) -> None:
        super().__init__(block, cache_size=cache_size)
        self.register_buffer("context", context, persistent=False)

    def evaluate(self, x: Tensor) -> Evaluated:
        evaluation = self.block.evaluate(x, self.context)
        return evaluation.y, evaluation.logdet

    def evaluate_inverse(self, y: Tensor) -> Evaluated:
        evaluation = self.block.evaluate_inverse(y, self.context)
        return evaluation.x, lambda: -evaluation.logdet()

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(self._widened(x, "x"))

    def _inv_call(self, y: Tensor) -> Tensor:
        return super()._inv_call(self._widened(y, "y"))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log|det dy/dx|`` at ``x``, with the batch of ``x`` and the context."""
        return super().log_abs_det_jacobian(self._widened(x, "x"), self._widened(y, "y"))

    def with_cache(self, cache_size: int = 1) -> "ConditionedIResNet":
        """The same transform, parameters and context shared, with that cache."""
        if cache_size == self._cache_size:
            return self
        other = ConditionedIResNet(self.block, self.context, cache_size=cache_size)
        other.training = self.training
        return other

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """``shape`` with the batch of the context, or raise."""
        like = self.context.new_empty(()).expand(tuple(shape))
        return self.block.contraction.check(like, self.context, "shape")[0].shape

    def _widened(self, x: Tensor, name: str) -> Tensor:
        # Before the memory looks: what it gives back then has the shape of what is computed.
        wide, _ = self.block.contraction.check(x, self.context, name)
        return x if x.shape == wide.shape else wide


def raise_unconditioned(transform: object) -> NoReturn:
    """For a conditional transform that is called as if it were one."""
    raise ArgumentError(
        f"Expected a context first: {type(transform).__name__} is conditional. Call "
        "transform.condition(context), or use it in a ConditionalTransformedDistribution."
    )


class ConditionalIResNet(ConditionalTransformModule):
    r"""The residual block :math:`y = x + g(x; c)` as a conditional Pyro transform.

    :math:`\mathrm{Lip}(g(\cdot; c)) < 1` holds for every context ``c``, so each is a bijection, and
    both directions work for any value. For a
    :class:`~pyro.distributions.ConditionalTransformedDistribution`: an amortised guide, whose
    encoder makes the context, or a conditional density, with ``[transform.inv]`` so that training
    needs no inversion. Gradients reach the context in both directions.

    The batch of the context is a batch of the distribution: under a context of shape ``(B, C)`` a
    base of shape ``(D,)`` is sampled afresh for each, and ``sample((S,))`` has shape
    ``(S, B, D)``. See :func:`conditional_iresnet` for a block ready made.

    Arguments:
        block: a :class:`ResidualBlock` whose contraction has a ``context_dim``.

    Raises:
        ArgumentError: the contraction takes no context.
        ArgumentTypeError: ``block`` is no ``ResidualBlock``.

    References:
        Invertible Residual Networks (Behrmann et al., 2019).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import ConditionalIResNet, DenseContraction, ResidualBlock
        >>> transform = ConditionalIResNet(ResidualBlock(DenseContraction(10, context_dim=3)))
        >>> base = dist.Normal(torch.zeros(10), torch.ones(10)).to_event(1)
        >>> family = dist.ConditionalTransformedDistribution(base, [transform])
        >>> flow = family.condition(torch.randn(4, 3))
        >>> flow.log_prob(flow.rsample((2,))).shape
        torch.Size([2, 4])
    """

    bijective = True

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        example = "ResidualBlock(DenseContraction(2, context_dim=3))"
        self.block = check_instance(block, ResidualBlock, "block", example)
        if block.contraction.context_dim is None:
            raise ArgumentError(
                "Expected block to have a contraction with a context; got one without. "
                f"Build it with context_dim, such as {example}, or use IResNet(block)."
            )

    @property
    def domain(self) -> constraints.Constraint:
        """All of the event space."""
        return _real(self.block.contraction.event_dim)

    @property
    def codomain(self) -> constraints.Constraint:
        """All of the event space."""
        return _real(self.block.contraction.event_dim)

    def forward(self, *_: object, **__: object) -> NoReturn:
        """Raise: there is no transform without a context."""
        raise_unconditioned(self)

    def condition(self, context: Tensor) -> ConditionedIResNet:
        """The transform of ``x`` alone at a context; it shares the parameters and the mode.

        Arguments:
            context: shape ``(*batch, size)``, which broadcasts against the batch of ``x``.

        Raises:
            ArgumentError: a context of another size.
            ArgumentTypeError: a dtype other than that of the parameters.
        """
        self.block.contraction.check_context(context)
        conditioned = ConditionedIResNet(self.block, context)
        conditioned.training = self.training
        return conditioned

    def __getstate__(self) -> dict[str, Any]:
        forget_the_store(self)
        return dict(vars(self))


def conditional_iresnet(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    *,
    lipschitz: float = 0.97,
    activation: Callable[[], Activation] = LipSwish,
    norm: Norm = Cholesky(),  # noqa: B008  (frozen, so safe to share)
    metric: Metric = Diagonal(),  # noqa: B008
    chart: Chart | None = None,
    logdet: LogDet | None = None,
    solver: Solver | None = None,
) -> ConditionalIResNet:
    """A :class:`ConditionalIResNet` with a fully connected ``g``.

    The context is embedded, and shifts and gates the hidden layers; see :class:`Conditioner`.

    Arguments:
        input_dim: the number of coordinates.
        context_dim: the size of the context.
        hidden_dims, lipschitz, activation, norm, metric, chart, logdet, solver: as in
            :func:`iresnet`.

    Raises:
        ArgumentError, ArgumentTypeError: an argument out of range or of the wrong type.

    Example:
        >>> import torch
        >>> transform = conditional_iresnet(input_dim=2, context_dim=3)
        >>> transform.condition(torch.randn(5, 3))(torch.randn(2)).shape
        torch.Size([5, 2])
    """
    return ConditionalIResNet(dense_block(**locals()))
