"""A Pyro transform that remembers its last call, and only as long as that is still true.

Torch's own cache knows a call by the identity of its tensor, so it returns a stale ``y`` after a
step of the optimiser, and a ``y`` without gradients after a call under ``no_grad``.
"""

import weakref
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import TransformModule
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError
from ..snapshot import Snapshot
from ..torch_modes import in_torch_func, is_compiling

Evaluated = tuple[Tensor, Callable[[], Tensor]]


class Retraced(NamedTuple):
    """The way back from ``y``.

    Arguments:
        x: where it comes from.
        logdet: ``log|det dy/dx|`` there.
        push: what carries a gradient from ``x`` to ``y``.
    """

    x: Tensor
    logdet: Tensor
    push: Callable[[Tensor], Tensor]


class MemoTransform(TransformModule):
    """A bijective :class:`~pyro.distributions.TransformModule` with one remembered call.

    To write one, define ``domain``, :meth:`evaluate`, :meth:`evaluate_inverse` and
    :meth:`with_cache`. The pair of the last call is found by identity, as in torch, so
    ``log_abs_det_jacobian(x, y)`` after ``y = t(x)`` costs no second pass, nor does ``t.inv(y)`` an
    inversion; but not after a write to ``x``, ``y`` or a parameter, nor in another mode.

    Arguments:
        cache_size: 1 to remember the last call, 0 for none.
    """

    bijective = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if issubclass(cls, PyroModule):
            raise ArgumentTypeError(
                "Expected a torch module; PyroModule cannot be mixed into "
                f"{cls.__bases__[0].__name__}. Its weights are read several times in a call, and "
                "as random variables would be drawn anew each time. Leave it out of "
                "to_pyro_module_; a PyroModule may hold it as it is."
            )

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

    def logdet(self, x: Tensor, y: Tensor) -> Tensor:
        """``log|det dy/dx|`` of a pair that no call has left, shape ``(*batch,)``."""
        del y
        return self.evaluate(x)[1]()

    def pushing(self, x: Tensor, logdet: Callable[[], Tensor]) -> Callable[[Tensor], Tensor]:
        r"""What carries a gradient from ``x`` to ``y``, :math:`w \mapsto (dy/dx)^{-\top} w`.

        Arguments:
            x: where.
            logdet: what :meth:`evaluate` returned there.
        """
        raise NotImplementedError(f"{type(self).__name__} carries no gradients.")

    def retrace(self, y: Tensor) -> Retraced:
        """What the last call knows if it gave ``y``, looked up once; else from the inverse."""
        memo = self._recall(y=y)
        if memo is None:
            x = self._inv_call(y)
            logdet = self.evaluate(x)[1]
            return Retraced(x, logdet(), self.pushing(x, logdet))
        logdet = memo.logdet()
        memo.forget_after_backward(logdet)
        return Retraced(memo.x, logdet, self.pushing(memo.x, memo.logdet))

    def __call__(self, x: Tensor) -> Tensor:
        if (memo := self._recall(x=x)) is not None:
            return memo.y
        y, logdet = self.evaluate(x)
        self._remember(x, y, logdet, made=y)
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        if (memo := self._recall(y=y)) is not None:
            return memo.x
        x, logdet = self.evaluate_inverse(y)
        self._remember(x, y, logdet, made=x)
        return x

    def _call(self, x: Tensor) -> Tensor:
        return self.evaluate(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.evaluate_inverse(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """``log|det dy/dx|`` at ``x``, shape ``(*batch,)``."""
        if x.shape != y.shape:
            x, y = _of_one_shape(x, y, self.domain.event_dim)
        memo = self._recall(x=x, y=y)
        if memo is None:
            return self.logdet(x, y)
        # Computed for each call: a stochastic estimator draws afresh.
        logdet = memo.logdet()
        memo.forget_after_backward(logdet)
        return logdet

    def __getstate__(self) -> dict[str, Any]:
        # What a call leaves behind holds an autograd graph, which neither copies nor pickles.
        forget_the_store(self)
        return {**super().__getstate__(), "_memo": None}

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def _remember(
        self, x: Tensor, y: Tensor, logdet: Callable[[], Tensor], *, made: Tensor
    ) -> None:
        # A compiler sees that a second call repeats the first, and computes it once by itself.
        if self._cache_size and not is_compiling():
            self._memo = _Memo(x, y, _Surroundings.of(self, x, y), logdet)
            self._memo.forget_after_backward(made)

    def _recall(self, *, x: Tensor | None = None, y: Tensor | None = None) -> "_Memo | None":
        memo = None if is_compiling() else self._memo
        if memo is None or memo.spent or (x is not None and x is not memo.x):
            return None
        if y is not None and y is not memo.y:
            return None
        return memo if memo.rests_on.still_hold(self, memo.x, memo.y) else None


def forget_the_store(module: nn.Module) -> None:
    """Make a module's parameters such that they pickle after Pyro has trained them.

    The weak reference that Pyro hangs on each does not pickle; Pyro drops it where it saves, and
    sets it anew whenever it needs it.
    """
    for parameter in module.parameters():
        vars(parameter).pop("unconstrained", None)


def _of_one_shape(x: Tensor, y: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """Both with the batch of both: where a context widens the batch, one of a pair lacks it."""
    if x.shape[x.dim() - event_dim :] == y.shape[y.dim() - event_dim :]:
        with suppress(RuntimeError):
            return torch.broadcast_tensors(x, y)
    raise ArgumentError(
        f"Expected x and y of one shape; got {tuple(x.shape)} and {tuple(y.shape)}."
    )


@dataclass(frozen=True)
class _Surroundings:
    """What a call depends on beside the identity of its tensors.

    Arguments:
        modes: grad, inference and autocast modes, and whether a transform of torch.func is active;
            inside one, values cannot be compared, and every call has tensors of its own.
        snapshot: of the transform, ``x`` and ``y``.
    """

    modes: tuple[bool, ...]
    snapshot: Snapshot

    @classmethod
    def of(cls, module: nn.Module, x: Tensor, y: Tensor) -> "_Surroundings":
        return cls(_modes(x), Snapshot.of(module, x, y, by_value=not in_torch_func()))

    def still_hold(self, module: nn.Module, x: Tensor, y: Tensor) -> bool:
        return _modes(x) == self.modes and self.snapshot.holds(module, x, y)


def _modes(x: Tensor) -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(x.device.type),
        in_torch_func(),
    )


@dataclass(eq=False)
class _Memo:
    """One call: the pair ``x, y``, what it rests on, and what computes its log-determinant.

    Arguments:
        x, y, logdet: the pair, and what computes its log-determinant.
        rests_on: what the pair depends on.
        spent: whether a backward pass went through it, which frees its graph.
    """

    x: Tensor
    y: Tensor
    rests_on: _Surroundings
    logdet: Callable[[], Tensor]
    spent: bool = False

    def forget_after_backward(self, made: Tensor) -> None:
        """Be spent once a gradient reaches ``made``, a tensor of this call's own making."""
        if made.grad_fn is None or in_torch_func():
            return
        # Weakly, since the tensor would hold the memo that holds the tensor.
        memo = weakref.ref(self)

        def spend(grad: Tensor) -> None:
            if (alive := memo()) is not None:
                alive.spent = True

        made.register_hook(spend)
