"""The stacks whose expressive power is compared, by what they differ in."""

from collections.abc import Callable
from functools import partial

from pyro.distributions.transforms import affine_autoregressive, spline_autoregressive
from torch.distributions import Transform

from pyro_iresnet import (
    Asinh,
    Cholesky,
    CLipSwish,
    Contraction,
    Diagonal,
    Exact,
    Gram,
    Identity,
    IResNet,
    ResidualBlock,
    Stack,
    Triangular,
    actnorm,
    implicit_stack,
    iresnet_stack,
)

from .prototypes import Potential, Sandwich

Make = Callable[[int], Stack]

FORMER = "Gram(), Identity()"
WINNER = "Cholesky(), Diagonal()"
# Pyro's own flows.
IAF = "IAF: 3 affine autoregressive"
SPLINE = "2 spline autoregressive, 1 affine"
SMALL = "Cholesky(damping=1), Identity()"
OURS = {"norm": Cholesky(), "metric": Diagonal()}


def pure(blocks: int, hidden: tuple[int, ...]) -> dict[str, Make]:
    """Stacks of residual blocks.

    Arguments:
        blocks: how many.
        hidden: their widths; where one hidden layer is asked and there are several, it is four
            times as wide.
    """
    options = {"num_blocks": blocks, "hidden_dims": hidden, "logdet": Exact()}
    plain = partial(iresnet_stack, **options)
    ours = partial(plain, **OURS)
    one = hidden if len(hidden) == 1 else (4 * hidden[0],)
    other = 2 * hidden if len(hidden) == 1 else one
    return {
        FORMER: partial(plain, norm=Gram(), metric=Identity()),
        "Gram(), Diagonal()": partial(plain, norm=Gram(), metric=Diagonal()),
        "Cholesky(), Identity()": partial(plain, norm=Cholesky(), metric=Identity()),
        WINNER: ours,
        "Triangular()": partial(ours, metric=Triangular()),
        "Asinh() in every other block": partial(ours, chart=(Asinh(), None)),
        "CLipSwish": partial(ours, activation=CLipSwish),
        f"{len(other)} hidden of {other[0]}": partial(ours, hidden_dims=other),
        "semidefinite bound": partial(_of, partial(Sandwich, width=one[0]), blocks),
        "gradient of a potential": partial(_of, partial(Potential, width=one[0]), blocks),
    }


def pairs(blocks: int, hidden: tuple[int, ...]) -> dict[str, Make]:
    """Blocks and inverse blocks in turn, as many together."""
    options = {"num_blocks": blocks, "hidden_dims": hidden, "logdet": Exact()}
    make = partial(implicit_stack, **options, norm=Cholesky())
    return {
        "implicit pairs, Diagonal()": partial(make, metric=Diagonal()),
        "implicit pairs, Identity()": partial(make, metric=Identity()),
    }


def with_host(hidden: tuple[int, ...]) -> dict[str, Make]:
    """Stacks with layers of Pyro's own in them."""
    options = {"hidden_dims": hidden, "logdet": Exact(), **OURS}
    two = partial(iresnet_stack, num_blocks=2, **options)
    charted = partial(iresnet_stack, num_blocks=2, chart=(Asinh(), None), **options)
    return {
        "2 blocks, then 2 affine autoregressive": lambda dim: Stack(
            [*two(dim).parts, *_affine(dim, 2)]
        ),
        "2 affine autoregressive, then 2 blocks, one in Asinh()": lambda dim: Stack(
            [*_affine(dim, 2), *charted(dim).parts]
        ),
    }


def of_pyro() -> dict[str, Make]:
    """What Pyro has."""
    return {
        IAF: lambda dim: Stack(_affine(dim, 3)),
        SPLINE: lambda dim: Stack(
            [spline_autoregressive(dim, hidden_dims=[64], bound=4.0) for _ in range(2)]
            + _affine(dim, 1)
        ),
    }


def digits_stacks(blocks: int = 4, hidden: tuple[int, ...] = (128, 128)) -> dict[str, Make]:
    """Stacks for the digits, with one ActNorm before the first block."""
    strategies = {
        FORMER: {"norm": Gram(), "metric": Identity()},
        "Cholesky(), Identity()": {"norm": Cholesky(), "metric": Identity()},
        SMALL: {"norm": Cholesky(damping=1.0), "metric": Identity()},
        WINNER: OURS,
        "Cholesky(), Diagonal(spread=0)": {"norm": Cholesky(), "metric": Diagonal(spread=0.0)},
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
        block = ResidualBlock(contraction(dim), metric=Diagonal(), logdet=Exact())
        parts += [actnorm(dim), IResNet(block)]
    return Stack([*parts, actnorm(dim)])
