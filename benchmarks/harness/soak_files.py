"""Corrupt files of flows: what loading says, and what a flow that loads says afterwards."""

import copy
import io
import multiprocessing
import random
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_iresnet import iresnet_flow, iresnet_stack
from pyro_iresnet._modules import modules_of
from pyro_iresnet.blocks import Block

from .certified import check_inverse, promised, together

WIDTHS, POINTS = [16], 32
# Agreement of log|det| with the Jacobian in float64, nats for each coordinate.
NATS = 1e-2
# What a corrupt pickle may ask for.
MEMORY, SECONDS = 16 << 30, 120

# What became of a file.
REFUSED, RAISED, SHOWN = "refused by the load", "an error in use", "NaN or infinity in use"
SAME, OTHER, SILENT = "the same flow", "another flow", "a wrong number, silent"
DIED = "the process died"
FATES = (REFUSED, RAISED, SHOWN, SAME, OTHER, SILENT, DIED)


def _state(change: Callable[[dict[str, Tensor], random.Random], None]) -> Callable[..., bytes]:
    """Corrupt the tensors of a state, and save the result as a sound file."""

    def corrupt(module: nn.Module, draw: random.Random, *, pickled: bool) -> bytes:
        if not pickled:
            state = {k: v.clone() for k, v in module.state_dict().items()}
            change(state, draw)
            return _saved(state)
        module = copy.deepcopy(module)
        # A pickled module has no list of keys to compare with: its tensors are replaced in place.
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        state = {k: v.detach().clone() for k, v in own.items()}
        change(state, draw)
        for name, tensor in own.items():
            _replace(module, tensor, state.get(name))
        return _saved(module)

    return corrupt


def _replace(module: nn.Module, old: Tensor, new: Tensor | None) -> None:
    """Put a tensor in the place of another one, wherever a module holds it; None to remove it."""
    if new is not None and isinstance(old, nn.Parameter):
        new = nn.Parameter(new, new.is_floating_point())
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for key in [k for k, tensor in table.items() if tensor is old]:
                table.pop(key)
                if new is not None:
                    table[key] = cast(nn.Parameter, new)


def _saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _file(change: Callable[[bytearray, random.Random], bytes]) -> Callable[..., bytes]:
    """Corrupt the bytes of a sound file."""

    def corrupt(module: nn.Module, draw: random.Random, *, pickled: bool) -> bytes:
        whole = _saved(module if pickled else module.state_dict())
        return bytes(change(bytearray(whole), draw))

    return corrupt


def _flip(data: bytearray, draw: random.Random, count: int) -> bytes:
    for _ in range(count):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def _key(state: dict[str, Tensor], draw: random.Random) -> str:
    return draw.choice([k for k, v in state.items() if v.is_floating_point()])


def _swap(state: dict[str, Tensor], draw: random.Random) -> None:
    a, b = draw.sample(sorted(state), 2)
    state[a], state[b] = state[b], state[a]


def _reshape(state: dict[str, Tensor], draw: random.Random) -> None:
    name = _key(state, draw)
    value = state[name].reshape(-1)
    state[name] = draw.choice([value[:-1], torch.cat([value, value[:1]]), value[None, None]])


def _poison(state: dict[str, Tensor], draw: random.Random, poison: float) -> None:
    value = state[_key(state, draw)].reshape(-1)
    value[draw.randrange(len(value))] = poison


def _convert(state: dict[str, Tensor], draw: random.Random) -> None:
    name = _key(state, draw)
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.complex64]
    state[name] = state[name].to(draw.choice(dtypes))


def _lose(state: dict[str, Tensor], draw: random.Random) -> None:
    del state[draw.choice(sorted(state))]


def _add(state: dict[str, Tensor], draw: random.Random) -> None:
    state[f"{draw.choice(sorted(state))}.more"] = torch.zeros(2)


CORRUPTIONS: dict[str, Callable[..., bytes]] = {
    "cut short": _file(lambda data, draw: data[: draw.randrange(len(data))]),
    "one bit flipped": _file(lambda data, draw: _flip(data, draw, 1)),
    "64 bits flipped": _file(lambda data, draw: _flip(data, draw, 64)),
    "two keys swapped": _state(_swap),
    "a wrong shape": _state(_reshape),
    "a NaN": _state(lambda state, draw: _poison(state, draw, float("nan"))),
    "an infinity": _state(lambda s, draw: _poison(s, draw, draw.choice([-1, 1]) * float("inf"))),
    "a wrong dtype": _state(_convert),
    "a missing key": _state(_lose),
}
# A pickled module has no keys, so none can be superfluous.
ONLY_STATES = {"a superfluous key": _state(_add)}


@dataclass(frozen=True)
class Kind:
    """Kind of file: a flow, saved as a state or as a module."""

    flow: str
    pickled: bool


def _stack() -> nn.Module:
    return iresnet_stack(2, 2, WIDTHS)


def _flow() -> nn.Module:
    return iresnet_flow(3, 2, hidden_features=WIDTHS)


FLOWS: dict[str, Callable[[], nn.Module]] = {"Pyro": _stack, "nflows": _flow}
KINDS = [Kind(flow, pickled) for flow in FLOWS for pickled in (False, True)]


def kinds_of(corruption: str) -> list[Kind]:
    """List the kinds of file that a corruption applies to."""
    return [k for k in KINDS if not (k.pickled and corruption in ONLY_STATES)]


def sound(kind: Kind) -> nn.Module:
    """Make the flow behind a file, moved away from its start."""
    torch.manual_seed(0)
    module = FLOWS[kind.flow]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("initialized"):
                buffer.fill_(True)
    return module.eval()


def transform_of(module: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function of x that returns y and the log-determinant."""
    if isinstance(module, Transform):
        transform: Any = module

        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            y = transform(x)
            return y, transform.log_abs_det_jacobian(x, y)

        return both
    return module._transform  # pyright: ignore[reportReturnType]


def fate(data: bytes, kind: Kind) -> str:
    """Load a file as a user does, use the flow, and judge its numbers."""
    original = sound(kind)
    features = 2 if kind.flow == "Pyro" else 3
    x = torch.randn(POINTS, features, generator=torch.Generator().manual_seed(1))
    try:
        module = load(data, kind)
    except Exception:
        return REFUSED
    try:
        with torch.no_grad():
            expected = transform_of(original)(x)
            found = transform_of(module.eval())(x)
            seen = [*found, inverse_of(module, x)]
        if not all(bool(v.isfinite().all()) for v in seen):
            return SHOWN
        if all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
            return SAME
        return OTHER if _consistent(module, x, found[1]) else SILENT
    except Exception:
        return RAISED


def load(data: bytes, kind: Kind) -> nn.Module:
    """Load a file, a state into a flow of the same kind."""
    if kind.pickled:
        return torch.load(io.BytesIO(data), weights_only=False)
    module = sound(kind)
    with torch.no_grad():
        # So that a key that is not loaded does not pass for the right one.
        for parameter in module.parameters():
            parameter.zero_()
    module.load_state_dict(torch.load(io.BytesIO(data), weights_only=True))
    return module


def inverse_of(module: nn.Module, y: Tensor) -> Tensor:
    """Invert a flow at ``y``."""
    if isinstance(module, Transform):
        return module.inv(y)
    return module._transform.inverse(y)[0]  # pyright: ignore[reportCallIssue]


def _consistent(module: nn.Module, x: Tensor, log_det: Tensor) -> bool:
    """Return True if no parameter is NaN and the numbers are those of the flow they make.

    An infinite parameter may have a finite limit, such as a slope of 0.
    """
    if any(bool(v.isnan().any()) for v in module.state_dict().values()):
        return False
    exact = copy.deepcopy(module).double()
    run = transform_of(exact)
    jacobian = torch.autograd.functional.jacobian(lambda v: run(v)[0].sum(0), x.double())
    truth = torch.linalg.slogdet(jacobian.movedim(1, 0))[1]
    blocks = [m for m in modules_of(module) if isinstance(m, Block)]
    found = together(check_inverse(b, x) for b in blocks)
    right = bool(((truth - log_det).abs() <= NATS * x.shape[1]).all())
    return right and found.broken == 0 and promised(blocks) < 1e-5


def judged(corruption: str, count: int, seed: int) -> dict[str, int]:
    """Corrupt ``count`` files in one way, by kind of file in turn; count what became of each.

    Each file is read in a process of its own, with bounds on time and memory, since a corrupt
    pickle may do anything.
    """
    corrupt = (CORRUPTIONS | ONLY_STATES)[corruption]
    kinds = kinds_of(corruption)
    fates = dict.fromkeys(FATES, 0)
    for i in range(count):
        kind = kinds[i % len(kinds)]
        draw = random.Random(f"{corruption} {seed} {i}")
        fates[_alone(corrupt(sound(kind), draw, pickled=kind.pickled), kind)] += 1
    return fates


def _alone(data: bytes, kind: Kind) -> str:
    # A fork has torch at hand; it is safe as long as torch has one thread.
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    reader = context.Process(target=_told, args=(there, data, kind), daemon=True)
    reader.start()
    there.close()
    try:
        return here.recv() if here.poll(SECONDS) else DIED
    except EOFError:
        return DIED
    finally:
        reader.kill()
        reader.join()


def _told(there: Any, data: bytes, kind: Kind) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    there.send(fate(data, kind))
