"""Refusal of hooks, and of a replaced ``forward``, on a module that nobody calls."""

from typing import NoReturn

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import ArgumentError

# ``any(map(vars(module).get, HOOKS))`` asks for hooks at the price of no call into Python.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Hooks that set the weight of a layer from its other tensors.
WEIGHT_HOOKS = (BasePruningMethod, SpectralNorm, WeightNorm)
# Stride, dilation and groups of a convolution that keeps the size of an image.
PLAIN = ((1, 1), (1, 1), 1)
NEVER_CALLED = "a block computes with normalized weights and never calls the module"


def refuse_hooks(module: nn.Module, name: str, reason: str = NEVER_CALLED) -> NoReturn:
    """Raise :class:`ArgumentError` for the hooks on a module that is never called."""
    found = [hook for table in HOOKS for hook in vars(module)[table].values()]
    names = {getattr(hook, "__qualname__", type(hook).__name__) for hook in found}
    listed = ", ".join(sorted(names))
    raise ArgumentError(
        f"Expected {name} without hooks on its call; the {type(module).__name__} has {listed}, "
        f"which would not act: {reason}. Remove the hook, or put it on a module around the flow."
    )


def refuse_forward(module: nn.Module, name: str) -> NoReturn:
    """Raise :class:`ArgumentError` for a ``forward`` that was set on the module itself."""
    raise ArgumentError(
        f"Expected {name} with the forward of its class; a forward was set on the "
        f"{type(module).__name__} itself, which would not act: {NEVER_CALLED}. Delete it, or put "
        "it on a module around the flow."
    )


def read(layers: nn.ModuleList, activations: nn.ModuleList, kind: type[nn.Module]) -> None:
    """Let pruning, weight and spectral normalization set the weights of layers before a reading.

    A contraction never calls its layers, since the acting weights are normalized ones. A hook or a
    ``forward`` of the user's would be passed over in silence.

    Arguments:
        layers, activations: those of a contraction.
        kind: ``nn.Linear`` or ``nn.Conv2d``.

    Raises:
        ArgumentError: a layer is of another kind, has no bias, or has a ``forward`` or a hook of
            the user's; an activation has a hook or a ``forward`` set on itself.
    """
    for i, layer in enumerate(layers):
        if type(layer).forward is not kind.forward or "forward" in vars(layer):
            raise ArgumentError(
                f"Expected layers[{i}] to compute as nn.{kind.__name__}; got a "
                f"{type(layer).__name__} with a forward of its own, which a contraction never "
                "calls. Parametrize the weight (torch.nn.utils.parametrize), or wrap your network."
            )
        if isinstance(layer, nn.Conv2d) and (layer.stride, layer.dilation, layer.groups) != PLAIN:
            raise ArgumentError(
                f"Expected layers[{i}] with stride 1, dilation 1 and one group, which the bound is "
                f"for; got {layer}."
            )
        if isinstance(layer, nn.Conv2d) and (
            any(side % 2 == 0 for side in layer.kernel_size)
            or layer.padding_mode in ("reflect", "replicate")
        ):
            raise ArgumentError(
                f"Expected layers[{i}] with odd sides, and padded by zeros or in a circle, which "
                f"the bound is for; got {layer}."
            )
        if layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            refuse_hooks(layer, f"layers[{i}]")
        if layer._forward_pre_hooks:
            for hook in layer._forward_pre_hooks.values():
                if not isinstance(hook, WEIGHT_HOOKS):
                    refuse_hooks(layer, f"layers[{i}]")
                hook(layer, ())
        if layer.bias is None:
            raise ArgumentError(
                f"Expected layers[{i}] to have a bias; got None. For no bias, set the bias to 0 "
                "and its requires_grad to False."
            )
    for i, activation in enumerate(activations):
        if any(map(vars(activation).get, HOOKS)):
            refuse_hooks(activation, f"activations[{i}]")
        if "forward" in vars(activation):
            refuse_forward(activation, f"activations[{i}]")
