"""The parts of a flow, whoever built the stack around them."""

from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import TypeVar

from torch import nn
from torch.distributions import ComposeTransform, Transform, TransformedDistribution
from torch.distributions.transforms import _InverseTransform

from .contractive import Contraction
from .errors import ArgumentTypeError

M = TypeVar("M", bound=nn.Module)


def modules_of(flow: object) -> list[nn.Module]:
    """Every module in a flow, once, each before its parts.

    Arguments:
        flow: a block, a module that holds blocks (an nflows ``Flow`` or ``Transform``, a guide, a
            Pyro transform), a torch or Pyro transform or transformed distribution, conditional
            or not, or a list of such.

    Raises:
        ArgumentTypeError: ``flow`` is none of these.
    """
    # By identity: a Pyro transform is hashed in a way that torch.compile cannot follow.
    seen: dict[int, nn.Module] = {}
    waiting = list(_modules(flow))[::-1]
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen[id(module)] = module
            waiting += _children(module)[::-1]
    return list(seen.values())


def contractions_of(flow: object) -> list[Contraction]:
    """Every contraction in a flow that is no part of another, once, in the order of the flow.

    ``flow`` as in :func:`modules_of`.
    """
    return outermost([m for m in modules_of(flow) if isinstance(m, Contraction)])


def outermost(modules: Sequence[M]) -> list[M]:
    """Those modules that are no part of another of them."""
    parts = {id(part) for m in modules for part in m.modules() if part is not m}
    return [m for m in modules if id(m) not in parts]


PLAIN = (int, float, str, tuple)


def settings_of(module: nn.Module) -> tuple[object, ...]:
    """What a module computes with beside tensors and its parts: numbers, words, strategies."""
    return tuple(
        value
        for name, value in vars(module).items()
        if name[0] != "_" and (isinstance(value, PLAIN) or is_dataclass(value))
    )


def _children(module: nn.Module) -> list[nn.Module]:
    registered = [child for child in module._modules.values() if child is not None]
    if isinstance(module, ComposeTransform):
        # A part such as an inverse is no module, and so not registered.
        return [*_modules(module.parts), *registered]
    return registered


def _modules(flow: object) -> Iterable[nn.Module]:
    if isinstance(flow, nn.Module):
        return [flow]
    if isinstance(flow, TransformedDistribution):
        return _modules([flow.base_dist, *flow.transforms])
    if isinstance(flow, _InverseTransform):
        return _modules(flow.inv)
    if isinstance(flow, ComposeTransform):
        return _modules(flow.parts)
    if hasattr(flow, "condition"):
        # Pyro's, which the core does not know: what is no module keeps its parts under these names.
        held = ("base_dist", "transforms", "transform")
        return _modules([getattr(flow, name) for name in held if hasattr(flow, name)])
    if isinstance(flow, list | tuple):
        return [module for part in flow for module in _modules(part)]
    if isinstance(flow, Transform) or hasattr(flow, "log_prob"):
        # A transform or a base distribution without modules has no parts to find.
        return []
    raise ArgumentTypeError(
        "Expected flow to be a module, a transform, a distribution or a list of them; got "
        f"{type(flow).__name__}."
    )
