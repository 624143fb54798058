"""Proofs of the bounds of a flow, and the stretch seen on data: :func:`certificate`."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from .._counter_rng import fixed_normals
from .._modules import contractions_of, modules_of
from .._torch import full_precision, has_values
from ..blocks import Block, ResidualBlock
from ..cached import share
from ..contractions import (
    Contraction,
    LayeredContraction,
    SequentialContraction,
    SumContraction,
    Wrapped,
    materialize_together,
)
from ..errors import ArgumentError, check_dense
from ..hosts.pyro.transform import BlockTransform
from ..norms import spectral_norm
from ..operators import ContractionMap, Linearization
from .logdet_error import is_flow, logdets_of, naming, unchanged

# Rows whose Jacobians are taken at once, the largest size of a Jacobian as a matrix, and the power
# iterations for larger Jacobians.
ROWS, DENSE, POWERS = 512, 64, 30


@dataclass(frozen=True)
class Proof:
    """A row of a :class:`Certificate`: a layer, or the whole of a block's ``g``.

    Arguments:
        block: the number of the contraction in the flow, from 0.
        layer: the name of the weight; ``"g"`` for the whole contraction.
        strategy: the proof of the bound, or its origin.
        norm: the spectral norm of the acting weight, exact but for rounding (of a convolution, the
            tightest bound that holds at every image size); None for ``g``.
        bound: the proven bound.
        promised: the constant that ``g`` promises; None for a layer.
        stretch: the largest local stretch of ``g`` found on the data; None without data.
        coordinates: the coordinates in whose Euclidean norm bound and stretch of ``g`` are taken;
            empty for those of ``x``.

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
    coordinates: str = ""

    @property
    def holds(self) -> bool:
        """Return True if nothing speaks against the bound, with 1e-5 for rounding."""
        seen = [v for v in (self.norm, self.stretch) if v is not None]
        kept = self.promised is None or self.bound <= self.promised + 1e-5
        return kept and all(v <= self.bound * (1 + 1e-5) for v in seen)


@dataclass(frozen=True)
class Certificate:
    """Proofs of the bounds of a flow, as :func:`certificate` returns them; printed, a table.

    Arguments:
        rows: the layers of each contraction, and the whole of each contraction.

    Example:
        >>> from pyro_iresnet import DenseContraction, ResidualBlock, certificate
        >>> from pyro_iresnet.norms import SingularValue
        >>> block = ResidualBlock(DenseContraction(2, [8], lipschitz=0.9, norm=SingularValue()))
        >>> found = certificate(block)
        >>> found.holds, [row.layer for row in found.rows]
        (True, ['layers.0.weight', 'layers.1.weight', 'g'])
    """

    rows: tuple[Proof, ...]

    @property
    def holds(self) -> bool:
        """Return True if every bound holds, and the bound of every ``g`` is below 1."""
        return all(r.holds and (r.promised is None or r.bound < 1) for r in self.rows)

    def __str__(self) -> str:
        head = [
            "block",
            "layer",
            "strategy",
            "norm",
            "bound",
            "promised",
            "stretch",
            "coordinates",
            "",
        ]
        cells = [head]
        for r in self.rows:
            numbers = [
                "" if v is None else f"{v:.4f}" for v in (r.norm, r.bound, r.promised, r.stretch)
            ]
            failed = "" if r.holds else "FAILS"
            cells.append([str(r.block), r.layer, r.strategy, *numbers, r.coordinates, failed])
        widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        return "\n".join(line.rstrip() for line in lines)


@torch.no_grad()
def certificate(
    flow: object, data: Tensor | None = None, *, context: Tensor | None = None
) -> Certificate:
    r"""Prove the bounds of the contractions in a flow, and measure their stretch on data.

    An acting weight has its spectral norm and the bound that its strategy proves. A contraction
    ``g`` has the proven bound of :math:`\mathrm{Lip}(g)`, its promised constant, and with ``data``
    the largest :math:`\lVert J_g(x) \rVert_2` at the points where the data meet ``g``, a lower
    bound of :math:`\mathrm{Lip}(g)`. The bound of a network given to :func:`wrap` is taken on your
    word, and the data may refute the bound. Print the result, or ask ``.holds``.

    Arguments:
        flow: a block, a stack, a flow or a guide of either framework, or a network around blocks,
            such as :class:`~pyro_iresnet.images.IResNetClassifier`.
        data: run through the flow as in :func:`logdet_with_error`, or through the network; shape
            ``(*batch, *event)``. The flow of a guide is ``guide.transform``.
        context: shape ``(*batch, size)``, for a conditional flow.

    Raises:
        ArgumentError, ArgumentTypeError: ``flow`` cannot hold a block or holds no contraction, or a
            context without data, or data that are not finite.

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
    if data is not None:
        check_dense(data, "data")
        if has_values(data) and not bool(data.isfinite().all()):
            raise ArgumentError(
                "Expected data without NaN or infinity, where g has no stretch. Drop such rows."
            )
    if isinstance(flow, Contraction):
        flow = ResidualBlock(flow)
    if context is not None and isinstance(flow, BlockTransform):
        # The transform takes no context, the block does.
        flow = flow.block
    contractions = contractions_of(flow)
    if not contractions:
        raise ArgumentError(
            "Expected flow to hold a contraction; found none, so there is nothing to prove."
        )
    blocks = [m for m in modules_of(flow) if isinstance(m, Block)]
    coordinates = {id(b.contraction): _coordinates(b) for b in blocks}
    rows: list[Proof] = []
    with full_precision(next(iter(contractions[0].parameters()), torch.empty(0))):
        stretches = {} if data is None else _stretches(flow, data, context)
        for i, c in enumerate(contractions):
            rows += _layers(i, c)
            bound = float(c.lipschitz_bound())
            stretch = stretches.get(id(c))
            within = coordinates.get(id(c), "")
            rows.append(Proof(i, "g", _grounds(c), None, bound, c.lipschitz, stretch, within))
    return Certificate(tuple(rows))


def _layers(block: int, module: nn.Module, prefix: str = "") -> Iterator[Proof]:
    """Yield rows of the layers that prove the bound of a contraction."""
    if isinstance(module, Wrapped):
        # The bound is taken on the user's word, for any layers inside.
        return
    if isinstance(module, LayeredContraction):
        for layer, weight in module.normalized_weights():
            norms = float(weight.exact()), float(weight.norm())
            yield Proof(block, prefix + layer, str(module.norm), *norms)
    for name, child in module.named_children():
        yield from _layers(block, child, f"{prefix}{name}.")


def _grounds(contraction: Contraction) -> str:
    if isinstance(contraction, LayeredContraction):
        return "from its layers"
    composed = isinstance(contraction, SequentialContraction | SumContraction)
    return "from its parts" if composed else "as given"


def _coordinates(block: Block) -> str:
    if block.coordinates is None:
        return ""
    strategy = block.coordinates.strategy
    return ", ".join(map(str, strategy if isinstance(strategy, tuple) else [strategy]))


@dataclass(frozen=True)
class _Recorded(ContractionMap):
    """A map that appends the x and the context of each call to ``calls``."""

    g: ContractionMap
    calls: list[tuple[Tensor, Tensor | None]]

    @property
    def closed_form(self) -> bool:
        return self.g.closed_form

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.calls.append((x, context))
        return self.g(x, context)

    def linearize(self, x: Tensor, context: Tensor | None = None) -> Linearization:
        self.calls.append((x, context))
        return self.g.linearize(x, context)

    def lipschitz_bound(self) -> Tensor:
        return self.g.lipschitz_bound()

    def rounding(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.g.rounding(x, context)


def _stretches(flow: object, data: Tensor, context: Tensor | None) -> dict[int, float]:
    """Return the largest local stretch of each contraction, by its identity."""
    modules, contractions = modules_of(flow), contractions_of(flow)
    blocks = [m for m in modules if isinstance(m, Block)]
    maps = materialize_together(contractions)
    recorded = {id(c): _Recorded(g, []) for c, g in zip(contractions, maps, strict=True)}
    with unchanged(modules, blocks), share(recorded, contractions), naming("data", data):
        if isinstance(flow, nn.Module) and not is_flow(flow) and not isinstance(flow, AutoGuide):
            # A network around blocks, such as a classifier, has no log-determinant.
            flow(data) if context is None else flow(data, context)
        else:
            logdets_of(flow, context is not None)(data, context, 1)
    found = {
        id(c): [s for call in r.calls for s in _norms_of(r.g, c.event_dim, *call)]
        for c, r in zip(contractions, recorded.values(), strict=True)
    }
    # A maximum of torch keeps NaN.
    return {key: float(torch.cat(norms).max()) for key, norms in found.items() if norms}


def _norms_of(g: ContractionMap, event_dim: int, x: Tensor, context: Tensor | None) -> list[Tensor]:
    rows = x.reshape(-1, *x.shape[x.dim() - event_dim :]).split(ROWS)
    contexts = [None] * len(rows)
    if context is not None:
        contexts = list(context.reshape(-1, context.shape[-1]).split(ROWS))
    pairs = zip(rows, contexts, strict=True)
    return [_norms(g.linearize(r, s)) for r, s in pairs if len(r)]


def _norms(at: Linearization) -> Tensor:
    """Return ``||J||_2`` of each sample, from below for a large J."""
    if at.event_size <= DENSE:
        return spectral_norm(at.as_matrix())
    v = fixed_normals(tuple(at.value.shape), 0, at.value)
    size = at.norm(v)
    for _ in range(POWERS):
        scale = size.clamp(min=torch.finfo(v.dtype).tiny)
        v = at.vm(at.mv(v / scale.reshape(-1, *(1,) * at.event_dim)))
        size = at.norm(v)
    return size.sqrt()
