"""Acting weights computed once for many calls: :class:`cached`, and once for a stack's call."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType

import torch

from ._fingerprint import Fingerprint
from ._kept import maps_of
from ._modules import contractions_of
from ._torch import in_backward, in_torch_func, is_compiling, saved_tensor_hooks
from .contractions import Contraction, materialize_together
from .operators import ContractionMap


class cached:  # noqa: N801  (a context manager, named as torch names them)
    """Inside ``with cached(flow):`` the weights of a flow are normalised once for all calls.

    A flow in eval mode whose parameters need no gradient does so by itself. Else a stack normalises
    the weights of its parts once in each call, and many small calls gain by one normalisation for
    all of them. The numbers do not change, but for rounding, and gradients flow as they do without
    ``cached``. All losses formed inside share one graph, so call ``backward`` once, on their sum. A
    parameter that changes inside is noticed by its value, and the weights are computed anew.

    Arguments:
        flow: a block, a stack, a flow or a guide of either framework, or a list of them. In other
            modules there is nothing to share.

    Raises:
        ArgumentTypeError: ``flow`` is no module, transform or distribution, nor a list of them.

    Example:
        >>> import torch
        >>> from pyro_iresnet import cached, iresnet_stack
        >>> stack = iresnet_stack(2)
        >>> with cached(stack):
        ...     draws = [stack(torch.randn(1, 2)) for _ in range(10)]
    """

    def __init__(self, flow: object) -> None:
        self._contractions = contractions_of(flow)
        # One entry for each time it is open.
        self._open: list[_ManyCalls] = []

    def __enter__(self) -> None:
        shared = _ManyCalls(self._contractions)
        self._open.append(shared)
        _add(self._contractions, shared)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _remove(self._contractions, self._open.pop())


def map_of(contraction: Contraction) -> ContractionMap:
    """Return ``contraction.materialize()``, or the map that is shared or kept."""
    if contraction._shared:
        for shared in reversed(contraction._shared):
            if shared.is_open_here():
                return shared.map_of(contraction)
    return contraction.materialize() if contraction.training else maps_of([contraction])[0]


@contextmanager
def together(contractions: Sequence[Contraction]) -> Iterator[None]:
    """Normalise the weights of contractions together, for one call of the flow that holds them."""
    if len(contractions) < 2 or _is_shared(contractions[0]):
        yield
        return
    maps = maps_of(contractions)
    with share({id(c): m for c, m in zip(contractions, maps, strict=True)}, contractions):
        yield


@contextmanager
def share(
    maps: Mapping[int, ContractionMap], contractions: Sequence[Contraction]
) -> Iterator[None]:
    """Let blocks take the map of a contraction from ``maps``, by the contraction's identity."""
    shared = _OneCall(maps)
    _add(contractions, shared)
    try:
        yield
    finally:
        _remove(contractions, shared)


def _is_shared(contraction: Contraction) -> bool:
    return any(shared.is_open_here() for shared in contraction._shared)


# Two threads that open or close at once must not lose each other's entries.
_LOCK = threading.Lock()


def _alone() -> AbstractContextManager[object]:
    # A compiler cannot take a lock, and works in one thread.
    return nullcontext() if is_compiling() else _LOCK


def _thread() -> int:
    # A compiler cannot ask for the thread, and works in one.
    return 0 if is_compiling() else threading.get_ident()


def _add(contractions: Sequence[Contraction], shared: "_Shared") -> None:
    with _alone():
        for c in contractions:
            c._shared = (*c._shared, shared)


def _remove(contractions: Sequence[Contraction], shared: "_Shared") -> None:
    with _alone():
        for c in contractions:
            c._shared = tuple([s for s in c._shared if s is not shared])


@dataclass(eq=False, kw_only=True)
class _Shared(ABC):
    """Maps that calls share.

    Arguments:
        compiling: True if a compiler entered. A map from outside would enter its graph as a
            constant.
        thread: the thread that entered. Another thread would meet a graph that this one has freed.
    """

    compiling: bool = field(default_factory=is_compiling)
    thread: int = field(default_factory=_thread)

    def is_open_here(self) -> bool:
        """Return True if the present call may take the maps."""
        return self.compiling == is_compiling() and self.thread == _thread()

    @abstractmethod
    def map_of(self, contraction: Contraction) -> ContractionMap:
        """Return the map of a contraction."""


@dataclass(eq=False)
class _OneCall(_Shared):
    """Maps of one call, by the identity of the contraction; no parameter changes in the call."""

    maps: Mapping[int, ContractionMap]

    def map_of(self, contraction: Contraction) -> ContractionMap:
        return self.maps[id(contraction)]


@dataclass(eq=False)
class _ManyCalls(_Shared):
    """Maps of one ``with cached(...)``, by the mode of gradients; anew if a parameter changes."""

    contractions: list[Contraction]
    by_mode: dict[tuple[bool, bool], "_Computed"] = field(default_factory=dict)

    def is_open_here(self) -> bool:
        # A transform of torch.func may have put other parameters in place.
        if in_torch_func() or not super().is_open_here():
            return False
        # A call inside a backward pass, as in a reentrant checkpoint, frees its graph at once.
        return self.compiling or (saved_tensor_hooks(True) is None and not in_backward())

    def map_of(self, contraction: Contraction) -> ContractionMap:
        if not any(c is contraction for c in self.contractions):
            # A replica of nn.DataParallel takes over the entry of the original.
            return contraction.materialize()
        inference = not self.compiling and torch.is_inference_mode_enabled()
        mode = (torch.is_grad_enabled(), inference)
        # Maps with a graph serve without gradients too.
        for usable in {mode, (True, False)} if mode == (False, False) else {mode}:
            computed = self.by_mode.get(usable)
            if computed is not None and (self.compiling or computed.holds_for(contraction)):
                return computed.maps[id(contraction)]
        self.by_mode[mode] = _Computed.of(self.contractions, self.compiling)
        return self.by_mode[mode].maps[id(contraction)]


@dataclass(frozen=True, eq=False)
class _Computed:
    """Maps by the identity of the contraction, and fingerprints; none in a compiled graph."""

    maps: dict[int, ContractionMap]
    fingerprints: dict[int, Fingerprint | None]

    @classmethod
    def of(cls, contractions: list[Contraction], compiling: bool) -> "_Computed":
        maps = materialize_together(contractions)
        fingerprints = {} if compiling else {id(c): Fingerprint.of(c) for c in contractions}
        return cls({id(c): m for c, m in zip(contractions, maps, strict=True)}, fingerprints)

    def holds_for(self, contraction: Contraction) -> bool:
        fingerprint = self.fingerprints[id(contraction)]
        return fingerprint is not None and fingerprint.holds(contraction)
