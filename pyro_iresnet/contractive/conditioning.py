"""How a context enters a network without changing its Lipschitz constant in ``x``."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentTypeError, check_dims, check_positive_int


class Modulation(NamedTuple):
    r"""What a context does to one layer, :math:`h = \gamma \circ \phi(W x + b + s)`.

    Arguments:
        shift: ``s``, shape ``(*batch, width)``.
        gate: :math:`\gamma` in (0, 1), shape ``(*batch, width)``.
    """

    shift: Tensor
    gate: Tensor


class Conditioner(nn.Module):
    r"""Shifts and gates of the hidden layers, from an embedding of the context.

    .. math:: e = \mathrm{MLP}(c), \qquad s_i = A_i e, \qquad \gamma_i = \sigma(B_i e + d_i)

    A shift moves a bias, which no Lipschitz constant in ``x`` sees; a gate is below 1 whatever
    the context is. Nothing here is constrained, so a context of any size may do anything else.
    The gates start near 0.95, the shifts as a linear layer does.

    Arguments:
        context_dim: the size of the context.
        widths: of the layers, before the activation and behind it.
        hidden_dims: the widths of the embedding network; none for the context itself.

    Raises:
        ArgumentError, ArgumentTypeError: ``context_dim`` or one of ``hidden_dims`` is no integer of
            at least 1.

    Example:
        >>> import torch
        >>> shift, gate = Conditioner(3, [(8, 8)])(torch.randn(5, 3))[0]
        >>> shift.shape, bool((gate < 1).all())
        (torch.Size([5, 8]), True)
    """

    def __init__(
        self,
        context_dim: int,
        widths: Sequence[tuple[int, int]],
        hidden_dims: Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        self.context_dim = check_positive_int(context_dim, "context_dim")
        dims = (self.context_dim, *check_dims(hidden_dims, "hidden_dims of the Conditioner"))
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(dims):
            layers += [nn.Linear(n_in, n_out), nn.SiLU()]
        self.embedding = nn.Sequential(*layers)
        self.shifts = nn.ModuleList(nn.Linear(dims[-1], n, bias=False) for n, _ in widths)
        self.gates = nn.ModuleList(nn.Linear(dims[-1], n) for _, n in widths)
        with torch.no_grad():
            for gate in self.gates:
                gate.get_parameter("weight").mul_(0.1)
                gate.get_parameter("bias").fill_(OPEN)

    def forward(self, context: Tensor) -> list[Modulation]:
        """One :class:`Modulation` for each layer; ``context`` of shape ``(*batch, size)``."""
        e = self.embedding(context)
        pairs = zip(self.shifts, self.gates, strict=True)
        return [Modulation(shift(e), torch.sigmoid(gate(e))) for shift, gate in pairs]


# sigma(3) = 0.95
OPEN = 3.0

MakeConditioner = Callable[[int, Sequence[tuple[int, int]]], Conditioner]


def make_conditioner(
    make: MakeConditioner, context_dim: int | None, widths: Sequence[tuple[int, int]]
) -> Conditioner | None:
    """The conditioner of a network, or None for one without a context."""
    example = "Conditioner, or functools.partial(Conditioner, hidden_dims=(128, 128))"
    if isinstance(make, nn.Module) or not callable(make):
        raise ArgumentTypeError(
            f"Expected conditioner to be a class or a callable that makes one, such as {example}; "
            f"got {make!r}."
        )
    if context_dim is None:
        return None
    made = make(check_positive_int(context_dim, "context_dim"), widths)
    if not isinstance(made, Conditioner):
        raise ArgumentTypeError(
            f"Expected conditioner to make a Conditioner, such as {example}; "
            f"it made a {type(made).__name__}."
        )
    return made
