"""Acting weights in eval mode: kept from call to call, while no parameter changes."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ._comparable import PLAIN
from ._fingerprint import Fingerprint
from ._torch import any_autocast, in_plain_autograd, saved_tensor_hooks
from .contractions import Contraction, materialize_together
from .norms import Norm
from .operators import ContractionMap

HOOKS_OF = attrgetter("_backward_hooks")


def maps_of(contractions: Sequence[Contraction]) -> list[ContractionMap]:
    """Return ``[c.materialize() for c in contractions]``, in eval mode without the norms.

    No two calls share a graph that a backward pass could free.
    """
    evaluating = [c for c in contractions if not c.training]
    if not evaluating or not in_plain_autograd() or saved_tensor_hooks(True) or any_autocast():
        return materialize_together(contractions)
    mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    maps = {id(c): m for c in evaluating if (m := _kept(c, mode)) is not None}
    absent = [c for c in contractions if id(c) not in maps]
    if absent:
        made = materialize_together(absent)
        maps.update(zip(map(id, absent), made, strict=True))
        maps.update(
            _keep([(c, m) for c, m in zip(absent, made, strict=True) if not c.training], mode)
        )
    return [maps[id(c)] for c in contractions]


def _kept(contraction: Contraction, mode: tuple[bool, bool]) -> ContractionMap | None:
    # Maps with a graph serve without gradients too.
    for usable in {mode, (True, False)} if mode == (False, False) else {mode}:
        kept = contraction._kept.get(usable)
        if kept is not None and kept.holds_for(contraction):
            return kept.map
    return None


def _keep(
    made: Sequence[tuple[Contraction, ContractionMap]], mode: tuple[bool, bool]
) -> Iterator[tuple[int, ContractionMap]]:
    """Keep maps where nothing can change unseen; iterate over those to use in their place."""
    found: list[tuple[Contraction, ContractionMap, Fingerprint]] = []
    acting: dict[int, Tensor] = {}
    for c, m in made:
        here: dict[int, Tensor] = {}
        if not _collect(m, here):
            continue
        # An attribute more would look like a change.
        vars(c).setdefault("_kept", {})
        vars(c).setdefault("_shared", ())
        last = next((kept.fingerprint for kept in c._kept.values()), None)
        fingerprint = Fingerprint.of(c, last=last)
        if fingerprint is None or not all(map(_is_plain, fingerprint.values.tensors)):
            continue
        acting.update(here)
        found.append((c, m, fingerprint))
    graph = None
    swaps: dict[int, Tensor] = {}
    if acting:
        graph = _Graph([(weakref.ref(c), f) for c, _, f in found], list(acting.values()))
        seen = {id(t) for *_, f in found for t in f.values.tensors}
        if graph.is_hooked() or not seen.issuperset(map(id, graph.leaves)):
            return
        swaps = dict(zip(acting, _Joined.apply(graph, *graph.leaves), strict=True))
    for c, m, fingerprint in found:
        kept = _Kept(_swapped(m, swaps) if swaps else m, fingerprint, graph)
        c._kept = {**c._kept, mode: kept}
        yield id(c), kept.map


@dataclass(frozen=True, eq=False)
class _Kept:
    """A map, the fingerprint of its contraction, and the graph of its weights, or None."""

    map: ContractionMap
    fingerprint: Fingerprint
    graph: "_Graph | None"

    def holds_for(self, contraction: Contraction) -> bool:
        if self.graph is not None and (self.graph.spent or self.graph.is_hooked()):
            return False
        return self.fingerprint.holds(contraction)


class _Graph:
    """The graph from leaves to acting weights, which gradients pass any number of times.

    Arguments:
        of: the contractions that the weights belong to, and their fingerprints.
        acting: tensors with a node of the graph.

    Attributes:
        leaves: all tensors without a node that the graph begins with.
        spent: True once a backward pass may have freed the graph.
    """

    def __init__(
        self,
        of: Sequence[tuple[weakref.ref[Contraction], Fingerprint]],
        acting: list[Tensor],
    ) -> None:
        self.of, self.acting = of, acting
        self.leaves = _leaves(acting)
        self.spent = False

    def is_hooked(self) -> bool:
        """Return True if a leaf has a hook, which would act inside the graph and again outside."""
        return any(map(HOOKS_OF, self.leaves))

    def gradients(self, grads: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Carry gradients from the weights to the leaves."""
        if self.is_hooked():
            raise RuntimeError(
                "A hook was registered on a parameter between a call in eval mode and its backward "
                "pass. Register the hook before the call."
            )
        differentiable, acting = torch.is_grad_enabled(), self.acting
        if differentiable:
            # A pass through second derivatives frees the graph that they were made of.
            acting = self._anew()
        pairs = [(a, g) for a, g in zip(acting, grads, strict=True) if g is not None]
        if not pairs:
            return [None] * len(self.leaves)
        ends, given = zip(*pairs, strict=True)
        return torch.autograd.grad(
            ends,
            self.leaves,
            given,
            retain_graph=True,
            create_graph=differentiable,
            allow_unused=True,
        )

    def _anew(self) -> list[Tensor]:
        contractions: list[Contraction] = []
        for reference, fingerprint in self.of:
            contraction = reference()
            if contraction is None or not fingerprint.holds(contraction):
                self.spent = True
                return self.acting
            contractions.append(contraction)
        acting: dict[int, Tensor] = {}
        for m in materialize_together(contractions):
            _collect(m, acting)
        return list(acting.values())


class _Joined(Function):
    """The acting weights of a graph, joined to its leaves."""

    @staticmethod
    def forward(ctx, graph: _Graph, *leaves: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.graph = graph
        ctx.set_materialize_grads(False)
        return tuple([a.detach() for a in graph.acting])

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.graph.gradients(grad_outputs)


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """List every leaf that the graph of tensors begins with."""
    waiting: list[Any] = [t.grad_fn for t in tensors]
    seen, leaves = set(waiting), []
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        for earlier, _ in node.next_functions:
            if earlier is not None and earlier not in seen:
                seen.add(earlier)
                waiting.append(earlier)
    return leaves


def _is_plain(tensor: Tensor) -> bool:
    """Return False for a tensor with a node, whose past belongs to the call, and for a subclass.

    Subclasses may live on other machines, or have no values.
    """
    return tensor.grad_fn is None and type(tensor) in (Tensor, nn.Parameter)


def _collect(value: Any, acting: dict[int, Tensor]) -> bool:
    """Put the tensors of a map that have a node into ``acting``; False for an unknown object."""
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            acting[id(value)] = value
        return True
    if isinstance(value, tuple):
        return all(_collect(v, acting) for v in value)
    if is_dataclass(value):
        if isinstance(value, Norm):
            return True
        frozen = type(value).__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
        named = value.__dataclass_fields__.items()
        return frozen and all(f.init and _collect(getattr(value, n), acting) for n, f in named)
    if isinstance(value, nn.Module):
        # A part that reads its own parameters in each call.
        return not any(isinstance(v, Tensor) for m in value.modules() for v in vars(m).values())
    return isinstance(value, PLAIN)


def _swapped(value: Any, swaps: dict[int, Tensor]) -> Any:
    """Return a map, or a part of one, with other tensors in place of its own."""
    if isinstance(value, Tensor):
        return swaps.get(id(value), value)
    if isinstance(value, tuple):
        parts = [_swapped(v, swaps) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if not is_dataclass(value) or isinstance(value, Norm):
        return value
    changed: dict[str, Any] = {}
    for name in value.__dataclass_fields__:
        own = getattr(value, name)
        other = _swapped(own, swaps)
        if other is not own:
            changed[name] = other
    return replace(value, **changed) if changed else value  # pyright: ignore[reportArgumentType]
