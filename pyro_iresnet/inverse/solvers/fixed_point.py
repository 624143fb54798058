"""The fixed-point iteration of Picard and Banach."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Point, Problem, Solver, Step, picard_steps


@dataclass(frozen=True)
class FixedPoint(Solver):
    r"""Fixed-point iteration :math:`x_{n+1} = y - g(x_n)` (Behrmann et al. 2019, Algorithm 1).

    The error after ``n`` steps is at most :math:`L^n \lVert x_1 - x_0 \rVert / (1 - L)` (Banach),
    which gives the default number of steps.

    If rounding keeps the residual from shrinking as theory requires, the step is halved:
    :math:`x - \tfrac12 (x + g(x) - y)` is a contraction too (Krasnoselskii and Mann). Full steps
    would carry on a cycle of rounding errors, :math:`1 / (1 - L)` times as large; half steps end
    the cycle.

    Arguments:
        rtol, atol, max_steps: as in :class:`Solver`, with the same errors.

    Example:
        >>> from pyro_iresnet import FixedPoint, iresnet
        >>> transform = iresnet(2, solver=FixedPoint(rtol=1e-4))
    """

    safeguarded: ClassVar[bool] = False

    def init(self, problem: Problem, x0: Tensor | None) -> tuple[Tensor, "_LastSize"]:
        x = problem.y if x0 is None else x0
        return x, _LastSize(torch.full_like(x.sum(1), torch.inf))

    def step(self, problem: Problem, point: Point, state: "_LastSize") -> Step:
        stalls = point.size > 0.5 * (1 + problem.lipschitz) * state.size
        share = torch.where(stalls, 0.5, 1.0).to(point.x.dtype)[:, None]
        return Step(point.x - share * point.residual, _LastSize(point.size))

    def default_max_steps(self, ratio: float, lipschitz: float) -> int:
        return picard_steps(ratio, lipschitz)


@dataclass(frozen=True)
class _LastSize:
    """The norm of the residual one step ago."""

    size: Tensor

    def select(self, index: Tensor) -> "_LastSize":
        return _LastSize(self.size.index_select(0, index))
