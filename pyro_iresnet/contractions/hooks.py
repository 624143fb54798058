"""Refusal of hooks on the call of a module that a block never calls."""

from torch import nn

from ..errors import ArgumentError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def refuse_hooks(module: nn.Module, name: str) -> None:
    """Raise :class:`ArgumentError` for the hooks on a module that is never called."""
    found = [hook for attribute in HOOKS for hook in getattr(module, attribute).values()]
    names = {getattr(hook, "__qualname__", type(hook).__name__) for hook in found}
    listed = ", ".join(sorted(names))
    raise ArgumentError(
        f"Expected {name} without hooks on its call; the {type(module).__name__} has {listed}, "
        "which would not act: a block computes with normalized weights and never calls the module. "
        "Remove the hook, or put it on the flow."
    )
