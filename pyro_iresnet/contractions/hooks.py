"""Refusal of hooks, and of a replaced ``forward``, on a module that nobody calls."""

from torch import nn

from ..errors import ArgumentError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
NEVER_CALLED = "a block computes with normalized weights and never calls the module"


def refuse_if_hooked(module: nn.Module, name: str, reason: str = NEVER_CALLED) -> None:
    """Raise :class:`ArgumentError` for a hook on the call of a module; ``reason`` says why."""
    # Without a loop, since every call comes here.
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        refuse_hooks(module, name, reason)


def refuse_hooks(module: nn.Module, name: str, reason: str = NEVER_CALLED) -> None:
    """Raise :class:`ArgumentError` for the hooks on a module that is never called."""
    found = [hook for attribute in HOOKS for hook in getattr(module, attribute).values()]
    names = {getattr(hook, "__qualname__", type(hook).__name__) for hook in found}
    listed = ", ".join(sorted(names))
    raise ArgumentError(
        f"Expected {name} without hooks on its call; the {type(module).__name__} has {listed}, "
        f"which would not act: {reason}. Remove the hook, or put it on a module around the flow."
    )


def refuse_if_replaced(module: nn.Module, name: str) -> None:
    """Raise :class:`ArgumentError` for a ``forward`` that was set on the module itself."""
    if "forward" in vars(module):
        raise ArgumentError(
            f"Expected {name} with the forward of its class; a forward was set on the "
            f"{type(module).__name__} itself, which would not act: {NEVER_CALLED}. Delete it, or "
            "put it on a module around the flow."
        )
