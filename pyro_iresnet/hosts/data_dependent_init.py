"""Start of an affine map of each coordinate from the data of its first batch."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .._modules import evaluating, modules_of
from .._torch import disable_compiler, gather_ranks, in_torch_func, is_compiling, is_tracing
from ..errors import TracingError

# The fewest rows, or images, of a start.
ENOUGH = 16


class DataDependentInit(nn.Module):
    r"""Base class of an affine map :math:`y = e^{s} \circ x + t` that starts from data.

    The map has started once ``s`` or ``t`` is not 0, whatever moved them: data, training, a load.
    So the parameters alone hold the state, wherever they go: a checkpoint, the parameter store of
    Pyro, an average of models, the ranks of torch.distributed.

    Arguments:
        size: the number of coordinates.
        options: of the next base class.

    Attributes:
        log_scale, shift: the parameters ``s`` and ``t``, shape ``(size,)``.
    """

    # The last known answer of has_started, for a compiler, which cannot look at the parameters.
    _seen_started = False
    # True once a batch of few rows came, until the parameters move.
    _met_few_rows = False

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(**options)
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.shift = nn.Parameter(torch.zeros(size))

    def has_started(self) -> bool:
        """Return True if a parameter is not 0, as far as can be known here."""
        if self.log_scale.is_meta:
            # Without values there is nothing to start from.
            return True
        if not is_compiling():
            self._seen_started = bool(self.log_scale.any()) or bool(self.shift.any())
        return self._seen_started

    def start_from(self, x: Tensor, dim: int = -1) -> None:
        """Start from a batch in train mode, coordinates along ``dim``, if nothing has yet."""
        if not self.training or in_torch_func():
            return
        if not self.has_started() or self._met_few_rows:
            self._start(x, dim)

    @disable_compiler("ActNorm starts from the data of its first call: make that call uncompiled")
    def _start(self, x: Tensor, dim: int) -> None:
        name = type(self).__name__
        if self.has_started():
            if self._met_few_rows:
                warnings.warn(
                    f"{name} was trained before a batch of {ENOUGH} rows or images came, so it "
                    f"does not start from data. Train with batches of {ENOUGH} or more, or call "
                    "the flow once on more, in train mode, before the first step.",
                    stacklevel=2,
                )
            self._met_few_rows = False
            return
        if getattr(self, "_is_replica", False):
            warnings.warn(
                f"{name} has not started from data, and a start inside nn.DataParallel would be "
                "lost with the replica. Call the flow once on data, in train mode, before you wrap "
                "it.",
                stacklevel=2,
            )
            return
        # A parameter that functional_call or a prior of Pyro puts in its place belongs to others.
        if not all(isinstance(own, nn.Parameter) for own in (self.log_scale, self.shift)):
            return
        if is_tracing():
            raise TracingError(
                f"{name} cannot be traced by torch.jit before it has started: its start from the "
                "example would be lost. Call it once on data before, or call eval()."
            )
        rows = x.detach().movedim(dim, -1).reshape(-1, len(self.shift))
        count, mean, std = moments(rows)
        event = x.shape[dim:]
        # The pixels of one image resemble each other, so they count as one row.
        if count < ENOUGH * event[1:].numel():
            # A single point, such as a draw of a guide, is no batch.
            self._met_few_rows = x.dim() > len(event)
            return
        self._standardise(mean, std)
        self._seen_started, self._met_few_rows = True, False

    @torch.no_grad()
    def _standardise(self, mean: Tensor, std: Tensor) -> None:
        """Set the parameters that give columns mean 0 and standard deviation 1."""
        # A coordinate without spread, or one whose squares overflow, has no scale to take.
        rounding = max(64 * torch.finfo(std.dtype).eps, torch.finfo(self.shift.dtype).eps)
        usable = (std > rounding * mean.abs()) & std.isfinite()
        scale = torch.where(usable, std, 1.0)
        self.log_scale.copy_(-scale.log())
        self.shift.copy_(torch.where(mean.isfinite(), -mean / scale, 0.0))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A flag of older versions and of nflows' ActNorm.
        state_dict.pop(prefix + "initialized", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._met_few_rows = False
        # A compiler, which cannot look, may be the next to ask.
        self.has_started()


def moments(rows: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return number, mean and deviation of the finite rows, of all ranks that train together.

    Each rank sends its number, mean and sum of squares around the mean, and merges those of all
    (Chan, Golub and LeVeque, 1979), so every rank has the same result.
    """
    rows = rows[rows.isfinite().all(1)].to(torch.promote_types(rows.dtype, torch.float32))
    number = rows.new_full((1,), len(rows))
    mean = rows.sum(0) / number.clamp(min=1)
    squares = (rows - mean).square().sum(0)
    size = rows.shape[1]
    ranks = gather_ranks(torch.cat([number, mean, squares]))
    numbers, means, squares = ranks.split([1, size, size], dim=1)
    number = numbers.sum()
    mean = (numbers * means).sum(0) / number.clamp(min=1)
    squares = (squares + numbers * (means - mean).square()).sum(0)
    return int(number), mean, (squares / (number - 1).clamp(min=1)).sqrt()


def without_start(module: nn.Module) -> AbstractContextManager[None]:
    """Open a block in which no map of a module starts: a question about a pair is no data."""
    if is_compiling():
        # Under a compiler a start raises by itself.
        return nullcontext()
    return evaluating([m for m in modules_of(module) if isinstance(m, DataDependentInit)])
