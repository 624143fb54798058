"""Values of a guide that Pyro's parameter store holds already."""

import warnings
from typing import Any

import pyro
import torch
from pyro.params import param_with_module_name

from ....errors import ArgumentError
from ..stack import Stack

# The attribute of a parameter with which a guide of this process has run.
MARK = "_run_by_a_guide"


@torch.no_grad()
def take_from_store(stack: Stack, prefix: str) -> None:
    """Begin with the values that Pyro's store holds under a prefix, as after its ``load``.

    The store then forgets the values, and learns of the parameters themselves at the first step;
    else it would train its own tensors and leave the guide's as they are. Values of other names or
    shapes raise :class:`ArgumentError`.
    """
    if pyro.settings.get("module_local_params"):
        return
    store = pyro.get_param_store()
    # The state dict has the names that a store has of an older version, block by block.
    found = {**stack.state_dict(keep_vars=True), **dict(stack.named_parameters())}
    targets = {param_with_module_name(prefix, name): p for name, p in found.items()}
    remedy = (
        "Call pyro.clear_param_store() first. For several guides at once call "
        "pyro.settings.set(module_local_params=True) before."
    )
    for full in store.keys():  # noqa: SIM118  (Pyro's store is no mapping)
        if full.startswith(param_with_module_name(prefix, "")) and full not in targets:
            raise ArgumentError(
                "Expected the values under the name of this guide in Pyro's parameter store to be "
                f"its own; got {full!r}, of another guide or version. {remedy}"
            )
    held = dict(store.named_parameters())
    if any(getattr(held.get(full), MARK, False) for full in targets):
        warnings.warn(
            "The guide starts from the values of an earlier guide, which Pyro's parameter store "
            f"holds under the name {prefix.split('.')[0]!r}. For a start of its own call "
            "pyro.clear_param_store() first.",
            stacklevel=2,
        )
    for full, parameter in targets.items():
        if full not in store:
            continue
        value = store[full]
        if value.shape != parameter.shape:
            raise ArgumentError(
                f"Expected {full!r} in Pyro's parameter store of shape {tuple(parameter.shape)}; "
                f"got {tuple(value.shape)}, of another guide. {remedy}"
            )
        parameter.copy_(value)
        del store[full]


class _Run:
    """The mark of a parameter that a guide runs with; a copy, and a file, hold False instead."""

    def __reduce__(self) -> Any:
        return bool, ()


def keep_in_store(stack: Stack, prefix: str) -> None:
    """Let Pyro's store hold the parameters of a stack, and no others, under a prefix.

    A copy and a second guide have the same names, and Pyro keeps the tensors that came first: it
    would train these, and leave those of the guide that runs as they are. So the guide that runs
    takes its place in the store. But values that a file brought become the guide's.
    """
    if pyro.settings.get("module_local_params"):
        return
    store = pyro.get_param_store()
    name, own = f"{len(stack) - 1}.shift", stack[-1].shift
    setattr(own, MARK, _Run())
    held = dict(store.named_parameters()).get(param_with_module_name(prefix, name))
    if held is None or held is own:
        return
    if not getattr(held, MARK, False):
        take_from_store(stack, prefix)
        return
    for full in list(store.keys()):
        if full.startswith(param_with_module_name(prefix, "")):
            del store[full]
