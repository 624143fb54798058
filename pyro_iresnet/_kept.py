"""Acting weights in eval mode: kept from call to call, while no parameter changes."""

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._comparable import PLAIN
from ._fingerprint import Fingerprint
from ._torch import any_autocast, in_plain_autograd, random_state, saved_tensor_hooks
from .contractions import Contraction, materialize_together
from .norms import Norm
from .operators import ContractionMap

# The package itself, whose norms read nothing but their fields.
PACKAGE = f"{__package__}."


def maps_of(contractions: Sequence[Contraction]) -> list[ContractionMap]:
    """Return ``[c.materialize() for c in contractions]``, in eval mode without the norms.

    A call with gradients in the parameters makes its weights anew, since each call has a graph of
    its own.
    """
    evaluating = [c for c in contractions if not (c.training or _needs_graph(c))]
    if not evaluating or not in_plain_autograd() or saved_tensor_hooks(True) or any_autocast():
        return materialize_together(contractions)
    inference = torch.is_inference_mode_enabled()
    maps: dict[int, ContractionMap] = {}
    for c in evaluating:
        kept = c._kept.get(inference)
        if kept is not None and kept.fingerprint.holds(c):
            maps[id(c)] = kept.map
    absent = [c for c in contractions if id(c) not in maps]
    if absent:
        before = random_state()
        made = materialize_together(absent)
        maps.update(zip(map(id, absent), made, strict=True))
        # Weights that are drawn are other weights in the next call.
        if random_state() == before:
            for c in evaluating:
                if c in absent:
                    _keep(c, maps[id(c)], inference)
    return [maps[id(c)] for c in contractions]


@dataclass(frozen=True, eq=False)
class _Kept:
    """A map, and the fingerprint of its contraction."""

    map: ContractionMap
    fingerprint: Fingerprint


def _needs_graph(contraction: Contraction) -> bool:
    if torch.is_grad_enabled():
        for parameter in contraction.parameters():
            if parameter.requires_grad:
                return True
    return False


def _keep(contraction: Contraction, made: ContractionMap, inference: bool) -> None:
    """Keep a map if nothing can change unseen."""
    if not _is_known(made):
        return
    # An attribute more would look like a change.
    vars(contraction).setdefault("_kept", {})
    vars(contraction).setdefault("_shared", ())
    last = next((kept.fingerprint for kept in contraction._kept.values()), None)
    fingerprint = Fingerprint.of(contraction, last=last)
    if fingerprint is not None and all(map(_is_plain, fingerprint.values.tensors)):
        kept = _Kept(made, fingerprint)
        contraction._kept = {**contraction._kept, inference: kept}


def _is_plain(tensor: Tensor) -> bool:
    """Return False for a tensor with a node, whose past belongs to the call, and for a subclass.

    Subclasses may live on other machines, or have no values.
    """
    return tensor.grad_fn is None and type(tensor) in (Tensor, nn.Parameter)


def _is_known(value: Any) -> bool:
    """Return True for a map of tensors without a node, and of objects that read nothing else."""
    if isinstance(value, Tensor):
        return value.grad_fn is None
    if isinstance(value, tuple):
        return all(map(_is_known, value))
    if is_dataclass(value):
        ours = not isinstance(value, Norm) or type(value).__module__.startswith(PACKAGE)
        frozen = type(value).__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
        named = value.__dataclass_fields__.items()
        return ours and frozen and all(f.init and _is_known(getattr(value, n)) for n, f in named)
    if isinstance(value, nn.Module):
        # A part that reads its own parameters in each call.
        return not any(isinstance(v, Tensor) for m in value.modules() for v in vars(m).values())
    return isinstance(value, PLAIN)
