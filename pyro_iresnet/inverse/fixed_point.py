"""Banach's fixed-point iteration."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Problem, Solver


@dataclass(frozen=True)
class FixedPoint(Solver):
    r"""Banach's iteration :math:`x_{n+1} = y - g(x_n)` (seed report Eq. 12; Behrmann Algorithm 1).

    The error after ``n`` steps is at most :math:`L^n \lVert x_1 - x_0 \rVert / (1 - L)` (Eq. 36),
    which gives the default number of steps.

    Where rounding keeps the residual from shrinking as theory says it must, the step is halved:
    :math:`x - \tfrac12 (x + g(x) - y)` is a contraction too (Krasnoselskii and Mann), and ends the
    cycle of rounding errors that the plain step would carry on, :math:`1 / (1 - L)` times as large.

    Arguments:
        rtol: relative tolerance; by default 1e-6 in float32, 1e-10 in float64.
        atol: absolute tolerance, in the units of ``x``; by default 0.
        max_steps: by default what Eq. 36 says suffices.

    Example:
        >>> from pyro_iresnet import FixedPoint, iresnet
        >>> transform = iresnet(2, solver=FixedPoint(rtol=1e-4))
    """

    def init(self, problem: Problem, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.full_like(x.flatten(1).sum(1), torch.inf),)

    def step(
        self, problem: Problem, x: Tensor, residual: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        (previous,) = state
        size = torch.linalg.vector_norm(residual.flatten(1), dim=1)
        stalls = size > 0.5 * (1 + problem.lipschitz) * previous
        share = torch.where(stalls, 0.5, 1.0).to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1))
        # y - g(x) = x - (x + g(x) - y), with the g that the residual has already paid for.
        return x - share * residual, (size,)

    def default_max_steps(self, ratio: float, lipschitz: float) -> int:
        if ratio <= 1.0 or lipschitz == 0.0:
            return 1
        return max(1, math.ceil(math.log(ratio) / -math.log(lipschitz)))
