"""Stacks whose expressive power is compared, by their differences."""

from collections.abc import Callable
from functools import partial

from pyro.distributions.transforms import affine_autoregressive, spline_autoregressive
from torch.distributions import Transform

from pyro_iresnet import Exact, IResNet, ResidualBlock, actnorm, implicit_stack, iresnet_stack
from pyro_iresnet.activations import CLipSwish
from pyro_iresnet.contractions import Contraction
from pyro_iresnet.coordinates import Asinh, DiagonalScale, TriangularScale
from pyro_iresnet.hosts.pyro import Stack
from pyro_iresnet.norms import Cholesky, Gram
from pyro_iresnet.options import BlockOptions

from .prototypes import Potential, Sandwich

Make = Callable[[int], Stack]

FORMER = "Gram(), coordinates=None"
WINNER = "Cholesky(), DiagonalScale()"
# Pyro's own flows.
IAF = "IAF: 3 affine autoregressive"
SPLINE = "2 spline autoregressive, 1 affine"
SMALL = "Cholesky(damping=1), coordinates=None"
OURS = {"norm": Cholesky(), "coordinates": DiagonalScale()}
# The records of a stack whose every other block acts behind an Asinh.
ASINH = [BlockOptions(coordinates=(Asinh(), DiagonalScale())), BlockOptions()]


def pure(blocks: int, hidden: tuple[int, ...]) -> dict[str, Make]:
    """Return makers of stacks of residual blocks.

    Arguments:
        blocks: the number of blocks.
        hidden: the widths of the hidden layers. A variant with one hidden layer in the place of
            several has a layer four times as wide.
    """
    options = {"num_blocks": blocks, "hidden_dims": hidden, "logdet": Exact()}
    plain = partial(iresnet_stack, **options)
    ours = partial(plain, **OURS)
    one = hidden if len(hidden) == 1 else (4 * hidden[0],)
    other = 2 * hidden if len(hidden) == 1 else one
    return {
        FORMER: partial(plain, norm=Gram(), coordinates=None),
        "Gram(), DiagonalScale()": partial(plain, norm=Gram(), coordinates=DiagonalScale()),
        "Cholesky(), coordinates=None": partial(plain, norm=Cholesky(), coordinates=None),
        WINNER: ours,
        "TriangularScale()": partial(ours, coordinates=TriangularScale()),
        "Asinh() in every other block": partial(plain, options=ASINH),
        "CLipSwish": partial(ours, activation=CLipSwish),
        f"{len(other)} hidden of {other[0]}": partial(ours, hidden_dims=other),
        "semidefinite bound": partial(_of, partial(Sandwich, width=one[0]), blocks),
        "gradient of a potential": partial(_of, partial(Potential, width=one[0]), blocks),
    }


def pairs(blocks: int, hidden: tuple[int, ...]) -> dict[str, Make]:
    """Return makers of stacks of blocks and inverse blocks in turn, as many together."""
    options = {"num_blocks": blocks, "hidden_dims": hidden, "logdet": Exact()}
    make = partial(implicit_stack, **options, norm=Cholesky())
    return {
        "implicit pairs, DiagonalScale()": partial(make, coordinates=DiagonalScale()),
        "implicit pairs, coordinates=None": partial(make, coordinates=None),
    }


def with_host(hidden: tuple[int, ...]) -> dict[str, Make]:
    """Return makers of stacks that also hold layers of Pyro."""
    plain = partial(iresnet_stack, num_blocks=2, hidden_dims=hidden, logdet=Exact())
    two, in_asinh = partial(plain, **OURS), partial(plain, options=ASINH)
    return {
        "2 blocks, then 2 affine autoregressive": lambda dim: Stack(
            [*two(dim).parts, *_affine(dim, 2)]
        ),
        "2 affine autoregressive, then 2 blocks, one in Asinh()": lambda dim: Stack(
            [*_affine(dim, 2), *in_asinh(dim).parts]
        ),
    }


def of_pyro() -> dict[str, Make]:
    """Return makers of stacks of Pyro's layers alone."""
    return {
        IAF: lambda dim: Stack(_affine(dim, 3)),
        SPLINE: lambda dim: Stack(
            [spline_autoregressive(dim, hidden_dims=[64], bound=4.0) for _ in range(2)]
            + _affine(dim, 1)
        ),
    }


def digits_stacks(blocks: int = 4, hidden: tuple[int, ...] = (128, 128)) -> dict[str, Make]:
    """Return makers of stacks for the digits, with one ActNorm before the first block."""
    strategies = {
        FORMER: {"norm": Gram(), "coordinates": None},
        "Cholesky(), coordinates=None": {"norm": Cholesky(), "coordinates": None},
        SMALL: {"norm": Cholesky(damping=1.0), "coordinates": None},
        WINNER: OURS,
        "Cholesky(), DiagonalScale(spread=0)": {
            "norm": Cholesky(),
            "coordinates": DiagonalScale(spread=0.0),
        },
    }

    def made(dim: int, **options: object) -> Stack:
        stack = iresnet_stack(dim, blocks, hidden, between=None, **options)
        return Stack([actnorm(dim), *stack.parts])

    return {name: partial(made, **options) for name, options in strategies.items()}


def _affine(dim: int, count: int) -> list[Transform]:
    return [affine_autoregressive(dim, hidden_dims=[64]) for _ in range(count)]


def _of(contraction: Callable[[int], Contraction], blocks: int, dim: int) -> Stack:
    parts: list[Transform] = []
    for _ in range(blocks):
        block = ResidualBlock(contraction(dim), coordinates=DiagonalScale(), logdet=Exact())
        parts += [actnorm(dim), IResNet(block)]
    return Stack([*parts, actnorm(dim)])
