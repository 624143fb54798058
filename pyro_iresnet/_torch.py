"""Modes of torch in which a call runs, refusals, and what is private in torch.

docs/installation.md lists the releases of torch that these names were run with.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from inspect import signature
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed
from torch._C import _autograd  # pyright: ignore[reportAttributeAccessIssue]
from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import Function, forward_ad
from torch.distributions.transforms import _InverseTransform
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import _SpectralNorm

from .errors import ArgumentTypeError, HigherOrderError, TracingError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# One for all calls, since most calls need no other.
NULL = nullcontext()

# Dtypes too coarse to resolve a norm, and unknown to the factorisations of torch.
COARSE = (torch.float16, torch.bfloat16)

# Names of torch under the words of this package. An alias costs no call.
is_tracing = torch.jit.is_tracing  # pyright: ignore[reportPrivateImportUsage]
# What torch.jit.trace records now: the same object throughout one trace, or None.
tracing_state = torch._C._get_tracing_state
is_compiling = torch.compiler.is_compiling
# The class of ``transform.inv``.
InverseTransform = _InverseTransform
# The base classes of batch norms, of norms that may track statistics, and of dropouts.
BatchNorm, TrackingNorm, AnyDropout = _BatchNorm, _NormBase, _DropoutNd
# The parametrization of a weight that torch.nn.utils.parametrizations.spectral_norm adds.
SpectralParametrization = _SpectralNorm
# True inside vmap, grad, jvp and the other transforms of torch.func.
in_torch_func = torch._C._are_functorch_transforms_active
# Called with True: the hooks on the tensors that autograd saves, as in torch.utils.checkpoint, or
# None. A call under hooks may be run again in the backward pass, and has to save the same again.
saved_tensor_hooks = _autograd._top_saved_tensors_default_hooks
# True if autocast acts on any device.
any_autocast = torch._C._is_any_autocast_enabled


def in_backward() -> bool:
    """Return True inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


def in_forward_mode() -> bool:
    """Return True if forward-mode differentiation is active."""
    return forward_ad._current_level >= 0


def in_plain_autograd() -> bool:
    """Return True if reverse mode alone looks at a call: no recorder, no transform of torch.func.

    A fused rule pays and is safe only then: a compiler fuses by itself, the others have to see the
    operations.
    """
    if is_compiling() or is_tracing() or in_torch_func():
        return False
    return forward_ad._current_level < 0


def random_state() -> list[bytes]:
    """Return the states of the random generators of torch, to tell if something was drawn."""
    states = [torch.random.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return [state.numpy().tobytes() for state in states]


def needs_plain_operations(grads: Iterable[Tensor | None]) -> bool:
    """Return True if a hand-written backward pass has to leave its shortcuts.

    A second derivative has to see the operations, and a batched gradient knows no write in place.
    """
    if torch.is_grad_enabled() or in_torch_func():
        return True
    return any(g is not None and functorch.is_legacy_batchedtensor(g) for g in grads)


def goes_on(ctx: Any, first: int) -> bool:
    """Return True if the running backward pass wants a gradient of an input, from ``first`` on.

    ``torch.autograd.grad`` may ask for the gradients of some inputs only. The inputs that count are
    tensors, and no leaf is among them.
    """
    nodes = [node for node, _ in ctx.next_functions[first:] if node is not None]
    return any(map(torch._C._will_engine_execute_node, nodes))


def gradients_with_graph(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Return the gradients of a function in its inputs, by the operations of the function.

    Arguments:
        function: takes the inputs, and returns a tensor for each of ``grads``.
        inputs: the tensors that a hand-written rule has saved.
        grads: the gradients of the results, None for 0.
    """
    if all(g is None for g in grads):
        return [None] * len(inputs)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # An input may lie in the history of another input, an alias does not.
        aliases = [t.view_as(t) for t in inputs]
        pairs = zip(function(*aliases), grads, strict=True)
        # A result may depend on none of the inputs that need a gradient.
        pairs = [(t, g) for t, g in pairs if g is not None and t.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        results, weights = zip(*pairs, strict=True)
        wanted = [t for t in aliases if t.requires_grad]
        found = torch.autograd.grad(
            results, wanted, weights, create_graph=create_graph, allow_unused=True
        )
    remaining = iter(found)
    return [next(remaining) if t.requires_grad else None for t in aliases]


def disable_compiler(reason: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that keeps ``torch.compile`` out of a function, and gives the reason.

    ``torch.compiler.disable`` does the same, but imports the compiler, which takes longer than the
    import of this package.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        disabled: list[Any] = []

        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            if not disabled:
                disable: Any = torch.compiler.disable
                # Torch before 2.7 takes no reason.
                told = {"reason": reason} if "reason" in signature(disable).parameters else {}
                disabled.append(disable(function, **told))
            return disabled[0](*args, **kwargs)

        # The mark at which the compiler ends a graph.
        vars(guarded).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)
        return guarded

    return decorate


def gather_ranks(value: Tensor) -> Tensor:
    """Return the values of all ranks that train together, shape ``(ranks, *shape)``.

    The ranks are those of the ``DistributedDataParallel`` that runs. Elsewhere a process is alone.
    """
    wrapper = DistributedDataParallel._active_ddp_module
    if wrapper is None:
        return value[None]
    group = wrapper.process_group
    ranks = distributed.get_world_size(group)
    if ranks == 1:
        return value[None]
    values = [torch.empty_like(value) for _ in range(ranks)]
    distributed.all_gather(values, value, group=group)
    return torch.stack(values)


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast, since no bound would hold for rounded weights."""
    kind = like.device.type
    # The device meta has no autocast.
    if like.is_meta or not torch.is_autocast_enabled(kind):
        return NULL
    return torch.autocast(kind, enabled=False)


def precisely(backward: Callable[P, R]) -> Callable[P, R]:
    """Return a backward pass that runs without autocast, for a caller who calls it inside."""

    @wraps(backward)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        grads = [a for a in arguments if isinstance(a, Tensor)]
        with full_precision(grads[0]) if grads else NULL:
            return backward(*arguments, **options)

    return run


def autocasts(like: Tensor) -> bool:
    """Return True if autocast acts on the device of a tensor."""
    return not like.is_meta and torch.is_autocast_enabled(like.device.type)


def unrounded(value: T, like: Tensor | None) -> T:
    """Return a tensor that autocast has rounded in the dtype of ``like``, and all else as it is."""
    # Most calls end at the dtype, without a call more into torch.
    if getattr(value, "dtype", None) not in COARSE or like is None:
        return value
    tensor: Any = value
    return tensor.to(like.dtype) if autocasts(tensor) else value


def has_values(tensor: Tensor) -> bool:
    """Return True if the values of a tensor can be read: no recorder or transform is at work."""
    if tensor.is_meta or is_compiling() or is_tracing() or in_torch_func():
        return False
    return not functorch.is_legacy_batchedtensor(tensor)


def undifferentiable(value: Tensor, message: str, *of: Tensor) -> Tensor:
    """Return ``value``, a function of ``of``; a derivative raises ``HigherOrderError``."""
    return _Undifferentiable.apply(value, message, *of)


class _Undifferentiable(Function):
    """The identity of the first argument; the last arguments only join the graph."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, message: str, *of: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> NoReturn:
        raise HigherOrderError(ctx.message)


def refuse_forward_mode(what: str, tensor: Tensor, otherwise: str = "") -> None:
    """Raise under forward mode, which would go through a random draw or the steps of a solver."""
    if is_compiling() or not in_forward_mode():
        return
    # A tangent below another transform of torch.func cannot be seen.
    if in_torch_func() or forward_ad.unpack_dual(tensor).tangent is not None:
        raise no_forward_mode(what, otherwise)


def no_forward_mode(what: str, otherwise: str = "") -> HigherOrderError:
    """Make the error of an operation that has derivatives in reverse mode alone."""
    return HigherOrderError(
        f"{what} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian). Use reverse "
        f"mode (grad, jacrev, vjp){otherwise}."
    )


def refuse_transforms(what: str, tensor: Tensor, otherwise: str = "") -> None:
    """Raise under ``torch.jit.trace``, ``torch.func.vmap`` and on meta; a compiler refuses itself.

    A trace would record one run as if every run were the same. ``vmap`` knows no loop whose length
    depends on the data, and a tensor on meta has no data. ``otherwise`` ends the advice.
    """
    if is_compiling():
        return
    if tensor.is_meta:
        raise ArgumentTypeError(
            f"{what} needs the values of its tensors; got a tensor on the device meta, which has a "
            "shape and no values. Move flow and tensors to another device: "
            f"flow.to_empty(device='cpu'), and load the parameters{otherwise}."
        )
    if is_tracing():
        raise TracingError(
            f"{what} cannot be traced by torch.jit: its random draws or its number of steps would "
            f"be frozen at those of the example. Keep it out of the trace{otherwise}."
        )
    if functorch.is_legacy_batchedtensor(tensor):
        raise TracingError(
            f"{what} cannot run under is_grads_batched or vectorize: its steps depend on the data. "
            "Take one vector at a time."
        )
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            raise TracingError(
                f"{what} cannot run under torch.func.vmap, nor under what is made of it (jacrev, "
                "hessian) where that runs it again: its steps depend on the data. It takes a batch "
                f"as it is: call it without vmap{otherwise}."
            )
        tensor = functorch.get_unwrapped(tensor)
