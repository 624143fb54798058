"""Contractions materialized together: one batched norm for each shape of their weights."""

from collections import defaultdict
from collections.abc import Sequence

from .._torch import is_compiling
from ..norms import Norm
from ..operators import ContractionMap
from .base import Contraction
from .packed import whole
from .sequential import LayeredContraction, LayerSequence, normalized


def materialize_together(contractions: Sequence[Contraction]) -> list[ContractionMap]:
    """Return ``[c.materialize() for c in contractions]``, by one batched norm for each shape."""
    maps: dict[int, ContractionMap] = {}
    by_norm: dict[Norm, list[tuple[LayeredContraction, list[Contraction]]]] = defaultdict(list)
    for one, members in _gathered(contractions):
        if isinstance(one, LayeredContraction):
            by_norm[one.norm].append((one, members))
        else:
            maps[id(one)] = one.materialize()
    for norm, found in by_norm.items():
        prepared = [one._prepared() for one, _ in found]
        acting = normalized(norm, [w for raw, _ in prepared for w in raw])
        begin = 0
        for (one, members), (raw, make) in zip(found, prepared, strict=True):
            layers = tuple(make(acting[begin : begin + len(raw)]))
            g = LayerSequence(layers, len(one.event_shape), one.conditioner)
            begin += len(raw)
            parts = [g] if one is members[0] else g.rows(len(members))
            maps.update(zip(map(id, members), parts, strict=True))
    return [maps[id(c)] for c in contractions]


def _gathered(contractions: Sequence[Contraction]) -> list[tuple[Contraction, list[Contraction]]]:
    """Return each contraction with itself, and all of one pack as one, with all of them."""
    packs: dict[int, list[Contraction]] = defaultdict(list)
    for c in contractions:
        packs[id(vars(c).get("_pack", c))].append(c)
    gathered: list[tuple[Contraction, list[Contraction]]] = []
    for members in packs.values():
        # A compiler leaves the scales of activations out of the weights, so the layers differ.
        one = whole(members) if len(members) > 1 and not is_compiling() else None
        if isinstance(one, LayeredContraction):
            # A norm of the user's may know single weights only.
            one = one if type(one.norm).constrain_all is Norm.constrain_all else None
        gathered += [(c, [c]) for c in members] if one is None else [(one, members)]
    return gathered
