"""The parts of a flow, whoever built the stack around them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import nn
from torch.distributions import ComposeTransform, Transform, TransformedDistribution

from ._torch import InverseTransform
from .contractions import Contraction
from .errors import ArgumentTypeError

M = TypeVar("M", bound=nn.Module)


def modules_of(flow: object, down_to: type[nn.Module] | None = None) -> list[nn.Module]:
    """List every module in a flow once, each before its parts.

    The parts of modules of the kind ``down_to`` are left out.

    ``flow`` is a block, a module that holds blocks (an nflows ``Flow`` or ``Transform``, a guide, a
    Pyro transform), a torch or Pyro transform or transformed distribution, conditional or not, or a
    list of such. Anything else raises :class:`ArgumentTypeError`.
    """
    # By identity: torch.compile cannot follow the hash of a Pyro transform.
    seen: dict[int, nn.Module] = {}
    waiting = list(_modules(flow))[::-1]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen[id(module)] = module
        if down_to is not None and isinstance(module, down_to):
            continue
        # Most modules are leaves, and this walk shows in a step of a small flow.
        if module._modules:
            waiting += [child for child in reversed(module._modules.values()) if child is not None]
        if isinstance(module, ComposeTransform):
            # A part such as an inverse is no module, and so not registered.
            waiting += modules_in_parts(module)[::-1]
    return list(seen.values())


def modules_of_kind(flow: object, kind: type[M], *, nested: bool = True) -> list[M]:
    """List the modules of a kind, as :func:`modules_of` does; ``nested``: those in others too."""
    modules = modules_of(flow, None if nested else kind)
    # An abstract class is slow to ask.
    kinds = {each for each in set(map(type, modules)) if issubclass(each, kind)}
    return [m for m in modules if type(m) in kinds]  # pyright: ignore[reportReturnType]


def modules_in_parts(transform: ComposeTransform) -> list[nn.Module]:
    """List the modules that are the parts of a composition, or that the parts hold."""
    return list(_modules(transform.parts))


def contractions_of(flow: object) -> list[Contraction]:
    """List every contraction outside of other contractions, once, in the order of the flow."""
    return modules_of_kind(flow, Contraction, nested=False)  # pyright: ignore[reportAbstractUsage]


def outermost(modules: Sequence[M]) -> list[M]:
    """List the modules that are no part of another of them."""
    parts: set[int] = set()
    waiting: list[nn.Module] = [*modules]
    while waiting:
        for part in waiting.pop()._modules.values():
            if part is not None and id(part) not in parts:
                parts.add(id(part))
                waiting.append(part)
    return [m for m in modules if id(m) not in parts]


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules into eval mode, each without its parts; then back into the mode before."""
    modes = [m.training for m in modules]
    try:
        for m in modules:
            m.training = False
        yield
    finally:
        for m, mode in zip(modules, modes, strict=True):
            m.training = mode


def _modules(flow: object) -> Iterable[nn.Module]:
    if isinstance(flow, nn.Module):
        return [flow]
    if isinstance(flow, TransformedDistribution):
        return _modules([flow.base_dist, *flow.transforms])
    if isinstance(flow, InverseTransform):
        return _modules(flow.inv)
    if isinstance(flow, ComposeTransform):
        return _modules(flow.parts)
    if hasattr(flow, "condition") or hasattr(flow, "base_dist"):
        # A conditional object of Pyro, and a distribution around another, such as Independent, keep
        # their parts by these names.
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
