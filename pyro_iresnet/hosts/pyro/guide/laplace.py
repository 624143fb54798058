"""The start of a guide: a normal distribution on the unconstrained scale."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ....errors import LaplaceError

LogDensity = Callable[[Tensor], Tensor]

# Draws on which two starts are compared, the same for both.
DRAWS = 64
# The most coordinates for which a Hessian is tried unasked: each takes one backward pass.
LARGEST = 200
# The most steps of L-BFGS.
SEARCH = 500
# The most Newton steps; near a mode each step squares the error.
NEWTON = 20


@dataclass(frozen=True)
class Normal:
    """A normal distribution, with a lower-triangular scale of shape ``(D, D)``."""

    loc: Tensor
    scale_tril: Tensor


def plain(loc: Tensor, scale: float) -> Normal:
    """Return a normal distribution around a point, with one scale for all coordinates."""
    return Normal(loc, scale * torch.eye(len(loc), dtype=loc.dtype, device=loc.device))


def laplace(log_joint: LogDensity, loc: Tensor) -> Normal:
    r"""Return the Laplace approximation, :math:`N(m, H^{-1})`.

    ``m`` is the mode, found from ``loc`` by L-BFGS and refined by Newton's method. :math:`H` is the
    Hessian of :math:`-\log p` at ``m``. Raises :class:`LaplaceError`: the search ran away, the
    model failed during the search or is not twice differentiable, or :math:`H` is not positive
    definite.
    """
    try:
        return _laplace(log_joint, loc)
    except LaplaceError:
        raise
    # A model may raise anything where the search leads, and torch for a missing derivative.
    except Exception as error:
        raise LaplaceError(
            "The log-density could not be followed to a mode and differentiated twice there: "
            f"{str(error).partition(chr(10))[0]} Use init='plain'."
        ) from error


def better(log_joint: LogDensity, first: Normal, second: Normal) -> Normal:
    """Return the distribution of larger ELBO, on the same draws; ``second`` if neither has one."""
    noise = torch.randn(DRAWS, len(first.loc), dtype=first.loc.dtype, device=first.loc.device)
    return first if _elbo(log_joint, first, noise) > _elbo(log_joint, second, noise) else second


def laplace_or(log_joint: LogDensity, fallback: Normal) -> Normal:
    """Return the Laplace approximation if it exists and has the larger ELBO, else ``fallback``."""
    if len(fallback.loc) > LARGEST:
        return fallback
    try:
        found = laplace(log_joint, fallback.loc)
    except LaplaceError:
        return fallback
    return better(log_joint, found, fallback)


def _curvature(log_joint: LogDensity, mode: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the upper triangular ``U`` with :math:`U U^\top = H`, and Newton's step."""
    z = mode.clone().requires_grad_()
    gradient = torch.autograd.grad(log_joint(z), z)[0]
    hessian = torch.autograd.functional.hessian(lambda z: -log_joint(z), mode)
    hessian = torch.as_tensor(hessian).detach()
    # The precision is factored with the coordinates in reverse order. The factor, inverted and
    # turned back, is the lower-triangular factor of the covariance.
    factor, failed = torch.linalg.cholesky_ex((hessian + hessian.mT).flip(0, 1) / 2)
    if bool(failed) or not bool(factor.isfinite().all()):
        raise LaplaceError(
            f"The log-density is not curved downwards in every direction at {_told(mode)}, where "
            "the search for a mode ended: the posterior has no usable mode, or none in this dtype. "
            "Use init='plain', or float64."
        )
    step = torch.cholesky_solve(gradient.flip(0)[:, None], factor)[:, 0].flip(0)
    return factor.flip(0, 1), step


def _laplace(log_joint: LogDensity, loc: Tensor) -> Normal:
    with torch.enable_grad():
        mode = _mode(log_joint, loc)
        if not bool(mode.isfinite().all()):
            raise LaplaceError(
                f"The search for a mode ran away from the start {_told(loc)}. Start elsewhere "
                "(init_loc_fn), use float64, or init='plain'."
            )
        upper, step = _curvature(log_joint, mode)
        for _ in range(NEWTON):
            onward = mode + step
            # Twice the gain of the step if the density were normal.
            small = float((upper.mT @ step).square().sum()) < 1e-6
            if not float(log_joint(onward).detach()) >= float(log_joint(mode).detach()):
                break
            mode = onward
            upper, step = _curvature(log_joint, mode)
            if small:
                break
    eye = torch.eye(len(loc), dtype=loc.dtype, device=loc.device)
    return Normal(mode, torch.linalg.solve_triangular(upper, eye, upper=True).mT.contiguous())


def _mode(log_joint: LogDensity, loc: Tensor) -> Tensor:
    z = loc.detach().clone().requires_grad_()
    search = torch.optim.LBFGS([z], max_iter=SEARCH, line_search_fn="strong_wolfe")

    def negative() -> float:
        value = -log_joint(z)
        z.grad = torch.autograd.grad(value, z)[0]
        return float(value.detach())

    search.step(negative)
    return z.detach()


@torch.no_grad()
def _elbo(log_joint: LogDensity, normal: Normal, noise: Tensor) -> float:
    points = normal.loc + noise @ normal.scale_tril.mT
    try:
        values = [float(log_joint(z)) for z in points]
    except Exception:
        # If the model fails at a draw, the start is no place to begin.
        return -math.inf
    value = sum(values) / len(values) + float(normal.scale_tril.diagonal().log().sum())
    return value if math.isfinite(value) else -math.inf


def _told(z: Tensor) -> str:
    shown = ", ".join(f"{float(v):.3g}" for v in z[:8])
    return f"({shown}{', ...' if len(z) > 8 else ''})"
