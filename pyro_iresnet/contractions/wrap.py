"""Contraction of a user's own network."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from .._torch import AnyDropout, BatchNorm, SpectralParametrization, TrackingNorm
from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    check_instance,
    check_lipschitz,
    check_positive_int,
)
from .base import Contraction


class Wrapped(Contraction):
    """A module with a Lipschitz constant that the user knows; :func:`wrap` makes one."""

    def __init__(
        self, module: nn.Module, lipschitz: float, event_dim: int, context_dim: int | None
    ) -> None:
        super().__init__()
        self.module = check_instance(module, nn.Module, "module", "torch.nn.Linear(2, 2)")
        for name, part in module.named_modules():
            _check_pure(part, f"module.{name}" if name else "module")
        self.lipschitz = check_lipschitz(lipschitz)
        self._check_constant()
        self.event_shape = (-1,) * check_positive_int(event_dim, "event_dim")
        self.context_dim = (
            None if context_dim is None else check_positive_int(context_dim, "context_dim")
        )
        # A module without parameters needs a dtype and a device for its bound.
        self.register_buffer("_like", torch.empty(0), persistent=False)

    def settings(self) -> dict[str, Any]:
        parts = [type(part).__name__ for part in self.module.modules()]
        own = {"module": parts, "event_dim": self.event_dim}
        return {**super().settings(), **own}

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x, context = self.check(x, context)
        # A tensor of inference mode counts no versions.
        version = None if x.is_inference() else x._version
        value = self.module(x) if context is None else self.module(x, context)
        if version is not None and x._version != version:
            raise ArgumentError(
                "Expected module to leave x as it is; it changed it in place. Build its layers "
                "with inplace=False."
            )
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(
                f"Expected module to return a tensor; it returned {type(value).__name__}."
            )
        if value.shape != x.shape:
            raise ArgumentError(
                f"Expected module to keep the shape {tuple(x.shape)} of x; "
                f"it returned {tuple(value.shape)}."
            )
        return value

    def lipschitz_bound(self) -> Tensor:
        like = self._floating()
        return (self.get_buffer("_like") if like is None else like).new_tensor(self.lipschitz)


def _check_pure(part: nn.Module, name: str) -> None:
    """Raise unless a part of a network is a function of one sample and the parameters."""
    if isinstance(part, BatchNorm):
        cause = "mixes the samples of a batch in train mode, so that no sample has a Jacobian alone"
        remedy = "Fold it into the layer before it, or put an actnorm between the blocks."
    elif isinstance(part, TrackingNorm) and part.track_running_stats:
        cause = "changes its statistics in each call, so that the inverse meets another function"
        remedy = "Build it with track_running_stats=False."
    elif _moves_norm(part):
        cause = (
            "moves the estimate of spectral_norm in each call of train mode, so that the inverse "
            "meets another function"
        )
        remedy = (
            "Take DenseContraction, which bounds its weights itself, or remove the norm: "
            "torch.nn.utils.remove_spectral_norm, or parametrize.remove_parametrizations."
        )
    elif _draws(part):
        cause = "draws anew in each call, so that the inverse meets another function"
        remedy = "Leave it out."
    else:
        return
    raise ArgumentError(
        f"Expected {name} to compute each sample by itself, the same in every call; got a "
        f"{type(part).__name__}, which {cause}. {remedy}"
    )


def _moves_norm(part: nn.Module) -> bool:
    """Return True for the spectral_norm of torch, a hook on a layer or a parametrization."""
    hooks = part._forward_pre_hooks.values()
    return isinstance(part, SpectralParametrization) or any(
        isinstance(hook, SpectralNorm) for hook in hooks
    )


def _draws(part: nn.Module) -> bool:
    """Return True for a module of torch that draws random numbers in a call."""
    if isinstance(part, AnyDropout):
        return part.p > 0
    if isinstance(part, nn.RNNBase | nn.MultiheadAttention):
        return part.dropout > 0
    return isinstance(part, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)


def wrap(
    module: nn.Module, *, lipschitz: float, event_dim: int = 1, context_dim: int | None = None
) -> Contraction:
    r"""Make a contraction of your own network and its Lipschitz constant.

    The constant is taken on your word: :math:`\mathrm{Lip}(g) \le L` in ``x`` for every context.
    The inverse raises if it sees a pair of points stretched by more. The Jacobian comes from
    automatic differentiation, so the gradient of a log-determinant needs operations that are
    differentiable twice.

    Arguments:
        module: called as ``module(x)``, or ``module(x, context)`` with a ``context_dim``. The
            module keeps the shape ``(*batch, *event)`` and does not mix samples.
        lipschitz: the Lipschitz constant of the module, in (0, 1).
        event_dim: the number of trailing dimensions of one event: 1 for vectors, 3 for images.
        context_dim: the size of the context, or None for no context.

    Raises:
        ArgumentError, ArgumentTypeError: ``lipschitz`` outside (0, 1), or ``module`` is no
            ``Module``, or holds a batch norm, a dropout or torch's ``spectral_norm``, which mix
            samples, draw or move a buffer.

    Example:
        >>> import torch
        >>> from pyro_iresnet import ResidualBlock, wrap
        >>> class HalfSine(torch.nn.Module):
        ...     def forward(self, x):
        ...         return 0.5 * x.sin()
        >>> block = ResidualBlock(wrap(HalfSine(), lipschitz=0.5))
        >>> y, logdet = block.forward_and_log_det(torch.zeros(1, 3))
        >>> torch.allclose(logdet, 3 * torch.tensor([1.5]).log())
        True
    """
    return Wrapped(module, lipschitz, event_dim, context_dim)
