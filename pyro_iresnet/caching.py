"""Acting weights computed once for many calls: :class:`cached`."""

from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor

from .anatomy import contractions_of
from .contractive import Contraction, acting_together
from .linearization import Linearizable
from .torch_modes import in_torch_func, is_compiling


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

    def __init__(self, flow: object) -> None:
        self._contractions = contractions_of(flow)
        # One entry for each time it is open.
        self._before: list[list[object]] = []

    def __enter__(self) -> None:
        shared = _Shared(self._contractions)
        self._before.append([c.shared_acting for c in self._contractions])
        for c in self._contractions:
            c.shared_acting = shared

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for c, before in zip(self._contractions, self._before.pop(), strict=True):
            c.shared_acting = before


def acting_of(contraction: Contraction) -> Linearizable:
    """``contraction.acting()``, or what :class:`cached` has of it."""
    shared = _shared_by(contraction)
    return (
        contraction.acting() if shared is None else shared.of(contraction).acting[id(contraction)]
    )


def bound_of(contraction: Contraction) -> Tensor:
    """``contraction.lipschitz_bound()``, or what :class:`cached` has of it."""
    shared = _shared_by(contraction)
    if shared is None:
        return contraction.lipschitz_bound()
    bounds = shared.of(contraction).bounds
    if id(contraction) not in bounds:
        bounds[id(contraction)] = contraction.lipschitz_bound()
    return bounds[id(contraction)]


def _shared_by(contraction: Contraction) -> "_Shared | None":
    shared = contraction.shared_acting
    if not isinstance(shared, _Shared) or shared.compiling != is_compiling() or in_torch_func():
        return None
    return shared


@dataclass
class _Shared:
    """What one ``with cached(...)`` shares.

    Arguments:
        contractions: all whose weights are computed together.
        by_mode: what was computed with gradients, and without.
        compiling: whether the block was entered by what is being compiled: a cache from outside
            would enter the graph as a constant.
    """

    contractions: list[Contraction]
    by_mode: dict[bool, "_Computed"] = field(default_factory=dict)
    compiling: bool = field(default_factory=is_compiling)

    def of(self, contraction: Contraction) -> "_Computed":
        """What there is of this contraction, or is now made of all."""
        grad = torch.is_grad_enabled()
        for mode in (True,) if grad else (True, False):
            computed = self.by_mode.get(mode)
            if computed is not None and (self.compiling or computed.holds_for(contraction)):
                return computed
        self.by_mode[grad] = _Computed.of(self.contractions, self.compiling)
        return self.by_mode[grad]


@dataclass(frozen=True)
class _Computed:
    """Acting weights, and the tensors they came from with copies of their values.

    By value, since optimisers write through ``.data``, which leaves no other trace.

    Arguments:
        acting: of each contraction, by its identity, as the others.
        tensors, values: its parameters and buffers, and what they were.
        bounds: its proven Lipschitz bound, once asked for.
    """

    acting: dict[int, Linearizable]
    tensors: dict[int, list[Tensor]]
    values: dict[int, list[Tensor]]
    bounds: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, contractions: list[Contraction], compiling: bool) -> "_Computed":
        together = acting_together(contractions)
        acting = {id(c): a for c, a in zip(contractions, together, strict=True)}
        if compiling:
            return cls(acting, {}, {})
        tensors = {id(c): _tensors(c) for c in contractions}
        values = {key: [t.detach().clone() for t in ts] for key, ts in tensors.items()}
        return cls(acting, tensors, values)

    def holds_for(self, contraction: Contraction) -> bool:
        tensors, before = _tensors(contraction), self.tensors[id(contraction)]
        return len(tensors) == len(before) and all(
            t is b and t.dtype == v.dtype and t.device == v.device and torch.equal(t, v)
            for t, b, v in zip(tensors, before, self.values[id(contraction)], strict=True)
        )


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
