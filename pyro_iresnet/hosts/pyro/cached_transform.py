"""Base class of the Pyro transforms here: one remembered evaluation, used only while it holds.

Torch's own cache knows a call by the identity of its tensor. It returns a stale ``y`` after a step
of the optimiser, and a ``y`` without gradients after a call under ``no_grad``.
"""

import weakref
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from pyro.nn import PyroModule
from pyro.ops.provenance import ProvenanceTensor
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from ..._fingerprint import Fingerprint, Values
from ..._torch import (
    InverseTransform,
    autocasts,
    in_torch_func,
    is_compiling,
    saved_tensor_hooks,
    tracing_state,
)
from ...blocks import Evaluation
from ...contractions.hooks import HOOKS, refuse_hooks
from ...errors import ArgumentError, ArgumentTypeError, check_cache_size, check_dense
from .mcmc import refuse_in_mcmc
from .provenance import evaluate_tracked

# Why a transform takes no hooks.
NO_CALL = "a transform of torch is called without the hooks of a module"


class CachedTransform:
    """A bijective Pyro transform with one remembered evaluation, before a host's transform class.

    To write one, define ``domain``, :meth:`check`, :meth:`evaluate` and :meth:`evaluate_inverse`.
    The last call is found by the identity of its tensors, as in torch:
    ``log_abs_det_jacobian(x, y)`` after ``y = t(x)`` costs no second pass, and ``t.inv(y)`` no
    inversion. A write to ``x``, ``y`` or a parameter, and another mode, end the memory. With
    gradients a second ``t(x)`` and a second log-determinant are computed anew, so that two losses
    of one ``x`` have a graph each. There is no memory under hooks on saved tensors
    (``torch.utils.checkpoint``), nor for a network that holds objects which cannot be compared. A
    stack evaluates its parts by :meth:`evaluate`, and so only the outermost transform remembers.
    """

    bijective = True
    # True if `check` may widen the batch of a tensor, to the batch of a context.
    widens = False
    _memory: "_Memory | None" = None
    _cache_size: int
    _inv: Any

    def __init__(self, *arguments: Any, cache_size: int = 1) -> None:
        super().__init__(*arguments, cache_size=check_cache_size(cache_size))  # pyright: ignore[reportCallIssue]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if issubclass(cls, PyroModule):
            raise ArgumentTypeError(
                "Expected a torch module; PyroModule cannot be mixed into "
                f"{cls.__bases__[0].__name__}. Its weights are read several times in a call, and "
                "as random variables would be drawn anew each time. Leave it out of "
                "to_pyro_module_; a PyroModule may hold it as it is."
            )

    @property
    def sign(self) -> int:
        return 1

    @abstractmethod
    def check(self, x: Tensor, name: str) -> Tensor:
        """Return ``x``, or raise; ``name`` is ``"x"``, or ``"y"`` on the way back."""

    @abstractmethod
    def evaluate(self, x: Tensor) -> Evaluation:
        """Evaluate the transform at ``x``, without the memory."""

    @abstractmethod
    def evaluate_inverse(self, y: Tensor) -> Evaluation:
        """Evaluate the transform at the ``x`` of ``y``, without the memory."""

    def evaluate_pair(self, x: Tensor, y: Tensor) -> Evaluation:
        """Evaluate the transform at a pair that no call has left."""
        return self.evaluate(x)

    def evaluation(self, x: Tensor | None = None, y: Tensor | None = None) -> Evaluation:
        """Return the evaluation at ``x``, at ``y`` or at a pair: the last one, or a new one."""
        if any(map(vars(self).get, HOOKS)):
            refuse_hooks(self, "transform", NO_CALL)  # pyright: ignore[reportArgumentType]
        if isinstance(x, ProvenanceTensor) or isinstance(y, ProvenanceTensor):
            return evaluate_tracked(self.evaluation, x, y)
        # A compiler and hooks on saved tensors need the operations of a call themselves.
        recorded = is_compiling() or saved_tensor_hooks(True)
        memory = None if recorded else self._memory
        if memory is not None and memory.is_of(self, x, y):
            return memory.evaluation
        if y is None:
            x = self.check(x, "x")  # pyright: ignore[reportArgumentType]  (None raises)
            evaluation = self.evaluate(x)
            return self._remember(evaluation, evaluation.y)
        y = self.check(y, "y")
        if x is None:
            evaluation = self.evaluate_inverse(y)
            return self._remember(evaluation, evaluation.x)
        x = self.check(x, "x")
        if x.shape != y.shape:
            ends: Any = self
            x, y = _of_one_batch(x, y, ends.domain.event_dim, ends.codomain.event_dim)
        evaluation = self.evaluate_pair(x, y)
        return refuse_in_mcmc(evaluation) if evaluation.drawn_by else evaluation

    def with_cache(self, cache_size: int = 1) -> Self:
        """Return the transform, parameters shared, with another cache."""
        if check_cache_size(cache_size) == self._cache_size:
            return self
        other = type(self).__new__(type(self))
        # A stack that is given other parts clears its table of modules in place.
        own = {"_cache_size": cache_size, "_memory": None, "_inv": None}
        vars(other).update(vars(self), **own, _modules=dict(vars(self)["_modules"]))
        return other

    def _call(self, x: Tensor) -> Tensor:
        return self.evaluation(x=x).y

    def _inverse(self, y: Tensor) -> Tensor:
        return self.evaluation(y=y).x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log|det dy/dx|`` at a pair, with the batch of ``x`` and of a context."""
        if x is None or y is None:
            # None is no wish for an evaluation at the other end.
            check_dense(x, "x")
            check_dense(y, "y")
        return self.evaluation(x, y).log_det()

    def __call__(self, x: Tensor) -> Tensor:
        return self._call(x)

    @property
    def inv(self) -> Transform:
        """The inverse transform, the same object as long as somebody holds it."""
        if is_compiling():
            # A compiler follows no weak reference.
            return InverseTransform(self)  # pyright: ignore[reportArgumentType]
        reference: Any = self._inv
        inverse = None if reference is None else reference()
        # A replica of nn.DataParallel takes over the inverse of the original.
        if inverse is None or inverse._inv is not self:
            inverse = InverseTransform(self)  # pyright: ignore[reportArgumentType]
            vars(self)["_inv"] = weakref.ref(inverse)
        return inverse

    def _inv_call(self, y: Tensor) -> Tensor:
        return self._inverse(self.check(y, "y") if y is None else y)

    @property
    def remembers(self) -> bool:
        """True if the transform keeps its last evaluation."""
        return self._cache_size > 0

    def __getstate__(self) -> dict[str, Any]:
        # A remembered evaluation holds an autograd graph, and a graph neither copies nor pickles.
        forget_the_store(self)  # pyright: ignore[reportArgumentType]
        return {**super().__getstate__(), "_memory": None}  # pyright: ignore[reportGeneralTypeIssues]

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)  # pyright: ignore[reportArgumentType]

    def _remember(self, evaluation: Evaluation, made: Tensor) -> Evaluation:
        """Keep an evaluation until a gradient has passed ``made``, a tensor of its own making."""
        if evaluation.drawn_by:
            evaluation = refuse_in_mcmc(evaluation)
        # A compiler sees that a second call repeats the first, and computes it once by itself.
        if is_compiling() or saved_tensor_hooks(True) or not self.remembers:
            return evaluation
        # A context with a provenance: the tensors of the next call are others.
        if isinstance(made, ProvenanceTensor):
            return evaluation
        by_value = not in_torch_func() and not evaluation.x.is_meta
        last = self._memory and self._memory.fingerprint
        # An attribute more would look like a change.
        vars(self).setdefault("_memory", None)
        fingerprint = Fingerprint.of(self, by_value=by_value, last=last)  # pyright: ignore[reportArgumentType]
        pair = Values.of((evaluation.x, evaluation.y), by_value=by_value)
        if fingerprint is None or pair is None:
            return evaluation
        memory = _Memory(evaluation, made, _modes(evaluation.x), fingerprint, pair)
        memory.end_after(made)
        memory.watch_log_det()
        self._memory = memory
        return memory.evaluation


def forget_the_store(module: nn.Module) -> None:
    """Drop the references of Pyro's store, set anew when needed, which do not pickle."""
    for parameter in module.parameters():
        vars(parameter).pop("unconstrained", None)


def _of_one_batch(
    x: Tensor, y: Tensor, x_event_dim: int, y_event_dim: int
) -> tuple[Tensor, Tensor]:
    """Return both with the batch of both: a context may have widened the batch of one."""
    cuts = x.dim() - x_event_dim, y.dim() - y_event_dim
    try:
        batch = torch.broadcast_shapes(x.shape[: cuts[0]], y.shape[: cuts[1]])
    except RuntimeError as error:
        raise ArgumentError(
            f"Expected x and y of one batch; got shapes {tuple(x.shape)} and {tuple(y.shape)}."
        ) from error
    return x.expand(*batch, *x.shape[cuts[0] :]), y.expand(*batch, *y.shape[cuts[1] :])


def _modes(x: Tensor) -> tuple[object, ...]:
    """Return the modes that an evaluation depends on.

    Inside a transform of torch.func values cannot be compared, and every call has its own tensors.
    A trace needs the operations of its calls, and so takes no call from before.
    """
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        autocasts(x),
        in_torch_func(),
        tracing_state(),
    )


@dataclass(eq=False)
class _Memory:
    """An evaluation, its modes and the fingerprint of the transform.

    Arguments:
        made: the tensor of ``evaluation`` that the call made, its x or its y.
        pair: the x and y of the evaluation.
        spent: True once a backward pass has freed the graph.
        log_det_taken: True once a log-determinant with a graph has been taken.
    """

    evaluation: Evaluation
    made: Tensor
    modes: tuple[object, ...]
    fingerprint: Fingerprint
    pair: Values
    spent: bool = False
    log_det_taken: bool = False

    def is_of(self, transform: Any, x: Tensor | None, y: Tensor | None) -> bool:
        """Return True if the evaluation is that of ``x``, of ``y`` or of the pair, and holds."""
        pair = self.pair.tensors
        if self.spent or (x is None and y is None):
            return False
        if (x is not None and x is not pair[0]) or (y is not None and y is not pair[1]):
            return False
        # A graph serves one call and one log-determinant: a second loss needs a graph of its own.
        if x is not None and y is not None:
            repeats = self.log_det_taken
        else:
            wanted = pair[1] if y is None else pair[0]
            repeats = wanted is self.made and wanted.grad_fn is not None
        if repeats:
            return False
        if _modes(pair[0]) != self.modes:
            return False
        return self.pair.hold() and self.fingerprint.holds(transform)

    def end_after(self, made: Tensor) -> None:
        """End the memory once a gradient reaches ``made``, a tensor of this call's own making."""
        if made.grad_fn is None or in_torch_func():
            return
        # A weak reference, since the tensor would hold the memory that holds the tensor.
        memory = weakref.ref(self)

        def spend(grad: Tensor) -> None:
            if (alive := memory()) is not None:
                alive.spent = True

        made.register_hook(spend)

    def watch_log_det(self) -> None:
        """End the memory also after a gradient has passed a log-determinant of the evaluation."""
        compute, memory = self.evaluation.log_det, weakref.ref(self)

        def log_det() -> Tensor:
            value = compute()
            if (alive := memory()) is not None:
                alive.end_after(value)
                alive.log_det_taken = value.grad_fn is not None
            return value

        self.evaluation = replace(self.evaluation, log_det=log_det)
