"""Fingerprints: the settings and tensors of a module, to tell if a call would repeat the last."""

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import ComposeTransform

from ._comparable import IncomparableError, contents_of, contents_of_value, hooks_of
from ._modules import modules_in_parts, modules_of
from .contractions.hooks import HOOKS

# Types of a setting, beside frozen strategies.
PLAIN = {bool, int, float, str, type(None)}
# Libraries whose modules show all their state as parameters, buffers and settings of plain types.
KNOWN = ("torch.", "pyro_iresnet.", "pyro.", "nflows.")
# What a module holds in dictionaries.
TABLES = ("_parameters", "_buffers", "_modules", *HOOKS)
TABLES_OF = attrgetter(*TABLES)
MARKS = attrgetter("requires_grad", "grad_fn", "dtype", "device")
_flat = chain.from_iterable


@dataclass(frozen=True, eq=False)
class Values:
    """Tensors and the values that they had.

    Writes are found by value, since a write through ``.data`` (Pyro's optimisers, users) leaves the
    identity and the version of a tensor as they were.

    Arguments:
        tensors: held so that no other tensor takes their place.
        marks: of each tensor, among them its node of the graph: ``detach_`` leaves the identity,
            the value and, with ``requires_grad_``, the need.
        copies: of each tensor, or None if values are not compared.
    """

    tensors: Sequence[Tensor]
    marks: list[Any]
    copies: list[Tensor] | None

    @classmethod
    def of(cls, tensors: Sequence[Tensor], *, by_value: bool = True) -> "Values | None":
        """Take the values; None if torch cannot compare them, as on the device meta."""
        for t in tensors if by_value else ():
            if t.layout is not torch.strided or t.is_meta:
                return None
        copies = [t.detach().clone() for t in tensors] if by_value else None
        return cls(tensors, list(map(MARKS, tensors)), copies)

    def hold(self) -> bool:
        """Return True if nothing has changed."""
        if list(map(MARKS, self.tensors)) != self.marks:
            return False
        return self.copies is None or all(map(torch.equal, self.tensors, self.copies))


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The settings and tensors of a module and its parts, and the values of the tensors.

    The comparison walks in loops of C over what the first look has listed: a call of one sample
    costs little more. Settings are compared by identity. The module itself is not held, so that it
    may hold its fingerprint.

    Arguments:
        kinds: the classes of the module and its parts.
        parts: the modules behind the first.
        names: how many attributes each module has, then the names of all attributes.
        pick: for each module, takes the attributes that are settings or tables.
        picked: the attributes that ``pick`` took at the first look.
        tables: dictionaries of parameters, buffers, parts and hooks that have entries.
        entry_names: how many entries each of ``tables`` has, then the keys of all entries.
        entries: the values of ``tables`` at the first look.
        empty: dictionaries without entries.
        looks: the objects that take a longer look.
        contents: the findings of the longer look.
        values: of the tensors.
    """

    kinds: list[type]
    parts: list[nn.Module]
    names: list[object]
    pick: list[Any]
    picked: list[object]
    tables: list[dict[str, Any]]
    entry_names: list[object]
    entries: list[object]
    empty: list[dict[str, Any]]
    looks: "_Looks"
    contents: list[object]
    values: Values

    @classmethod
    def of(
        cls, module: nn.Module, *, by_value: bool = True, last: "Fingerprint | None" = None
    ) -> "Fingerprint | None":
        """Take the fingerprint of a module; the last one, if it still holds.

        Return None if the module holds an object of the user's that may change without a trace, or
        a tensor whose values torch cannot compare: a sparse one, or one on the device meta.
        """
        if last is not None and (last.values.copies is not None) is by_value and last._fits(module):
            if last.values.hold():
                return last
            values = Values.of(last.values.tensors, by_value=by_value)
            return None if values is None else replace(last, values=values)
        modules = modules_of(module)
        looks, pick, tables = _Looks([], [], []), [], []
        for i, m in enumerate(modules):
            pick.append(itemgetter(*TABLES, *looks.leave(i, m)))
            tables += TABLES_OF(m)
        filled = [t for t in tables if t]
        tensors: list[Tensor] = []
        try:
            contents = looks.at(modules, tensors)
        except IncomparableError:
            return None
        # Packed modules hold the same tensors.
        distinct: dict[int, Tensor] = {}
        for m in modules:
            for held in (m._parameters, m._buffers):
                distinct.update([(id(t), t) for t in held.values() if t is not None])
        tensors += distinct.values()
        values = Values.of(tensors, by_value=by_value)
        if values is None:
            return None
        owned = list(map(vars, modules))
        return cls(
            kinds=list(map(type, modules)),
            parts=modules[1:],
            names=[*map(len, owned), *_flat(owned)],
            pick=pick,
            picked=list(_flat(map(itemgetter.__call__, pick, owned))),
            tables=filled,
            entry_names=[*map(len, filled), *_flat(filled)],
            entries=list(_flat(map(dict.values, filled))),
            empty=[t for t in tables if not t],
            looks=looks,
            contents=contents,
            values=values,
        )

    def holds(self, module: nn.Module) -> bool:
        """Return True if nothing has changed."""
        return self._fits(module) and self.values.hold()

    def _fits(self, module: nn.Module) -> bool:
        """Return True if nothing but values has changed."""
        modules = [module, *self.parts]
        owned = list(map(vars, modules))
        if list(map(type, modules)) != self.kinds or any(self.empty):
            return False
        if [*map(len, owned), *_flat(owned)] != self.names:
            return False
        if not all(map(is_, _flat(map(itemgetter.__call__, self.pick, owned)), self.picked)):
            return False
        if [*map(len, self.tables), *_flat(self.tables)] != self.entry_names:
            return False
        if not all(map(is_, _flat(map(dict.values, self.tables)), self.entries)):
            return False
        if not self.contents:
            return True
        tensors: list[Tensor] = []
        try:
            if self.looks.at(modules, tensors) != self.contents:
                return False
        except IncomparableError:
            return False
        # Those of the look come first.
        before = self.values.tensors
        return len(tensors) <= len(before) and all(map(is_, tensors, before))


@dataclass(frozen=True)
class _Looks:
    """What identity does not tell, by the number of the module.

    Arguments:
        foreign: modules of the user's.
        settings: attributes of other modules that are a user's: a forward, a tensor, a list.
        inner: modules that have hooks, or parts that are no modules.
    """

    foreign: list[int]
    settings: list[tuple[int, str]]
    inner: list[int]

    def leave(self, i: int, module: nn.Module) -> list[str]:
        """Return the names of the settings whose identity tells all; note the others."""
        hooked = module._forward_hooks or module._forward_pre_hooks
        if hooked or isinstance(module, ComposeTransform):
            self.inner.append(i)
        kind = type(module)
        if kind is nn.Module or not kind.__module__.startswith(KNOWN):
            self.foreign.append(i)
            return []
        names: list[str] = []
        for name, value in vars(module).items():
            if name[0] == "_":
                continue
            kind = type(value)
            if (
                kind in PLAIN
                or (kind is tuple and PLAIN.issuperset(map(type, value)))
                or (is_dataclass(value) and kind.__module__.startswith(KNOWN))
            ):
                names.append(name)
            else:
                self.settings.append((i, name))
        return names

    def at(self, modules: Sequence[nn.Module], tensors: list[Tensor]) -> list[object]:
        """Look; tensors go to ``tensors``."""
        contents: list[object] = [contents_of(modules[i], tensors) for i in self.foreign]
        for i, name in self.settings:
            contents.append(contents_of_value(vars(modules[i])[name], tensors))
        for i in self.inner:
            module = modules[i]
            contents.append(hooks_of(module, tensors))
            if isinstance(module, ComposeTransform):
                contents.append(list(map(id, modules_in_parts(module))))
        return contents
