"""Acting weights computed once for many calls: :class:`cached`."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import torch
from torch import Tensor

from .anatomy import contractions_of
from .contractive import Contraction, acting_together
from .linearization import Acting, Linearization
from .snapshot import Snapshot
from .torch_modes import in_torch_func, is_compiling


@contextmanager
def observed(
    flow: object, seen: Callable[[Contraction, Tensor, Tensor | None], None]
) -> Iterator[None]:
    """Inside, every call of a contraction in ``flow`` tells ``seen`` its x and its context."""

    def watch(contraction: Contraction, acting: Acting) -> Acting:
        return _Observed(acting, partial(seen, contraction))

    with cached(flow, _wrap=watch):
        yield


class cached:  # noqa: N801  (a context manager, named as torch names them)
    """Inside ``with cached(flow):`` the weights of a flow are normalised once for all calls.

    Without it every call normalises them anew, which is part of the cost of a training step, and
    a good part of the cost of many small calls (sampling, HMC). Layers of one shape are taken
    together over the whole stack, so even a single call gains. The numbers do not change, but for
    rounding, and gradients flow as they do without it: all losses formed inside share one graph,
    so call ``backward`` once, on their sum.

    A parameter that changes inside is noticed by its value, and the weights are computed anew.

    Arguments:
        flow: a block, a stack, a flow or a guide of either framework; see
            :func:`~pyro_iresnet.anatomy.modules_of`.

    Raises:
        ArgumentTypeError: ``flow`` is nothing that can hold a block.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_iresnet import cached, iresnet_stack
        >>> stack = iresnet_stack(2)
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> flow = dist.TransformedDistribution(base, [stack.inv])
        >>> with cached(flow):
        ...     loss = -flow.log_prob(torch.randn(100, 2)).mean()
        >>> loss.backward()
    """

    def __init__(
        self,
        flow: object,
        *,
        _wrap: Callable[[Contraction, Acting], Acting] = lambda _, acting: acting,
    ) -> None:
        self._contractions = contractions_of(flow)
        self._wrap = _wrap
        # One entry for each time it is open.
        self._open: list[_Shared] = []

    def __enter__(self) -> None:
        shared = _Shared(self._contractions, self._wrap)
        self._open.append(shared)
        with _alone():
            for c in self._contractions:
                c._shared_acting = (*c._shared_acting, shared)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        closed = self._open.pop()
        with _alone():
            for c in self._contractions:
                c._shared_acting = tuple(s for s in c._shared_acting if s is not closed)


def acting_of(contraction: Contraction) -> Acting:
    """``contraction.acting()``, or what :class:`cached` has of it."""
    shared = _shared_by(contraction)
    return (
        contraction.acting() if shared is None else shared.of(contraction).acting[id(contraction)]
    )


def _shared_by(contraction: Contraction) -> "_Shared | None":
    if not contraction._shared_acting or in_torch_func():
        return None
    for shared in reversed(contraction._shared_acting):
        if isinstance(shared, _Shared) and shared.is_open_here():
            return shared
    return None


# Two threads that open or close at once must not lose what the other has written.
_LOCK = threading.Lock()


def _alone() -> AbstractContextManager[object]:
    # A compiler cannot take a lock; it works in one thread.
    return nullcontext() if is_compiling() else _LOCK


def _thread() -> int:
    # A compiler cannot ask; it works in one thread.
    return 0 if is_compiling() else threading.get_ident()


@dataclass(eq=False)
class _Shared:
    """What one ``with cached(...)`` shares.

    Arguments:
        contractions: all whose weights are computed together.
        wrap: what is made of the acting function of each.
        by_mode: what was computed with gradients, and without.
        compiling: whether the block was entered by what is being compiled: a cache from outside
            would enter the graph as a constant.
        thread: the thread that entered it; another would meet a graph that this one has freed.
    """

    contractions: list[Contraction]
    wrap: Callable[[Contraction, Acting], Acting]
    by_mode: dict[tuple[bool, bool], "_Computed"] = field(default_factory=dict)
    compiling: bool = field(default_factory=is_compiling)
    thread: int = field(default_factory=_thread)

    def is_open_here(self) -> bool:
        """Whether the present call is inside the block."""
        return self.compiling == is_compiling() and self.thread == _thread()

    def of(self, contraction: Contraction) -> "_Computed":
        """What there is of this contraction, or is now made of all."""
        inference = not self.compiling and torch.is_inference_mode_enabled()
        mode = (torch.is_grad_enabled(), inference)
        # What carries a graph serves without one too.
        for usable in {mode, (True, False)} if mode == (False, False) else {mode}:
            computed = self.by_mode.get(usable)
            if computed is not None and (self.compiling or computed.holds_for(contraction)):
                return computed
        self.by_mode[mode] = _Computed.of(self.contractions, self.wrap, self.compiling)
        return self.by_mode[mode]


@dataclass(frozen=True, eq=False)
class _Computed:
    """Acting weights, and what they rest on.

    Arguments:
        acting: of each contraction, by its identity, as the others.
        snapshots: of the contraction; none in a compiled graph, in which nothing changes.
    """

    acting: dict[int, Acting]
    snapshots: dict[int, Snapshot]

    @classmethod
    def of(
        cls,
        contractions: list[Contraction],
        wrap: Callable[[Contraction, Acting], Acting],
        compiling: bool,
    ) -> "_Computed":
        together = acting_together(contractions)
        acting = {id(c): wrap(c, a) for c, a in zip(contractions, together, strict=True)}
        return cls(acting, {} if compiling else {id(c): Snapshot.of(c) for c in contractions})

    def holds_for(self, contraction: Contraction) -> bool:
        return self.snapshots[id(contraction)].holds(contraction)


@dataclass(frozen=True)
class _Observed(Acting):
    """An acting function that tells where it is called."""

    acting: Acting
    seen: Callable[[Tensor, Tensor | None], None]

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.seen(x, context)
        return self.acting(x, context)

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        self.seen(x, context)
        return self.acting.linearize(x, context)

    @property
    def closed_form(self) -> bool:
        return self.acting.closed_form

    def lipschitz_bound(self) -> Tensor:
        return self.acting.lipschitz_bound()

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.acting.rounding(x, context)
