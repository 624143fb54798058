"""Base classes of activations: a value, a Jacobian and a proven bound of the slope."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from .._settings import HasSettings
from .._torch import in_plain_autograd, needs_plain_operations
from ..errors import ArgumentTypeError, check_dims, check_positive_int

# Methods of which a new activation defines one.
DERIVATIVES = {"value_and_slope", "value_slope_curvature"}


class Activation(HasSettings, nn.Module, ABC):
    """Base class of functions between the layers of ``g``, of every entry by itself.

    To write one, define :meth:`forward` and :meth:`value_and_slope`, and set ``bound``. A density
    needs a smooth function: behind a piecewise linear one the gradient of a log-determinant does
    not see how the slopes depend on ``x``. A state dict holds the class and the attributes that are
    numbers, strings, tuples, strategies or functions, unless their names begin with an underscore;
    loading others raises. Extend :meth:`settings` by any other setting.

    Attributes:
        bound: the largest absolute value of the slope, proven; belongs to the class, not learned.

    Raises:
        ArgumentError: by :meth:`follow`: a width that the activation cannot follow.

    Example:
        >>> import torch
        >>> from pyro_iresnet import DenseContraction
        >>> from pyro_iresnet.activations import Activation
        >>> class Arctan(Activation):
        ...     def forward(self, x):
        ...         return x.atan()
        ...     def value_and_slope(self, x):
        ...         return x.atan(), 1 / (1 + x * x)
        >>> g = DenseContraction(2, [16], activation=Arctan)
    """

    bound: float = 1.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # An inherited half would compute another function than the half that is new.
        value = "forward" in vars(cls)
        slope = bool(DERIVATIVES & vars(cls).keys())
        missing: list[str] = []
        if value and not slope and not _is_abstract(cls.value_and_slope):
            missing.append("value_and_slope")
        if slope and not value and not _is_abstract(cls.forward):
            missing.append("forward")
        inherits = "factors" not in vars(cls) and cls.factors is not Activation.factors
        if (value or slope) and inherits:
            missing.append("factors")
        if missing:
            raise ArgumentTypeError(
                f"Expected {cls.__name__} to define {' and '.join(missing)} too; it inherits them "
                "from another activation, whose function they belong to."
            )

    def settings(self) -> dict[str, Any]:
        own = {n: v for n, v in vars(self).items() if n[0] != "_" and n != "training"}
        own = {
            n: v
            for n, v in own.items()
            if isinstance(v, Real | str | tuple) or callable(v) or is_dataclass(v)
        }
        return {**super().settings(), "bound": self.bound, **own, **dict(self.named_children())}

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The value at ``x``, shape ``(*batch, width)``, or ``(*batch, *event)`` for images."""

    @abstractmethod
    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the derivative at ``x``, each of the shape of ``x``."""

    def follow(self, width: int, event_dim: int = 1) -> None:
        """Take the place behind a layer; a network calls this method once.

        Override this method to make parameters for each unit, or to raise :class:`ArgumentError`
        for a width that the activation cannot follow.

        Arguments:
            width: the number of units of the layer: entries of a vector, or channels of an image.
            event_dim: the number of trailing dimensions of one event; the first of them has the
                units.
        """

    def factors(self) -> "Factors":
        """Return the activation as a scaled core.

        Override this method if the scales are learned: a network then puts the scales into its
        weights, which are fewer numbers than a batch.
        """
        return Factors(self, None, None, self.bound)


def _is_abstract(method: Any) -> bool:
    return getattr(method, "__isabstractmethod__", False)


class Curved(Activation):
    """An activation with a second derivative in closed form, and without parameters or settings.

    To write one, define :meth:`forward` and :meth:`value_slope_curvature`, and set ``bound``.
    """

    @abstractmethod
    def value_slope_curvature(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The value and the first two derivatives, each of the shape of ``x``, differentiable."""

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and in_plain_autograd():
            return _ValueAndSlope.apply(self, x)
        return self.value_slope_curvature(x)[:2]


class _ValueAndSlope(Function):
    """Value and slope; a graph of small operations would compute each function twice."""

    @staticmethod
    def forward(ctx, core: Curved, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope, curvature = core.value_slope_curvature(x)
        ctx.core = core
        ctx.save_for_backward(x, slope, curvature)
        ctx.set_materialize_grads(False)
        return value, slope

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor | None) -> tuple[None, Tensor | None]:
        x, slope, curvature = ctx.saved_tensors
        of_value, of_slope = grad_outputs
        if needs_plain_operations(grad_outputs):
            # In a second derivative both must be functions of x again.
            _, slope, curvature = ctx.core.value_slope_curvature(x)
        if of_slope is None:
            return None, None if of_value is None else of_value * slope
        grad = curvature * of_slope
        return None, grad if of_value is None else torch.addcmul(grad, of_value, slope)


class Factors(NamedTuple):
    r"""An activation as :math:`\phi(x) = b\,\psi(a x)`.

    Arguments:
        core: :math:`\psi`, without parameters.
        inner: :math:`a`, a scalar, or a vector with one entry for each packed module; None for 1.
        outer: :math:`b`, as ``inner``.
        bound: the largest stretch of the core.
        by_unit: True if :math:`a` and :math:`b` have one entry for each unit, in a last dimension.
    """

    core: Activation
    inner: Tensor | None
    outer: Tensor | None
    bound: float
    by_unit: bool = False

    def fold_shift(self, shift: Tensor) -> Tensor:
        """Return a shift before the activation, shape ``(*batch, units)``, times ``a``."""
        if self.inner is None:
            return shift
        if self.inner.dtype != shift.dtype:
            raise _other_dtype(self.inner, shift)
        return self.inner * shift

    def fold_layer(
        self, weight: Tensor, bias: Tensor, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return a normalized weight and a bias with ``a``.

        The weight has a scale that is one number already, from its norm.

        Arguments:
            weight: a matrix or a kernel, or matrices of packed modules.
            bias: as the weight, with its units in the last dimension.
            before: the scale of each input unit; None for 1.
        """
        inner = self.inner
        if before is not None:
            weight = on_inputs(weight, before)
        if inner is not None:
            if inner.dtype != weight.dtype:
                raise _other_dtype(inner, weight)
            if self.by_unit:
                weight = inner.reshape(*inner.shape, *(weight.dim() - bias.dim()) * (1,)) * weight
            bias = (inner if inner.dim() in (0, bias.dim()) else inner[:, None]) * bias
        return weight, bias


def on_inputs(weight: Tensor, scale: Tensor) -> Tensor:
    """Return a matrix, a kernel or matrices of packed modules times the scale of each input."""
    if scale.dtype != weight.dtype:
        raise _other_dtype(scale, weight)
    return weight * (scale[:, None, None] if weight.dim() == 4 else scale.unsqueeze(-2))


def _other_dtype(scale: Tensor, weight: Tensor) -> ArgumentTypeError:
    # A product would take the wider dtype, with entries as coarse as the narrower.
    return ArgumentTypeError(
        f"Expected activations and layers of one dtype; got {scale.dtype} in an activation and "
        f"{weight.dtype} in a layer. Convert the whole module: module.to({scale.dtype})."
    )


EXAMPLE = "LipSwish, or functools.partial(Sine, frequencies=(0.1, 2.0))"


def check_activation(activation: object) -> None:
    """Raise unless ``activation`` is a callable that may make an activation."""
    if isinstance(activation, nn.Module) or not callable(activation):
        raise ArgumentTypeError(
            f"Expected activation to be a class or a callable that makes one, such as {EXAMPLE}; "
            f"got {activation!r}. Each layer needs its own, so pass the class."
        )


def make_activations(
    activation: Callable[[], Activation],
    widths: Sequence[int],
    event_dim: int = 1,
) -> nn.ModuleList:
    """Make one activation for each width.

    Arguments:
        activation: a class, or a callable that makes an activation.
        widths: the widths of the hidden layers.
        event_dim: the number of trailing dimensions of one event: 1 for vectors, 3 for images.

    Raises:
        ArgumentError, ArgumentTypeError: ``activation`` makes no activation, or one that cannot
            follow a layer of its width.
    """
    check_activation(activation)
    widths = check_dims(widths, "widths")
    event_dim = check_positive_int(event_dim, "event_dim")
    made = nn.ModuleList()
    for width in widths:
        one = activation()
        if not isinstance(one, Activation):
            raise ArgumentTypeError(
                f"Expected activation to make an Activation, such as {EXAMPLE}; "
                f"it made a {type(one).__name__}."
            )
        one.follow(width, event_dim)
        made.append(one)
    return made
