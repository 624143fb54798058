"""The parts of a flow, whoever built the stack around them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from types import CellType, FunctionType, MethodType
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


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """These modules in eval mode, each for itself and not its parts; then in the mode they had."""
    modes = [m.training for m in modules]
    try:
        for m in modules:
            m.training = False
        yield
    finally:
        for m, mode in zip(modules, modes, strict=True):
            m.training = mode


def modules_behind(function: object) -> list[nn.Module]:
    """The modules that a callable leads to, and their parts: those that it is, is a method of, is
    bound to by ``functools.partial`` or a decorator, closes over, or names among its globals.

    What a call fetches by other ways, out of a container or through an attribute, is not found.
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting = [function]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found |= {id(m): m for m in thing.modules()}
        waiting += _leads(thing)
    return list(found.values())


def _leads(thing: object) -> list[object]:
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if not isinstance(thing, FunctionType):
        return []
    cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_full(cell)]
    names = [thing.__globals__.get(name) for name in thing.__code__.co_names]
    near = [v for v in names if isinstance(v, nn.Module | MethodType | FunctionType | partial)]
    wrapped = getattr(thing, "__wrapped__", None)
    return [*cells, wrapped, *(v for v in near if _is_users(v))]


def _is_full(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_users(value: object) -> bool:
    """Not a function of a library, which leads far and to no module of the user's."""
    module = getattr(value, "__module__", None) or ""
    return isinstance(value, nn.Module) or not module.startswith(("torch", "pyro.", "numpy"))


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
