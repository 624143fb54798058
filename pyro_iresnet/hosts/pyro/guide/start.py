"""The choice of the start of a guide."""

from torch import Tensor

from ....errors import LaplaceError
from .laplace import Normal, better, laplace, laplace_or, plain
from .log_joint import LogJoint
from .sites import keeping_seeds

STARTS = ("auto", "laplace", "plain")
# Standard deviations that a plain start tries: of a posterior whose sites scale each other the
# unit scale may lie far outside. The first one, that of Pyro's guides, stays if nothing can be
# compared.
SCALES = (0.1, 1.0)


def find_start(init: str, scale: float | None, loc: Tensor, log_joint: LogJoint | None) -> Normal:
    """Return a start around ``loc`` or, unless ``init`` is ``"plain"``, around a mode.

    ``log_joint`` is None if the guide knows a part of the model only. Raises :class:`LaplaceError`:
    ``init`` is ``"laplace"``, and there is no usable mode.
    """
    if init == "plain":
        if scale is not None:
            return plain(loc, scale)
        with keeping_seeds({loc.device}):
            known = log_joint is not None and log_joint.is_deterministic(loc)
            return _plain(scale, loc, log_joint if known else None)
    if log_joint is None or not log_joint.is_deterministic(loc):
        if init == "auto":
            return _plain(scale, loc, None)
        raise LaplaceError(
            "The log-density differs from call to call, or is that of a part of a model: "
            "something is subsampled, hidden or drawn that the guide does not know. Use "
            "init='plain'."
        )
    if init == "laplace":
        return laplace(log_joint, loc)
    with keeping_seeds({loc.device}):
        fallback = _plain(scale, loc, log_joint)
    return laplace_or(log_joint, fallback)


def _plain(scale: float | None, loc: Tensor, log_joint: LogJoint | None) -> Normal:
    if scale is not None or log_joint is None:
        return plain(loc, scale or SCALES[0])
    narrow, wide = (plain(loc, scale) for scale in SCALES)
    return better(log_joint, wide, narrow)
