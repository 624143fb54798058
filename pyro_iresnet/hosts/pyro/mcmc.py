"""Transforms in HMC, NUTS and the other kernels of ``pyro.infer.mcmc``."""

import sys
from dataclasses import replace

from pyro.ops.integrator import register_exception_handler
from torch import Tensor

from ..._torch import is_compiling
from ...blocks import Evaluation
from ...errors import ArgumentError, InversionError
from ...solution import Result


def drawn_density(name: str, estimator: str) -> ArgumentError:
    """Make the error for a density that is drawn anew in each call; ``name`` says of whom."""
    return ArgumentError(
        f"Expected the {name} in eval mode; in train mode its log-determinant is drawn by "
        f"{estimator}, so that the density of one point differs from call to call, which HMC, NUTS "
        f"and NeuTra cannot follow. Call {name}.eval() first, or make it with logdet=Exact()."
    )


def refuse_in_mcmc(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation whose log-determinant raises when a sampler of Pyro asks for it."""
    if is_compiling():
        return evaluation

    def log_det() -> Tensor:
        if not is_compiling() and _in_mcmc():
            raise drawn_density("transform", evaluation.drawn_by)
        return evaluation.log_det()

    return replace(evaluation, log_det=log_det)


def _in_mcmc() -> bool:
    """Return True if a kernel of ``pyro.infer.mcmc`` is among the callers."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("pyro.infer.mcmc"):
            return True
        frame = frame.f_back
    return False


def is_overflow(error: Exception) -> bool:
    """Return True for the error of an inverse at a point too large for the dtype."""
    if not isinstance(error, InversionError) or error.solution is None:
        return False
    return error.solution.result is Result.NON_FINITE


# A trajectory that diverges may run to infinity. Pyro rejects a proposal whose error is registered,
# as Pyro itself registers the error of a singular matrix.
register_exception_handler("pyro_iresnet", is_overflow, warn_on_overwrite=False)
