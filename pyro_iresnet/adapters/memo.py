"""A Pyro transform that remembers its last call, and only as long as that is still true.

Torch's own cache knows a call by the identity of its tensor, so it returns a stale ``y`` after a
step of the optimiser, and a ``y`` without gradients after a call under ``no_grad``.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TransformModule
from torch import Tensor, nn

Evaluated = tuple[Tensor, Callable[[], Tensor]]


@dataclass
class _Memo:
    """One call: the pair ``x, y``, what it rests on, and its log-determinant, once asked for."""

    x: Tensor
    y: Tensor
    rests_on: tuple[Any, ...]
    logdet: Tensor | Callable[[], Tensor]


class MemoTransform(TransformModule):
    """A bijective :class:`~pyro.distributions.TransformModule` with one remembered call.

    To write one, define ``domain``, :meth:`evaluate`, :meth:`evaluate_inverse` and
    :meth:`with_cache`. The pair of the last call is found by identity, as in torch, so
    ``log_abs_det_jacobian(x, y)`` after ``y = t(x)`` costs no second pass, nor does ``t.inv(y)`` an
    inversion; but not after a write to ``x``, ``y`` or a parameter, nor in another grad mode.

    Arguments:
        cache_size: 1 to remember the last call, 0 for none.
    """

    bijective = True

    def __init__(self, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self._memo: _Memo | None = None

    @property
    def sign(self) -> int:
        return 1

    @abstractmethod
    def evaluate(self, x: Tensor) -> Evaluated:
        """``y``, and a function that computes ``log|det dy/dx|`` there."""

    @abstractmethod
    def evaluate_inverse(self, y: Tensor) -> Evaluated:
        """``x``, and a function that computes ``log|det dy/dx|`` there."""

    def __call__(self, x: Tensor) -> Tensor:
        if (memo := self._recall(x=x)) is not None:
            return memo.y
        y, logdet = self.evaluate(x)
        self._remember(x, y, logdet)
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        if (memo := self._recall(y=y)) is not None:
            return memo.x
        x, logdet = self.evaluate_inverse(y)
        self._remember(x, y, logdet)
        return x

    def _call(self, x: Tensor) -> Tensor:
        return self.evaluate(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.evaluate_inverse(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log|det dy/dx|`` at ``x``, shape ``(*batch,)``."""
        memo = self._recall(x=x, y=y)
        if memo is None:
            memo = self._remember(x, y, self.evaluate(x)[1])
        if not isinstance(memo.logdet, Tensor):
            memo.logdet = memo.logdet()
        return memo.logdet

    def __getstate__(self) -> dict[str, Any]:
        # What a call leaves behind holds an autograd graph, which neither copies nor pickles. The
        # weak reference that Pyro hangs on each parameter does not pickle either; Pyro drops it
        # where it saves, and sets it anew whenever it needs it.
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return {**super().__getstate__(), "_memo": None}

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def _remember(self, x: Tensor, y: Tensor, logdet: Callable[[], Tensor]) -> _Memo:
        memo = _Memo(x, y, _rests_on(self, x, y) if self._cache_size else (), logdet)
        if self._cache_size:
            self._memo = memo
        return memo

    def _recall(self, *, x: Tensor | None = None, y: Tensor | None = None) -> _Memo | None:
        memo = self._memo
        if (
            memo is None
            or (x is not None and x is not memo.x)
            or (y is not None and y is not memo.y)
        ):
            return None
        return memo if memo.rests_on == _rests_on(self, memo.x, memo.y) else None


def _rests_on(module: nn.Module, x: Tensor, y: Tensor) -> tuple[Any, ...]:
    """What a call depends on beside the identity of its tensors.

    The same twice means: no write to a parameter, a buffer, ``x`` or ``y`` in between, and the same
    train modes, grad mode and needs for gradients.
    """
    state: list[Any] = [torch.is_grad_enabled()]
    tensors = [x, y]
    modules = [module]
    while modules:
        m = modules.pop()
        state.append(m.training)
        tensors += [t for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        modules += [child for child in m._modules.values() if child is not None]
    for t in tensors:
        state += (id(t), t.requires_grad, 0 if t.is_inference() else t._version)
    return tuple(state)
