"""Evaluations of any bijective torch transform, of this package or another."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from pyro.ops.provenance import ProvenanceTensor
from torch import Tensor

from ..._torch import InverseTransform
from ...blocks import Evaluation
from ...operators.linearization import vjp_of
from .cached_transform import CachedTransform
from .provenance import evaluate_tracked


def evaluate(transform: Any, x: Tensor) -> Evaluation:
    """Evaluate any bijective torch transform at ``x``."""
    if isinstance(transform, CachedTransform):
        if isinstance(x, ProvenanceTensor):
            return evaluate_tracked(transform.evaluate, x)
        return transform.evaluate(x)
    if isinstance(transform, InverseTransform):
        return evaluate_inverse(transform.inv, x).inverted()
    return _evaluation(transform, x, transform(x))


def evaluate_each(transforms: Sequence[Any], x: Tensor) -> list[Evaluation]:
    """Evaluate transforms in turn, from ``x`` on."""
    steps: list[Evaluation] = []
    for transform in transforms:
        steps.append(evaluate(transform, x))
        x = steps[-1].y
    return steps


def evaluate_inverse(transform: Any, y: Tensor) -> Evaluation:
    """Evaluate any bijective torch transform at the ``x`` of ``y``."""
    if isinstance(transform, CachedTransform):
        if isinstance(y, ProvenanceTensor):
            return evaluate_tracked(transform.evaluate_inverse, y)
        return transform.evaluate_inverse(y)
    if isinstance(transform, InverseTransform):
        return evaluate(transform.inv, y).inverted()
    return _evaluation(transform, transform._inv_call(y), y)


def _evaluation(transform: Any, x: Tensor, y: Tensor) -> Evaluation:
    log_det = partial(transform.log_abs_det_jacobian, x, y)
    vjp = partial(vjp_of, transform, x)
    return Evaluation(x, y, log_det, vjp, partial(vjp_of, transform._inv_call, y))
