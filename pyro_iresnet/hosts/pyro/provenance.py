"""Provenance of Pyro's tensors: the random sites that a tensor depends on.

``TraceGraph_ELBO``, ``get_dependencies`` and ``render_model`` follow sites through the operations
on tensors. A solve is no operation that Pyro sees. So a transform here runs on plain tensors, and
gives its results the provenance of its inputs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pyro.ops.provenance import (
    ProvenanceTensor,
    detach_provenance,
    extract_provenance,
    track_provenance,
)
from torch import Tensor

from ...blocks import Evaluation


def evaluate_tracked(evaluate: Callable[..., Evaluation], *inputs: Any) -> Evaluation:
    """Evaluate at plain inputs, and give the results the provenance of the inputs."""
    plain: Any
    plain, sites = extract_provenance(inputs)
    evaluation = evaluate(*plain)

    def log_det() -> Tensor:
        return track_provenance(evaluation.log_det(), sites)

    x, y = (track_provenance(end, sites) for end in (evaluation.x, evaluation.y))
    return replace(evaluation, x=x, y=y, log_det=log_det)


def without_provenance(x: Tensor) -> Tensor:
    """Return a plain tensor."""
    # A compiler does not follow Pyro's dispatch.
    return detach_provenance(x) if isinstance(x, ProvenanceTensor) else x
