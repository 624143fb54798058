"""Feature-wise shifts and gates from a context, which keep the Lipschitz constant in ``x``."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._settings import HasSettings
from ..errors import ArgumentTypeError, check_dims, check_positive_int


class Modulation(NamedTuple):
    r"""The effect of a context on one layer, :math:`h = \gamma \circ \phi(W x + b + s)`.

    Arguments:
        shift: ``s``, shape ``(*batch, width)``.
        gate: :math:`\gamma` in (0, 1), shape ``(*batch, width)``.
    """

    shift: Tensor
    gate: Tensor


class FiLM(HasSettings, nn.Module):
    r"""Shifts and gates of the hidden layers, from an embedding of the context.

    .. math:: e = \mathrm{MLP}(c), \qquad s_i = A_i e, \qquad \gamma_i = \sigma(B_i e + d_i)

    A shift moves a bias, which no Lipschitz constant in ``x`` sees. A gate is below 1 for every
    context. So no parameter here needs a constraint, and the dependence on the context is free.
    Gates start near 0.95, shifts like the outputs of a linear layer.

    Arguments:
        context_dim: the size of the context, an integer of at least 1.
        widths: the width of each layer, likewise.
        hidden_dims: the widths of the embedding network, likewise; none for the context itself.

    Raises:
        ArgumentError, ArgumentTypeError: ``context_dim``, or one of ``widths`` or ``hidden_dims``,
            is no integer of at least 1.

    Example:
        >>> import torch
        >>> shift, gate = FiLM(3, [8])(torch.randn(5, 3))[0]
        >>> shift.shape, bool((gate < 1).all())
        (torch.Size([5, 8]), True)
    """

    def __init__(
        self,
        context_dim: int,
        widths: Sequence[int],
        hidden_dims: Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        self.context_dim = check_positive_int(context_dim, "context_dim")
        widths = check_dims(widths, "widths", "(64, 64)")
        dims = (self.context_dim, *check_dims(hidden_dims, "hidden_dims of the FiLM"))
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(dims):
            layers += [nn.Linear(n_in, n_out), nn.SiLU()]
        self.embedding = nn.Sequential(*layers)
        self.shifts = nn.ModuleList(nn.Linear(dims[-1], n, bias=False) for n in widths)
        self.gates = nn.ModuleList(nn.Linear(dims[-1], n) for n in widths)
        with torch.no_grad():
            for gate in self.gates:
                gate.get_parameter("weight").mul_(0.1)
                gate.get_parameter("bias").fill_(OPEN)

    def forward(self, context: Tensor) -> list[Modulation]:
        """Return one :class:`Modulation` for each layer; ``context`` has shape ``(*batch, n)``."""
        e = self.embedding(context)
        pairs = zip(self.shifts, self.gates, strict=True)
        return [Modulation(shift(e), torch.sigmoid(gate(e))) for shift, gate in pairs]


# sigma(3) = 0.95
OPEN = 3.0

MakeConditioner = Callable[[int, Sequence[int]], FiLM]


def make_conditioner(
    make: MakeConditioner, context_dim: int | None, widths: Sequence[int]
) -> FiLM | None:
    """Make the conditioner of a network, or return None for a network without a context."""
    example = "FiLM, or functools.partial(FiLM, hidden_dims=(128, 128))"
    if isinstance(make, nn.Module) or not callable(make):
        raise ArgumentTypeError(
            f"Expected conditioner to be a class or a callable that makes one, such as {example}; "
            f"got {make!r}."
        )
    if context_dim is None:
        return None
    made = make(check_positive_int(context_dim, "context_dim"), widths)
    if not isinstance(made, FiLM):
        raise ArgumentTypeError(
            f"Expected conditioner to make a FiLM, such as {example}; "
            f"it made a {type(made).__name__}."
        )
    return made
