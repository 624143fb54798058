"""Strategies of hypothesis that draw blocks, and the decorator that makes a test of a property.

A drawn block is a record of plain choices, so that hypothesis prints and shrinks the choices.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pyro_iresnet import (
    Anderson,
    CayleyBlock,
    ConvContraction,
    DenseContraction,
    Exact,
    FixedPoint,
    Newton,
    PowerSeries,
    ResidualBlock,
    wrap,
)
from pyro_iresnet.contractions import SequentialContraction, SumContraction
from pyro_iresnet.logdet import ConvergedSeries

from .. import zoo

# The slow variant of a test draws this many times as many examples.
SLOW = 20

KINDS = {"residual": ResidualBlock, "cayley": CayleyBlock}
SMOOTH = ("lipswish", "lipswish_sharp", "sine", "tanh")
COORDINATES = {"none": {}, **zoo.COORDINATES}
SCALES = (1.0, 0.01, 30.0)
SOLVERS = {"fixed_point": FixedPoint, "anderson": Anderson, "newton": Newton}
DETERMINISTIC = (Exact(), PowerSeries(terms=4, probes=2), ConvergedSeries(1e-3, probes=2))


def holds_for(
    examples: int, **arguments: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test of a property: the same examples in every run, and ``SLOW`` times more of them.

    Hypothesis derives the examples from the text of the property, so no run draws at random.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("effort", [1, pytest.param(SLOW, marks=pytest.mark.slow)])
        def test(effort: int) -> None:
            profile = settings(
                max_examples=effort * examples,
                derandomize=True,
                deadline=None,
                database=None,
                phases=(Phase.explicit, Phase.generate, Phase.shrink),
                suppress_health_check=[HealthCheck.too_slow],
            )
            profile(given(**arguments)(check))()

        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            setattr(test, name, getattr(check, name))
        return test

    return decorate


@dataclass(frozen=True)
class Network:
    """The choices that make a contraction; ``seed`` decides its weights."""

    kind: str
    event: tuple[int, ...]
    hidden: tuple[int, ...]
    lipschitz: float
    activation: str
    norm: str
    conditional: bool
    gain: float
    seed: int

    def make(self) -> torch.nn.Module:
        torch.manual_seed(self.seed)
        return zoo.trained(self._plain(self.kind, self.lipschitz), self.gain)

    def _plain(self, kind: str, lipschitz: float) -> torch.nn.Module:
        dim, context_dim = self.event[0], zoo.CONTEXT if self.conditional else None
        if kind == "wrapped":
            made = wrap(zoo.SineNet(dim, context_dim), lipschitz=lipschitz, context_dim=context_dim)
            # Coordinates have a parameter for each coordinate of an event.
            made.event_shape = self.event
            return made
        if kind == "sequence":
            root = math.sqrt(lipschitz)
            return SequentialContraction(self._plain("dense", root), self._plain("dense", root))
        if kind == "sum":
            first, second = 0.4 * lipschitz, 0.6 * lipschitz
            return SumContraction(self._plain("dense", first), self._plain("dense", second))
        options = {
            "lipschitz": lipschitz,
            "activation": zoo.ACTIVATIONS[self.activation],
            "norm": zoo.CERTIFIED_NORMS[self.norm],
            "context_dim": context_dim,
        }
        if kind == "conv":
            padding = zoo.PADDINGS[self.seed % 2]
            return ConvContraction(self.event, self.hidden, padding=padding, **options)
        return DenseContraction(dim, self.hidden, **options)

    def points(self, count: int, scale: float = 1.0) -> torch.Tensor:
        """Draw points; call after :meth:`make`, whose seed decides them."""
        return scale * torch.randn(count, *self.event)

    def contexts(self, count: int, scale: float = 1.0) -> torch.Tensor | None:
        return scale * torch.randn(count, zoo.CONTEXT) if self.conditional else None


@dataclass(frozen=True)
class Flow:
    """The choices that make a block, and the scale of its points."""

    network: Network
    block: str
    coordinates: str
    scale: float = 1.0

    def make(self, **options: Any) -> Any:
        network = self.network.make()
        made = KINDS[self.block](network, **COORDINATES[self.coordinates], **options)
        return zoo.bent(made)

    def points(self, count: int) -> torch.Tensor:
        return self.network.points(count, self.scale)

    def contexts(self, count: int) -> torch.Tensor | None:
        return self.network.contexts(count)


@st.composite
def networks(
    draw: st.DrawFn,
    kinds: tuple[str, ...] = ("dense", "conv", "sequence", "sum", "wrapped"),
    dims: tuple[int, int] = (1, 6),
    largest: float = 0.99,
    least: float = 0.05,
    conditional: bool | None = None,
    smooth: bool = False,
    channels: int = 2,
    sides: tuple[tuple[int, int], ...] = ((2, 2), (1, 4), (3, 2)),
    widest: int = 8,
) -> Network:
    """Draw contractions of some kinds, dimensions and Lipschitz constants."""
    kind = draw(st.sampled_from(kinds))
    names = SMOOTH if smooth else tuple(zoo.ACTIVATIONS)
    if kind == "conv":
        event = (draw(st.integers(1, channels)), *draw(st.sampled_from(sides)))
    else:
        event = (draw(st.integers(*dims)),)
    activation = draw(st.sampled_from(names))
    widths = draw(st.lists(st.integers(1, widest), max_size=3))
    return Network(
        kind=kind,
        event=event,
        hidden=tuple(widths),
        # A wrapped network comes with its own constant.
        lipschitz=0.9 if kind == "wrapped" else draw(st.floats(least, largest)),
        activation=activation,
        norm=draw(st.sampled_from(tuple(zoo.CERTIFIED_NORMS))),
        conditional=draw(st.booleans()) if conditional is None else conditional,
        gain=1.0 if kind == "wrapped" else draw(st.floats(0.1, 50.0)),
        seed=draw(st.integers(0, 2**16)),
    )


def flows(
    blocks: tuple[str, ...] = tuple(KINDS),
    coordinates: tuple[str, ...] = tuple(COORDINATES),
    scales: tuple[float, ...] = SCALES,
    **options: Any,
) -> st.SearchStrategy[Flow]:
    """Draw blocks; ``options`` as in :func:`networks`."""
    return st.builds(
        Flow,
        network=networks(**options),
        block=st.sampled_from(blocks),
        coordinates=st.sampled_from(coordinates),
        scale=st.sampled_from(scales),
    )


def batch_of(context: torch.Tensor | None, index: Any) -> torch.Tensor | None:
    """Return some contexts, or None for none."""
    return None if context is None else context[index]
