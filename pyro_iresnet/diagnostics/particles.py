"""Runs of a model and a guide on many draws at once."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from .._modules import evaluating
from ..errors import ArgumentError, ArgumentTypeError, IResNetError, check_int, check_positive_int
from ..hosts.pyro.guide.log_joint import modules_behind
from .sites import (
    LogProb,
    by_kind,
    check_alike,
    check_full,
    check_match,
    check_unscaled,
    event_dim,
    joined,
    listed,
    log_prob,
    samples,
    site_values,
    unvectorized,
)


class Particles:
    """A model and a guide with their arguments: run once to see the sites, then on many draws."""

    def __init__(
        self, guide: Any, model: Any, args: Any, kwargs: Any, nesting: Any, batch_size: Any
    ) -> None:
        for name, fn in (("guide", guide), ("model", model)):
            if not callable(fn):
                raise ArgumentTypeError(
                    f"Expected {name} to be a function with Pyro sites; got {type(fn).__name__}."
                )
        self.guide, self.model, self.args, self.kwargs = guide, model, args, kwargs
        if batch_size is not None:
            batch_size = check_positive_int(batch_size, "batch_size")
        self.batch_size = batch_size
        model_trace, guide_trace = self._traces(None)
        check_match(model_trace, guide_trace)
        check_alike(model_trace, guide_trace)
        sites = [*samples(model_trace).values(), *samples(guide_trace).values()]
        frames = [frame for site in sites for frame in site["cond_indep_stack"]]
        check_full(frames)
        check_unscaled(model_trace, guide_trace)
        deepest = max((-frame.dim for frame in frames if frame.vectorized), default=0)
        self.nesting = deepest if nesting is None else check_int(nesting, "max_plate_nesting")
        if self.nesting < deepest:
            raise ArgumentError(
                f"Expected max_plate_nesting to be at least {deepest}, the depth of the plates; "
                f"got {nesting}."
            )
        self.latent, self.deterministic, self.observed = by_kind(model_trace)
        self.eps = max(torch.finfo(site["log_prob"].dtype).eps for site in sites)

    def draw(self, size: int) -> tuple[LogProb, LogProb, dict[str, Tensor]]:
        """Draw ``size`` times from the guide; return ``log p``, ``log q`` and the draws."""
        parts = []
        for _, n in self._batches(size):
            traces = self._traces(n)
            if set(traces[0].stochastic_nodes) != self.latent.keys():
                raise ArgumentError(
                    f"Expected the same latent sites in every draw; got {listed(self.latent)} and "
                    f"{listed(traces[0].stochastic_nodes)}. Give each draw all of them."
                )
            parts.append(
                (*(log_prob(t, n) for t in traces), site_values(traces[0], self.latent, n))
            )
        joints, guides, draws = zip(*parts, strict=True)
        log_joint, found = _joined(joints), joined(draws)
        for name, value in found.items():
            if bool((value == value[:1]).all()) and not self.latent[name]["fn"].support.is_discrete:
                raise ArgumentError(
                    f"Expected a guide with a density; all {size} draws of {name!r} are equal, as "
                    "from AutoDelta. A point has no importance weight: fit a guide with spread."
                )
        row = self._checked(size)
        alone = self._replay(self.model, {name: value[row] for name, value in found.items()}, None)
        self._check_same("log p(x, z)", log_joint.value[row], log_prob(alone, None).value)
        return log_joint, _joined(guides), found

    def evaluate(self, draws: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the deterministic sites, and the log-likelihood of the observed sites."""
        deterministic, likelihood = [], []
        size = len(next(iter(draws.values())))
        for rows, n in self._batches(size):
            trace = self._replay(self.model, {k: v[rows] for k, v in draws.items()}, n)
            deterministic.append(site_values(trace, self.deterministic, n))
            likelihood.append(site_values(trace, self.observed, n, "unscaled_log_prob"))
        found, row = joined(deterministic), self._checked(size)
        alone = self._replay(self.model, {name: value[row] for name, value in draws.items()}, None)
        for name, value in site_values(alone, self.deterministic, None).items():
            self._check_same(f"the deterministic site {name!r}", found[name][row], value)
        return found, joined(likelihood)

    def predict(self, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draw the observed sites anew."""
        model, parts = poutine.uncondition(self.model), []
        for rows, n in self._batches(len(next(iter(draws.values())))):
            trace = self._replay(model, {k: v[rows] for k, v in draws.items()}, n)
            parts.append(site_values(trace, self.observed, n))
        return joined(parts)

    def _batches(self, size: int) -> Iterator[tuple[slice, int | None]]:
        """Yield the rows of a batch and their number, or None for one row without the plate."""
        step = self.batch_size or size
        for start in range(0, size, step):
            rows = slice(start, min(start + step, size))
            yield rows, None if self.batch_size == 1 else rows.stop - start

    def _traces(self, n: int | None) -> tuple[Any, Any]:
        nesting = math.inf if n is None else self.nesting + 1
        with self._running(n):
            return get_importance_trace(
                "flat",
                nesting,
                self._plated(self.model, n),
                self._plated(self.guide, n),
                self.args,
                self.kwargs,
            )

    def _replay(self, model: Any, draws: dict[str, Tensor], n: int | None) -> Any:
        """Return the trace of the model at the given draws."""
        data = {}
        for name, value in draws.items():
            gap = 0 if n is None else self.nesting + 1 + event_dim(self.latent[name]) - value.dim()
            data[name] = value[0] if n is None else value.reshape(n, *gap * [1], *value.shape[1:])
        model = self._plated(poutine.condition(model, data=data), n)
        with self._running(n):
            trace = poutine.trace(model).get_trace(*self.args, **self.kwargs)
            trace.compute_log_prob()
        return trace

    def _plated(self, fn: Any, n: int | None) -> Any:
        return fn if n is None else pyro.plate("_draws", n, dim=-self.nesting - 1)(fn)

    @contextmanager
    def _running(self, n: int | None) -> Iterator[None]:
        """Run in eval mode without gradients: in train mode estimators draw and ActNorms start."""
        modules = [*modules_behind(self.guide), *modules_behind(self.model)]
        try:
            with evaluating(modules), torch.no_grad(), warnings.catch_warnings():
                # Pyro warns of sites that do not match, which is an error here.
                warnings.filterwarnings("ignore", message="Found ")
                yield
        except (IResNetError, NotImplementedError):
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            # If torch refuses a value, the shape is not the cause.
            if n is None or "satisfy the constraint" in str(error):
                raise
            raise unvectorized(
                f"failed on {n} at once ({str(error).partition(chr(10))[0]})"
            ) from error

    def _checked(self, size: int) -> slice:
        """Return the last draw of the first batch: of mixed-up rows the first is often right."""
        last = min(self.batch_size or size, size)
        return slice(last - 1, last)

    def _check_same(self, what: str, value: Tensor, alone: Tensor) -> None:
        if self.batch_size == 1:
            return
        value, alone = value.double(), alone.double()
        slack = self.eps**0.5 * alone.abs().clamp(min=1)
        same = (value == alone) | ((value - alone).abs() <= slack) | value.isnan() & alone.isnan()
        if not bool(same.all()):
            worst = (value - alone).abs().flatten().argmax()
            raise unvectorized(
                f"gave {what} = {float(value.flatten()[worst]):.6g} for a draw among others, and "
                f"{float(alone.flatten()[worst]):.6g} for it alone"
            )


def _joined(parts: Sequence[LogProb]) -> LogProb:
    return LogProb(*(torch.cat(values) for values in zip(*parts, strict=True)))
