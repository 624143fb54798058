"""Modules of one structure whose parameters are rows of stacked tensors.

A guide has many small blocks of one shape. With a tensor for each weight of each block, the
bookkeeping of Pyro and of its optimiser costs as much as the mathematics. A packed module keeps its
class, its place and its state dict; its weights are rows of tensors that all modules share.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from operator import is_
from types import EllipsisType
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from .hooks import HOOKS

M = TypeVar("M", bound=nn.Module)
# The beginning of the name of a stacked parameter.
STACKED = "stacked_"
# What a contraction keeps beside its settings.
MEMORIES = {"_shared", "_kept"}
# What hangs on one module alone, and so keeps modules apart.
OWN = (*HOOKS, "_buffers", "forward")


class _Packed(nn.Module):
    """A module whose parameters are rows of stacked ones; a mixin before the module's class.

    Every packed module holds the same stacked parameters, named ``stacked_weight`` for ``weight``.
    """

    # The number of the row, or ... for all rows.
    _row: int | EllipsisType

    def _save_to_state_dict(self, *arguments: Any, **options: Any) -> None:
        with self._owning(self._rows()):
            super()._save_to_state_dict(*arguments, **options)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # An average by hand over named_parameters() has the stacked tensors.
        for name, stacked in self._parameters.items():
            value = state_dict.get(prefix + name)
            if stacked is not None and value is not None:
                if value.shape == stacked.shape:
                    _write(stacked, value)
                else:
                    error_msgs.append(
                        f"size mismatch for {prefix}{name}: expected {tuple(stacked.shape)}, the "
                        f"rows of all packed blocks; got {tuple(value.shape)} in the state dict."
                    )
        # Torch loads into copies: it may put other tensors in their place (assign=True).
        own: dict[str, Any] = {n: nn.Parameter(r.detach().clone()) for n, r in self._rows().items()}
        others = local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        with self._owning(own):
            super()._load_from_state_dict(state_dict, prefix, *others)
        for name in self._parameters:
            if prefix + name in unexpected_keys:
                unexpected_keys.remove(prefix + name)
        for name, row in self._rows().items():
            _write(row, own[name])

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name not in self._parameters:
            _refuse(self, name)
        super().register_parameter(name, param)

    def _rows(self) -> dict[str, Tensor]:
        names = [name.removeprefix(STACKED) for name in self._parameters]
        return {name: getattr(self, name) for name in names}

    @contextmanager
    def _owning(self, own: dict[str, Any]) -> Iterator[None]:
        """Show other parameters to a method of torch that looks for those of the module itself."""
        before = self._parameters
        vars(self)["_parameters"] = own
        try:
            yield
        finally:
            vars(self)["_parameters"] = before

    def __reduce_ex__(self, protocol: Any) -> Any:
        base, names = type(self).__mro__[2], tuple(self._rows())
        return _bare, (base, names), self.__getstate__()


def _write(target: Tensor, value: Tensor) -> None:
    if target.is_meta and not value.is_meta:
        raise ArgumentError(
            "Expected packed blocks with values; got tensors on the device meta, which several "
            "blocks share and load row by row. Call to_empty(device='cpu') on the flow first."
        )
    with torch.no_grad():
        target.copy_(value)


@cache
def _packed_class(base: type[nn.Module], names: tuple[str, ...]) -> type[_Packed]:
    """Return the class of packed modules of a class; the parameters are properties."""
    members: dict[str, Any] = {name: _row_of(name) for name in names}
    kind = type(base.__name__, (_Packed, base), members)
    kind.__module__, kind.__qualname__ = base.__module__, base.__qualname__
    return kind


def _row_of(name: str) -> property:
    def row(module: _Packed) -> Tensor:
        return getattr(module, STACKED + name)[module._row]

    return property(row, lambda module, _: _refuse(module, name))


def _refuse(module: nn.Module, name: str) -> NoReturn:
    raise ArgumentError(
        f"Expected no parameter {name} set on this {type(module).__name__}, whose parameters are "
        "rows of tensors that several blocks share. Write rows in place, by copy_ without "
        "gradients. To replace, prune or parametrize a weight of one block, put a module of your "
        "own in the place of this one, or stack blocks of your own: Stack([iresnet(2)])."
    )


def _bare(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    kind = _packed_class(base, names)
    return kind.__new__(kind)


def pack(modules: Sequence[nn.Module]) -> None:
    """Make the parameters of modules rows of stacked tensors, in place.

    Modules of different structure, shape or dtype stay as they are, and so do modules with buffers,
    hooks, frozen or shared parameters. Settings may differ: :func:`whole` compares them.
    """
    trees = [list(m.modules()) for m in modules]
    parts = [m for tree in trees for m in tree]
    parameters = [p for m in parts for p in m._parameters.values()]
    alike = len({tuple(map(type, tree)) for tree in trees}) == 1
    if len(modules) < 2 or not alike:
        return
    # A module or a parameter in two places, within one of the modules as well.
    if any(len(set(map(id, held))) < len(held) for held in (parts, parameters)):
        return
    positions = list(zip(*trees, strict=True))
    if not all(map(_can_stack, positions)):
        return
    for position in positions:
        names = tuple(position[0]._parameters)
        if names:
            rows = zip(*[map(cast(Any, m._parameters).get, names) for m in position], strict=True)
            with torch.no_grad():
                stacks = [nn.Parameter(torch.stack(tensors)) for tensors in rows]
            for i, m in enumerate(position):
                m._parameters.clear()
                for name, stacked in zip(names, stacks, strict=True):
                    m.register_parameter(STACKED + name, stacked)
                m.__class__ = _packed_class(type(m), names)
                vars(m)["_row"] = i
    group = object()
    for m in modules:
        vars(m)["_pack"] = group


def _can_stack(position: Sequence[nn.Module]) -> bool:
    def seen(m: nn.Module) -> list[object]:
        shapes = [
            (name, p is not None and (type(p), p.shape, p.dtype, p.device, p.requires_grad))
            for name, p in m._parameters.items()
        ]
        return [shapes, list(m._modules)]

    first = seen(position[0])
    trained = all(known and known[-1] for _, known in cast(Any, first[0]))
    plain = not any(any(map(vars(m).get, OWN)) for m in position)
    return trained and plain and all(seen(m) == first for m in position[1:])


def whole(modules: Sequence[M]) -> M | None:
    """Return packed modules as one module, whose parameters are the stacked tensors.

    None unless the modules are all that were packed together, in their order, with the same
    settings. The module is made anew in each call, for reading.
    """
    first, count = modules[0], len(modules)
    own = vars(first)
    names = [name for name in own if name[0] != "_"]
    settings, parts = list(map(own.get, names)), list(first._modules)
    packed, stacks = isinstance(first, _Packed), list(first._parameters.values())
    # A module of parameters of its own, or some of the packed ones, or replicas.
    if bool(stacks) is not packed or any(len(cast(Tensor, t)) != count for t in stacks):
        return None
    for i, m in enumerate(modules):
        held = vars(m)
        if type(m) is not type(first) or any(map(held.get, OWN)):
            return None
        if held.keys() != own.keys() and held.keys() - MEMORIES != own.keys() - MEMORIES:
            return None
        try:
            if list(map(held.get, names)) != settings or list(m._modules) != parts:
                return None
        except RuntimeError:
            # Tensors among the settings.
            return None
        tensors = list(m._parameters.values())
        if len(tensors) != len(stacks) or not all(map(is_, tensors, stacks)):
            return None
        if packed and held["_row"] != i:
            return None
    children: dict[str, nn.Module | None] = {}
    for name in parts:
        same: list[Any] = [m._modules[name] for m in modules]
        child = None if None in same else whole(same)
        if child is None and same != count * [None]:
            return None
        children[name] = child
    one = type(first).__new__(type(first))
    vars(one).update(own, _modules=children)
    if packed:
        vars(one)["_row"] = ...
    return one
