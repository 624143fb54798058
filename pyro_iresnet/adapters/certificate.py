"""What is proven of a flow, and what is seen of it on data: :func:`certificate`."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..anatomy import contractions_of, modules_of
from ..block import ResidualBlock
from ..caching import observed
from ..contractive import (
    ConstrainedContraction,
    Contraction,
    SequentialContraction,
    SumContraction,
    Wrapped,
    spectral_norm,
)
from ..coordinates import Identity
from ..counter import fixed_normals
from ..errors import ArgumentError
from ..linearization import Linearization
from ..torch_modes import full_precision
from .pyro_transform import InverseIResNet, IResNet
from .standard_error import logdets_of, unchanged

# Rows whose Jacobians are taken at once, the sizes up to which they are taken as matrices, and the
# power iterations above.
ROWS, DENSE, POWERS = 512, 64, 30


@dataclass(frozen=True)
class Proof:
    """A row of a :class:`Certificate`: a layer, or the whole of a block's ``g``.

    Arguments:
        block: which contraction of the flow, from 0.
        layer: the name of the weight; ``"g"`` for the whole contraction.
        strategy: how the bound is proven, or whence it is.
        norm: the spectral norm of the weight that acts, exact but for rounding (of a convolution
            the tightest bound that holds at every image size); None for ``g``.
        bound: the proven bound.
        promised: what ``g`` promises; None for a layer.
        stretch: the largest local stretch of ``g`` found on the data; None without data.
        metric: the coordinates in whose Euclidean norm the bound of ``g`` and its stretch are
            taken, where they are not those of the block.

    Example:
        >>> from pyro_iresnet import DenseContraction, ResidualBlock, certificate
        >>> whole = certificate(ResidualBlock(DenseContraction(2, lipschitz=0.9))).rows[-1]
        >>> whole.layer, whole.promised, whole.bound <= 0.9 + 1e-5, whole.holds
        ('g', 0.9, True, True)
    """

    block: int
    layer: str
    strategy: str
    norm: float | None
    bound: float
    promised: float | None = None
    stretch: float | None = None
    metric: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the bound, with 1e-5 for rounding."""
        seen = [v for v in (self.norm, self.stretch) if v is not None]
        kept = self.promised is None or self.bound <= self.promised + 1e-5
        return kept and all(v <= self.bound * (1 + 1e-5) for v in seen)


@dataclass(frozen=True)
class Certificate:
    """What :func:`certificate` returns; printed, it is a table.

    Arguments:
        rows: the layers of each contraction, and the whole of it.

    Example:
        >>> from pyro_iresnet import DenseContraction, ResidualBlock, SingularValue, certificate
        >>> block = ResidualBlock(DenseContraction(2, [8], lipschitz=0.9, norm=SingularValue()))
        >>> found = certificate(block)
        >>> found.holds, [row.layer for row in found.rows]
        (True, ['layers.0.weight', 'layers.1.weight', 'g'])
    """

    rows: tuple[Proof, ...]

    @property
    def holds(self) -> bool:
        """Whether every bound holds, and that of every ``g`` is below 1."""
        return all(r.holds and (r.promised is None or r.bound < 1) for r in self.rows)

    def __str__(self) -> str:
        head = ["block", "layer", "strategy", "norm", "bound", "promised", "stretch", "metric", ""]
        cells = [head]
        for r in self.rows:
            numbers = [
                "" if v is None else f"{v:.4f}" for v in (r.norm, r.bound, r.promised, r.stretch)
            ]
            failed = "" if r.holds else "FAILS"
            cells.append([str(r.block), r.layer, r.strategy, *numbers, r.metric, failed])
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        return "\n".join(line.rstrip() for line in lines)


@torch.no_grad()
def certificate(
    flow: object, data: Tensor | None = None, *, context: Tensor | None = None
) -> Certificate:
    r"""What is proven of the contractions in a flow, and how far they stretch on data.

    For each weight that acts its spectral norm and the bound that its strategy proves; for each
    ``g`` the proven bound of :math:`\mathrm{Lip}(g)`, what it promises, and with ``data`` the
    largest :math:`\lVert J_g(x) \rVert_2` at the points where the data meet it, a lower bound of
    :math:`\mathrm{Lip}(g)`. Of a network given to :func:`wrap` nothing is proven: its bound is
    taken on your word, which the data may refute.

    Arguments:
        flow: a block, a stack, a flow or a guide of either framework.
        data: run through the flow as in :func:`logdet_with_error`; shape ``(*batch, *event)``.
        context: shape ``(*batch, size)``, for what is conditional.

    Returns:
        A :class:`Certificate`: ``print`` it, or ask ``.holds``.

    Raises:
        ArgumentTypeError: ``flow`` is nothing that can hold a block.
        ArgumentError: a context without data, or a flow without a contraction.

    Example:
        >>> import torch
        >>> from pyro_iresnet import certificate, iresnet_stack
        >>> _ = torch.manual_seed(0)
        >>> found = certificate(iresnet_stack(2, 2, [8]).eval(), torch.randn(50, 2))
        >>> found.holds, len(found.rows)
        (True, 6)
    """
    if data is None and context is not None:
        raise ArgumentError("Expected a context only together with data; got it alone.")
    if isinstance(flow, Contraction):
        flow = ResidualBlock(flow)
    if context is not None and isinstance(flow, IResNet | InverseIResNet):
        # These take no context, the block does.
        flow = flow.block
    contractions = contractions_of(flow)
    if not contractions:
        raise ArgumentError(
            "Expected flow to hold a contraction; found none, so there is nothing to prove."
        )
    blocks = [m for m in modules_of(flow) if isinstance(m, ResidualBlock)]
    metrics = {id(b.contraction): _metric(b) for b in blocks}
    rows: list[Proof] = []
    with full_precision(next(iter(contractions[0].parameters()), torch.empty(0))):
        stretches = {} if data is None else _stretches(flow, data, context)
        for i, c in enumerate(contractions):
            rows += _layers(i, c)
            bound = float(c.lipschitz_bound())
            stretch = stretches.get(id(c))
            metric = metrics.get(id(c), "")
            rows.append(Proof(i, "g", _grounds(c), None, bound, c.lipschitz, stretch, metric))
    return Certificate(tuple(rows))


def _layers(block: int, module: nn.Module, prefix: str = "") -> Iterator[Proof]:
    """Rows of the layers from which the bound of a contraction is proven."""
    if isinstance(module, Wrapped):
        # Its bound is taken on the user's word, whatever is inside.
        return
    if isinstance(module, ConstrainedContraction):
        for layer, weight in module.acting_weights():
            norms = float(weight.exact()), float(weight.norm())
            yield Proof(block, prefix + layer, str(module.norm), *norms)
    for name, child in module.named_children():
        yield from _layers(block, child, f"{prefix}{name}.")


def _grounds(contraction: Contraction) -> str:
    if isinstance(contraction, ConstrainedContraction):
        return "from its layers"
    composed = isinstance(contraction, SequentialContraction | SumContraction)
    return "from its parts" if composed else "as given"


def _metric(block: ResidualBlock) -> str:
    metric = None if isinstance(block.metric, Identity) else block.metric
    return ", ".join(str(part) for part in (block.chart, metric) if part is not None)


def _stretches(flow: object, data: Tensor, context: Tensor | None) -> dict[int, float]:
    """The largest local stretch of each contraction, by its identity."""
    met: dict[int, list[tuple[Contraction, Tensor, Tensor | None]]] = {}

    def seen(c: Contraction, x: Tensor, its_context: Tensor | None) -> None:
        met.setdefault(id(c), []).append((c, x, its_context))

    modules = modules_of(flow)
    blocks = [m for m in modules if isinstance(m, ResidualBlock)]
    run = logdets_of(flow, context is not None)
    with unchanged(modules, blocks), observed(flow, seen):
        run(data, context, 1)
    found = {key: [s for call in calls for s in _norms_of(*call)] for key, calls in met.items()}
    # A maximum of torch keeps what is not a number.
    return {key: float(torch.cat(norms).max()) for key, norms in found.items() if norms}


def _norms_of(c: Contraction, x: Tensor, context: Tensor | None) -> list[Tensor]:
    rows = x.reshape(-1, *x.shape[x.dim() - c.event_dim :]).split(ROWS)
    contexts = [None] * len(rows)
    if context is not None:
        contexts = list(context.reshape(-1, context.shape[-1]).split(ROWS))
    acting = c.acting()
    pairs = zip(rows, contexts, strict=True)
    return [_norms(acting.linearize(r, s)) for r, s in pairs if len(r)]


def _norms(at: Linearization) -> Tensor:
    """``||J||_2`` of each sample, from below where J is large."""
    if at.event_size <= DENSE:
        return spectral_norm(at.as_matrix())
    v = fixed_normals(tuple(at.value.shape), 0, at.value)
    size = at.norm(v)
    for _ in range(POWERS):
        scale = size.clamp(min=torch.finfo(v.dtype).tiny)
        v = at.vm(at.mv(v / scale.reshape(-1, *(1,) * at.event_dim)))
        size = at.norm(v)
    return size.sqrt()
